"""A sweep on a Slurm cluster.

Input: the run's plan, the missing keys, the site file. Output: entries in the store, computed by jobs, and the run's
journal. `schedule` divides the plan into jobs (pure), `queue` asks Slurm, `submit` submits jobs, `job` runs inside a
job, `watch` waits for jobs and copies their events, `site` reads the resources of jobs. Side effects: the run's folder,
`.jobs/` in the store, Slurm's queue; a job's stages are changed by its own worker alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import BadInput
from pipeline.config import Config
from pipeline.journal import Journal
from pipeline.run.cluster import queue, schedule, submit, watch
from pipeline.run.cluster import site as sites
from pipeline.run.worker import Worker
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.sweep import Sweep


def site_of(sweep: Sweep, config: Config) -> sites.Site | None:
    """Return the cluster that a sweep is sent to, checked against its trainings; None if it stays here. Raises
    BadInput.
    """
    if sweep.site is None:
        return None
    site = sites.read(sweep.site)
    sites.check(site, config)
    return site


def make(site: sites.Site, plan: RunPlan, missing: Sequence[Stage], here: Worker, journal: Journal) -> None:
    """Make what is missing, in Slurm jobs, and return when they have ended; what became of it stands in the journal.

    What is queued already, by an earlier command, is waited for and not submitted again. `here` makes stages on this
    host, where the site wants that. Raises BadInput if Slurm does not answer or rejects a job.
    """
    store, folder = plan.store, journal.path.parent
    keys = {stage.key for stage in missing}
    if site.run_data_locally:
        tasks = [task for task in schedule.cut(plan.stages, keys) if task.work == "data" and not task.needs & keys]
        data = [stage for task in tasks for stage in task.stages]
        here.run(data)
        keys -= {stage.key for stage in data}
    with queue.submitting(store):
        seen = queue.look()
        if seen is None:
            raise BadInput(
                "launcher=slurm: Slurm does not answer (squeue --me). Nothing was submitted: try again later."
            )
        # a job of an earlier command may have ended since `missing` was looked up: it has left the queue, not the store
        keys -= {stage.key for stage in missing if stage.key in keys and store.find(stage)}
        queued = [job for job in queue.ours(store, seen) if keys & set(job.keys)]
        making = queue.making(queued)
        jobs = submit.submit(site, store, schedule.cut(plan.stages, keys - set(making)), folder, making)
    say = here.progress.note
    say(f"{len(jobs)} jobs submitted, {len(queued)} queued before; their logs are in {queue.logs(folder)}")
    waiting = [stage for stage in plan.stages if stage.key in keys]
    try:
        watch.until_ended(watch.Watch([*queued, *jobs], waiting, store, journal, here.progress), site)
    except KeyboardInterrupt:
        say("the jobs stay in the queue, and the same command resumes watching them; this ends them:")
        say(f"  scancel {' '.join(job.id for job in (*queued, *jobs))}")
        raise
