"""Runs real mergekit on a list of configs, in an environment that has it: `python oracle_run.py jobs.json`.

jobs.json: [{"config": "config.yml", "out": "folder"}, ...]. Started by test_oracle.py; also by the benchmark for one
job.
"""

import json
import sys

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main(jobs_file: str) -> None:
    with open(jobs_file, encoding="utf-8") as stream:
        jobs = json.load(stream)
    for job in jobs:
        with open(job["config"], encoding="utf-8") as stream:
            config = MergeConfiguration.model_validate(yaml.safe_load(stream))
        run_merge(config, job["out"], MergeOptions(random_seed=job.get("seed", 0), quiet=True, write_model_card=False))


if __name__ == "__main__":
    main(sys.argv[1])
