"""The plan as people read it."""

from __future__ import annotations

from pipeline import sweep
from pipeline.run import plan_table, run_plan


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    every = "eval.unmerged=[base,sft,ct,ct_then_sft,ceiling]"
    configs = sweep.expand(["experiment=test", every], multirun=False).configs
    head, *lines, _ = plan_table.table(run_plan.plan_configs(configs, network=False)).splitlines()
    assert {"target_instructions", "ct"} <= {line.split()[0] for line in lines}
    for name in ("stage", "key"):
        at = head.index(name)
        assert all(line[at - 2 : at] == "  " and line[at] != " " for line in lines), name
