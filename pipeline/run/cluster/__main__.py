"""`python -m pipeline.run.cluster FOLDER NAME SETTLE_SECONDS KEY...`: a process of several in a Slurm job (job.py)."""

import sys
from pathlib import Path

from pipeline.run.cluster.job import ClusterJob

if __name__ == "__main__":
    folder, name, settle, *keys = sys.argv[1:]
    ClusterJob(Path(folder), name, tuple(keys), float(settle)).make()
