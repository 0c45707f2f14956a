"""`python -m slackmerge`: the same as the command `slackmerge`."""

from __future__ import annotations

import sys

from slackmerge import main

if __name__ == "__main__":
    sys.exit(main())
