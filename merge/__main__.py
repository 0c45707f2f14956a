"""`python -m merge`."""

import os
import sys

from merge.cli import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk: torch would take half a second more to take itself apart
