"""A sweep on a Slurm cluster: `schedule` cuts the plan into jobs, `submit` hands them over, `job` runs inside one, `watch` waits for them."""
