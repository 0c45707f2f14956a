"""`python -m merge merge.yml OUT_DIR`"""

import sys

from merge.cli import main

if __name__ == "__main__":
    sys.exit(main())
