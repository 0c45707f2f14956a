"""The comparison in wandb, built offline by the real client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import dashboard, tracking
from pipeline.report.records import ReportInfo
from pipeline.report.sources import Sources
from pipeline.stages.stage import Stage
from tests.pipeline.report.synthetic import GOOD, LOST, Run
from tests.pipeline.toy_stage import toy_stage


def test_runs_say_which_method_they_are_of() -> None:
    base = toy_stage("base", "tiny", {})
    ct = toy_stage("ct", "nya-40k-s3", {"tokens": 40_000, "seed": 3}, {"model": base})

    def method(slug: str, parent: Stage = ct, kind: str = "eval") -> str | None:
        return tracking.method_of(toy_stage(kind, slug, {}, {"checkpoint": parent}))

    assert method("nya-ct-then-sft-40k-s3") == "ct_then_sft" and method("nya-ties_sv_1-1.5M-s0") == "ties_sv_1"
    assert method("nya-sft-s0") == "sft" and method("nya-tiny-base", base) == "base"
    assert method("nya-40k-s3", kind="ct") is None
    about = tracking.about(toy_stage("eval", "nya-ct-40k-s3", {}, {"checkpoint": ct}))
    assert (about["method"], about["ct_tokens"], about["seed"]) == ("ct", 40_000, 3)


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
