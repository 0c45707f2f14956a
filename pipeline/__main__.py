"""`python -m pipeline [COMMAND]`: the commands of the pipeline; without one, `run`."""

import sys

from pipeline.cli import pipeline_main

if __name__ == "__main__":
    sys.exit(pipeline_main())
