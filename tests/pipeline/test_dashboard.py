"""The comparison in wandb, built offline by the real client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import dashboard, sweep, tracking
from pipeline.report.records import ReportInfo
from pipeline.report.sources import Sources
from pipeline.run_plan import RunPlan
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs
from tests.pipeline.report.synthetic import GOOD, LOST, Run


def test_a_run_of_wandb_has_the_method_budget_and_seed_of_its_stage() -> None:
    configs = sweep.expand(["experiment=test", "merge.write=true"], multirun=True).configs
    plan = RunPlan(tuple(plan_cell(config, Inputs()) for config in configs))
    methods = {str(stage): stage.method for stage in plan.stages}
    assert methods["eval nya-ct-then-sft-4096-s0"] == "ct_then_sft" and methods["eval nya-sft-s0"] == "sft"
    for kind in ("tune", "merge", "weights", "eval"):
        assert methods[f"{kind} nya-ties_sv_1-4096-s0"] == "ties_sv_1"
    assert methods["eval nya-test-base"] == "base"
    assert {name for name, method in methods.items() if method is None} == {
        str(stage) for stage in plan.stages if stage.type.resource in ("data", "train")
    }
    scored = next(stage for stage in plan.stages if str(stage) == "eval nya-ct-4096-s0")
    about = tracking.about(scored)
    assert (about["method"], about["ct_tokens"], about["seed"]) == ("ct", 4096, 0)


def test_a_dashboard_is_built_offline_and_says_how_to_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    monkeypatch.setattr("pipeline.report.figures.javascript", lambda: "")
    monkeypatch.setattr("pipeline.dashboard.logged_in", lambda: False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = Run(tmp_path / "run", {"ties": GOOD["ties"]}, {"ties": LOST["ties"]}, seeds=(0,))
    out = tmp_path / "out"
    Sources(
        info=ReportInfo(title="tiny", language="nya", language_name="Chichewa", configs={}),
        evaluations=run.evaluations,
        audits=run.audits,
        choices=run.choices,
    ).render(out)
    layout = json.loads(dashboard.build(out).read_text())
    text = json.dumps(layout)
    assert "mean_nya/acc" in text and "ct_tokens" in text and "Claims and cost" in text
    assert (
        len(list((out / "wandb").glob("offline-run-*"))) == len({e.method for e in run.evaluations}) + 1
    )  # the claims
    assert "wandb sync" in capsys.readouterr().out


def test_a_folder_without_a_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main([str(tmp_path)]) == 2
    assert "no sources.json" in capsys.readouterr().err
