"""The plan as people read it."""

from __future__ import annotations

import pytest

from pipeline import run_plan, sweep
from pipeline.cli import pipeline_main as main
from pipeline.run import plan_table


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    every = "eval.baselines=[base,sft,ct,ct_then_sft,target_sft]"
    configs = sweep.expand(["experiment=test", every], multirun=False).configs
    head, *lines, _ = plan_table.table(run_plan.plan_configs(configs, network=False)).splitlines()
    assert {"target_instructions", "ct"} <= {line.split()[0] for line in lines}
    for name in ("stage", "key"):
        at = head.index(name)
        assert all(line[at - 2 : at] == "  " and line[at] != " " for line in lines), name


def test_a_plan_of_one_cell_speaks_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for cluster in ([], ["cluster=1xA100"]):
        assert main(["plan", "experiment=test", *cluster]) == 0
        assert "\n1 cell, 18 stages: " in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["plan", "check", "report"])
def test_a_site_that_is_not_there_ends_a_command_early(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "experiment=test", "launcher=slurm", "site=/nope.yaml"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "site=/nope.yaml: no such file. Set the path of a site's YAML, or one of slurm.\n"
