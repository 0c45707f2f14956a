"""`check` finds a task that generates more than the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import sweep
from pipeline.check.resources import check_tasks, context_of
from pipeline.run_plan import without_stages
from tests.eval.conftest import make_items, write_jsonl

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_a_task_that_generates_more_than_the_model_reads_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "own" / "rows.jsonl", make_items("mine", "nya", 2, 0))
    (tmp_path / "own" / "mine.yaml").write_text(TASK)
    config = sweep.expand(("experiment=tiny", f"eval.include_path={tmp_path}/own"), multirun=False).configs[0]
    context = context_of(config)
    assert context == 256
    said = [finding.text for finding in check_tasks(without_stages(config)) if finding.fails]
    assert said and said[0].startswith("tasks: mine generates up to 256 tokens, but the model reads 256")
