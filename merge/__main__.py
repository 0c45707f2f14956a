"""`python -m merge`."""

import os

from merge.cli import main

if __name__ == "__main__":
    code = main()  # has flushed what it printed
    os._exit(code)  # everything is on disk: torch would take half a second more to take itself apart
