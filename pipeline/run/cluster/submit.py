"""Jobs -> Slurm, by submitit: one sbatch call per array, with the jobs that each waits for."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.project import ROOT
from pipeline.run import launch
from pipeline.run.cluster import queue
from pipeline.run.cluster.job import ClusterJob
from pipeline.run.cluster.schedule import Task, arrays, bundles
from pipeline.run.cluster.site import Site
from pipeline.store import Store


def submit(
    site: Site, store: Store, tasks: Sequence[Task], folder: Path, queued: Mapping[str, queue.Job]
) -> list[queue.Job]:
    """Submit jobs, which are in an order in which they could run.

    `queued` says which job in the queue makes a stage. Raises BadInput if Slurm rejects one, in Slurm's words;
    what was submitted before stays in the queue.
    """
    makers, submitted = dict(queued), []
    for alike in arrays(tasks):
        array = bundles(alike, site.evals_per_job) if alike[0].work == "evaluate" else alike
        after = sorted({makers[key].id for task in array for key in task.needs if key in makers})
        for job in _submit(site, store, array, folder, after):
            makers |= dict.fromkeys(job.keys, job)
            submitted.append(job)
    return submitted


def _submit(site: Site, store: Store, array: Sequence[Task], folder: Path, after: Sequence[str]) -> list[queue.Job]:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    at_a_time = site.evals_per_job if array[0].work == "evaluate" else 1
    resources = site.resources(array[0].work)
    calls = [
        ClusterJob(
            folder,
            task.name,
            tuple(stage.key for stage in task.stages),
            site.settle_seconds,
            at_a_time,
            resources.python,
        )
        for task in array
    ]
    digest = hashlib.sha256(" ".join([str(folder), *(call.name for call in calls)]).encode()).hexdigest()[:10]
    name = f"{queue.PREFIX}{array[0].work}-{digest}"
    queue.announce(store, name, [queue.Job("", call.name, call.keys, str(folder)) for call in calls])
    # exec: Slurm's warning goes to the batch shell's process
    python = f"exec {resources.python or shlex.quote(sys.executable)}"
    slurm = submitit.SlurmExecutor(queue.logs(folder), max_num_timeout=site.restarts, python=python)
    slurm.update_parameters(**parameters(site, array[0], name, after))
    try:
        jobs = slurm.submit_array(calls)
    except (FailedJobError, FailedSubmissionError) as error:
        raise BadInput(f"site: Slurm rejects {array[0].work} jobs: {' '.join(str(error).split())}") from None
    return [queue.Job(job.job_id, call.name, call.keys, str(folder)) for job, call in zip(jobs, calls, strict=True)]


def parameters(site: Site, task: Task, name: str, after: Sequence[str]) -> dict[str, Any]:
    """Return the options that submitit writes into the batch script of such jobs."""
    resources = site.resources(task.work)
    import_ours = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    setup = [*(resources.setup or []), import_ours]
    if resources.python:  # a container has its own paths, and srun passes on the caller's
        setup += [f'export {launch.HOST_PATH}="$PATH"', f'export {launch.HOST_LIBRARIES}="${{LD_LIBRARY_PATH:-}}"']
    wanted = {
        "job_name": name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "setup": setup,
        "nodes": task.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.memory_gb * 1024)}M",
        "time": round(resources.hours * 60),
        "signal_delay_s": site.warning_seconds,
        "array_parallelism": site.max_parallel,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "stderr_to_stdout": True,
        "use_srun": False,  # the job is one process on its first node; a training on several nodes calls srun itself
        "additional_parameters": {
            "signal": f"B:USR2@{site.warning_seconds}",
            "requeue": True,
            **(resources.extra or {}),
        },
    }
    return {key: value for key, value in wanted.items() if value is not None}
