"""`python -m pipeline.run.cluster FOLDER NAME SETTLE_SECONDS KEY...`: one of several processes in a Slurm job; see job.ClusterJob."""

import sys
from pathlib import Path

from pipeline.run.cluster.job import ClusterJob

if __name__ == "__main__":
    folder, name, settle, *keys = sys.argv[1:]
    ClusterJob(Path(folder), name, tuple(keys), float(settle)).make()
