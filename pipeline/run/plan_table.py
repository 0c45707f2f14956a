"""`slackmerge plan`: the stages of a sweep, done or to run; with a cluster, also their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from common.errors import BadInput
from common.units import counted
from pipeline import run_plan, sweep
from pipeline.config import Config
from pipeline.run.cluster import site
from pipeline.run_plan import RunPlan


def show(overrides: Sequence[str], multirun: bool) -> int:
    """Print the plan; `cluster=` and `mfu=` among the overrides ask for costs.

    Raises BadInput, also if the cluster cannot hold it.
    """
    cost = dict(argument.split("=", 1) for argument in overrides if argument.startswith(("cluster=", "mfu=")))
    settings = [argument for argument in overrides if argument.partition("=")[0] not in cost]
    expanded = sweep.expand(settings, multirun)
    if expanded.site is not None:
        site.read(expanded.site)  # a plan for a cluster whose site cannot be read would not run
    plan = run_plan.plan(expanded, network=False)
    if "cluster" not in cost:
        print(table(plan))
        return 0
    from pipeline.cost.table import report

    missing = {stage.key for stage in plan.missing()}
    one_by_one = expanded.launcher_given and expanded.launcher == sweep.IN_THIS_PROCESS
    text, refusal = report(plan.cells, missing, cost["cluster"], _utilisation(cost.get("mfu")), one_by_one)
    print(text)
    if refusal:
        raise BadInput(refusal)
    return 0


def _utilisation(given: str | None) -> float | None:
    """Return the fraction of the peak FLOP/s that `mfu=` states; None: it is not given. Raises BadInput."""
    if given is None:
        return None
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise BadInput(
            f"mfu={given}: must be above 0 and at most 1, the fraction of the peak FLOP/s that "
            "training reaches, such as 0.4."
        )
    return share


def table(plan: RunPlan) -> str:
    """List each stage for people, whether it is done, and how many cells share it."""
    missing = {stage.key for stage in plan.missing()}
    sharing = Counter(stage.key for cell in plan.cells for stage in cell.stages)
    kinds, width = (2 + max(len(getattr(stage, name)) for stage in plan.stages) for name in ("kind", "slug"))
    lines = [f"{'kind':{kinds}}{'stage':{width}}{'key':14}{'cells':>5}  state"]
    for stage in plan.stages:
        state = "to run" if stage.key in missing else "done"
        lines.append(f"{stage.kind:{kinds}}{stage.slug:{width}}{stage.key:14}{sharing[stage.key]:5}  {state}")
    count = len(plan.stages)
    size = f"{counted(len(plan.cells), 'cell')}, {counted(count, 'stage')}"
    lines.append(f"{size}: {count - len(missing)} done, {len(missing)} to run")
    described = prompts(plan.config)
    return "\n".join([*lines, described] if described else lines)


def prompts(config: Config) -> str:
    """Describe how checkpoints are prompted, if it is not by the defaults."""
    settings = config.eval
    ways = {
        "none": [],
        "auto": ["by the chat template of each checkpoint that has one"],
        "both": ["plain, and by the chat template of each checkpoint that has one"],
    }
    parts = list(ways[settings.chat])
    if settings.system is not None:
        parts.append(f"with the system message {settings.system[:60]!r}")
    if settings.fewshot is not None:
        by_task = settings.fewshot.items() if isinstance(settings.fewshot, dict) else [("each", settings.fewshot)]
        shots = ", ".join(f"{name} {number}" for name, number in by_task)
        parts.append(f"examples in each prompt of lm-eval tasks: {shots}")
    if settings.generation != "own":
        parts.append("answers are generated greedily, without the generation config of checkpoints")
    return f"prompts: {'; '.join(parts)}" if parts else ""
