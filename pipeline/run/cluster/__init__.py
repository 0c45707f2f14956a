"""A sweep on a Slurm cluster.

Input: the run's plan, the missing stages, the site file. Output: entries in the store, computed by jobs, and the run's
journal. Side effects: the run's folder, `.jobs/` in the store, Slurm's queue.

    site      the resources of jobs on a cluster
    schedule  the jobs of a plan (pure)
    job       what runs inside a job
    slurm     its queue: jobs are submitted, found again, and waited for
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import BadInput
from pipeline.config import Config
from pipeline.execute import Executor
from pipeline.run.cluster import schedule, slurm
from pipeline.run.cluster import site as sites
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.sweep import Sweep


def site_of(sweep: Sweep, config: Config) -> sites.Site | None:
    """Return the cluster that a sweep is sent to, checked against its trainings; None if it stays here.

    Raises BadInput.
    """
    if sweep.site is None:
        return None
    site = sites.read(sweep.site)
    sites.check(site, config)
    return site


def compute(site: sites.Site, plan: RunPlan, missing: Sequence[Stage], executor: Executor) -> None:
    """Compute what is missing in Slurm jobs, and return when they have ended. The journal has what failed.

    What is queued already, by an earlier command, is waited for and not submitted again. executor: of this process; it
    computes stages on this host if the site wants that. Raises BadInput if Slurm does not answer or rejects a job.
    """
    store, journal = plan.store, executor.journal
    folder = journal.path.parent
    keys = {stage.key for stage in missing}
    if site.run_data_locally:
        pieces = schedule.group_into_pieces(plan.stages, keys)
        ready = [piece for piece in pieces if piece.job_class == "data" and not piece.needs & keys]
        data = [stage for piece in ready for stage in piece.stages]
        executor.compute(data, stop_at_failure=True)
        keys -= {stage.key for stage in data}
    with slurm.submitting(store):
        queue = slurm.query_queue()
        if queue is None:
            raise BadInput(
                "launcher=slurm: Slurm does not answer (squeue --me). Nothing was submitted: try again later."
            )
        # a job of an earlier command may have ended since `missing` was looked up: it has left the queue, not the store
        keys -= {stage.key for stage in missing if stage.key in keys and store.find(stage)}
        queued = [job for job in slurm.jobs_of_store(store, queue) if keys & set(job.keys)]
        computed_by = slurm.jobs_by_key(queued)
        pieces = schedule.group_into_pieces(plan.stages, keys - set(computed_by))
        submitted = slurm.submit(site, store, pieces, folder, computed_by)
    jobs = {job.id: job for job in (*queued, *submitted)}
    journal.message(
        f"{len(submitted)} jobs submitted, {len(queued)} queued before; their logs are in {slurm.logs(folder)}"
    )
    waiting = {stage.key: stage for stage in plan.stages if stage.key in keys}
    try:
        slurm.wait(slurm.Watch(jobs, waiting, store, journal), site)
    except KeyboardInterrupt:
        journal.message("the jobs stay in the queue, and the same command resumes watching them; this ends them:")
        journal.message(f"  scancel {' '.join(jobs)}")
        raise
