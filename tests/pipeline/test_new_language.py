"""A new language is one YAML of at most twelve lines: it is planned, and its text is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import run_plan, sweep
from pipeline.journal import Journal
from pipeline.run.cells import run_executor

YAML = """\
# @package _global_
defaults:
  - override /corpus: files
language:
  code: epo
  short: null
  name: Esperanto
  max_tokens: null
  tasks: []
corpus:
  path: examples/mine/text/*.txt
"""


def test_a_new_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(YAML.splitlines()) <= 12
    shutil.copytree(sweep.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "language" / "epo.yaml").write_text(YAML)
    monkeypatch.setattr(sweep, "CONF", tmp_path / "conf")
    words = ["experiment=test", "language=epo", f"store={tmp_path / 'store'}", f"outputs={tmp_path}", "tracking=none"]
    plan = run_plan.plan(sweep.expand(words, multirun=False))
    assert [cell.language for cell in plan.cells] == ["epo"]
    corpus = next(stage for stage in plan.stages if stage.kind == "corpus")
    folder = run_executor(plan, Journal(tmp_path / "runs" / "now" / "journal.jsonl")).materialize(corpus)
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    assert counts["languages"]["epo"]["train"]["words"] > 1000
