"""What `slackmerge` does with a sweep: plan, check, compute, report.

Input: a Sweep, the configs of all cells. Output: entries in the store, the report in outputs/<name>/, a JSON line and
an exit code. Side effects: the store, through the executor alone, and the run's folder outputs/<name>/runs/<time>/
(plan, configs, journal, messages of libraries). Read it in this order:

    run         `run` from top to bottom, `check`, `verify`; make: one stage; plan_table: `plan`; push: to the Hub
    cells       the stages on this machine, in this process or in those of a launcher
    gpus        on all GPUs of this machine
    cluster     in Slurm jobs
    launch      how a training starts, under torchrun too
    display     what is shown of a run, from its journal: lines, a terminal's status, `watch`
    collect     what the report reads of the store
"""
