"""Checks of an experiment's hypotheses: they can be read, name methods that exist, and are committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.choices import listed
from pipeline.check.finding import Finding
from pipeline.config import Config
from pipeline.report import hypotheses


def stated(configs: Sequence[Config]) -> Iterator[Finding]:
    """Yield the file hypotheses/<experiment>.yaml, where there is one."""
    path = hypotheses.find(configs[0].name)
    if path is None:
        return
    found = hypotheses.read(path)
    methods = [
        hypotheses.in_regime(name, regime)
        for config in configs
        for name in (*config.eval.unmerged, *config.merge.methods)
        for regime in dict.fromkeys((None, config.regime))
    ]
    budgets = {config.ct.tokens for config in configs}
    for name, why in hypotheses.without_data(found, list(dict.fromkeys(methods)), budgets).items():
        yield Finding(False, f"{path}: {name}: this run gives no data for it: {why}")
    times = hypotheses.commit_times(path)
    if times is None:
        yield Finding(
            False,
            f"{path}: not in a git repository, so no report can show when it was written.",
        )
    elif new := [name for name, committed in times.items() if committed is None]:
        yield Finding(
            False,
            f"{path}: {listed(new)}: its present text is not committed. "
            "Commit it before the run, or it gets no verdict.",
        )
