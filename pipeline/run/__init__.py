"""What `slackmerge` does with a sweep: plan, check, make, report.

Comes in: a Sweep, the configs of all cells. Goes out: entries in the store, the report in outputs/<name>/, a JSON line
and an exit code. Read it in this order:

    sweep_run       the verb `run`, top down; plan_table: the verb `plan`
    run_plan        the plan of a run, one value that is handed down and that every worker reads
    local, gpus, cluster  where stages are made: on this machine (hydra_launcher: by processes of Hydra), on all of
                    its GPUs, in Slurm jobs
    worker          who makes them, the same everywhere; launch: how it starts a training, under torchrun too
    collect         what of the store the report reads
    interruption    what Ctrl-C does
    failures        what was not computed, reported at the end
    journal, console  what happened, in a file and for people

Side effects: the store, through the executor alone, and the run's folder outputs/<name>/runs/<time>/ (plan, configs,
journal, messages of libraries).
"""
