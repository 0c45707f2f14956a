"""A sweep on a Slurm cluster: `schedule` cuts the plan into jobs, `submit` hands them over, `job` runs inside one, `watch` waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import BadInput
from pipeline.config import Config
from pipeline.execute import Executor
from pipeline.plan import Stage
from pipeline.run.cluster import site as sites
from pipeline.run.console import Journal
from pipeline.store import Store


def run(
    site: sites.Site,
    config: Config,
    stages: Sequence[Stage],
    waiting: Sequence[Stage],
    here: Executor,
    journal: Journal,
    say: Callable[[str], None],
) -> None:
    """Makes what waits, in Slurm jobs, and returns when they have ended. What is queued already, by an earlier command, is waited for and not
    submitted again. What happened stands in the journal. `here` makes stages on this host, where the site wants that."""
    from pipeline.run.cluster import queue, schedule, submit, watch
    from pipeline.run.cluster.job import save_plan

    store, folder = Store(Path(config.store)), journal.path.parent
    save_plan(folder, config, stages)
    keys = {stage.key for stage in waiting}
    if site.data_here:
        made = [
            stage
            for task in schedule.cut(stages, keys)
            if task.work == "data" and not task.needs & keys
            for stage in task.stages
        ]
        here.run(made)
        keys -= {stage.key for stage in made}
    with queue.submitting(store):
        seen = queue.look()
        if seen is None:
            raise BadInput("launcher=slurm: Slurm does not answer (squeue --me); nothing was submitted")
        queued = [job for job in queue.ours(store, seen) if keys & set(job.keys)]
        making = queue.making(queued)
        tasks = schedule.cut(stages, keys - set(making))
        jobs = submit.submit(site, store, tasks, folder, making)
    say(f"{len(jobs)} jobs submitted, {len(queued)} queued before; their logs are in {queue.logs(folder)}")
    try:
        watch.until_ended(
            watch.Watch(
                [*queued, *jobs], [stage for stage in stages if stage.key in keys], store, journal, here.progress
            ),
            site,
        )
    except KeyboardInterrupt:
        say("the jobs stay in the queue, and the same command goes on watching them; this ends them:")
        say(f"  scancel {' '.join(job.id for job in (*queued, *jobs))}")
        raise
