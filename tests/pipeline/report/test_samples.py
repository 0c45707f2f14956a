"""Sample items with each method's answer."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.report.records import Evaluation
from pipeline.report.samples import pick


def test_one_by_chance_and_one_where_methods_differ(tmp_path: Path) -> None:
    same = {"prompt": "ཁ་བ་?" + "x" * 800, "choices": ["a", "b"], "answer": 1, "family": "next"}
    items = [{**same, "id": f"{n}", "language": code} for n in range(6) for code in ("nya", "en")]
    evaluations = []
    for method in ("sft", "ct", "ties"):
        folder = tmp_path / method
        folder.mkdir()
        scores, samples = [], []
        for code in ("nya", "en"):
            scores.append({"task": f"next_{code}", "family": "next", "language": code})
            for n in range(6):
                given = 0 if (method == "ties" and n == 4) else 1
                samples.append({"task": f"next_{code}", "id": f"{n}", "prediction": given})
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        evaluations.append(Evaluation(method, 10_000, 3, folder))
    found = pick(items, evaluations, "nya")
    assert (found.budget, found.seed, [sample.why for sample in found.samples]) == (
        10_000,
        3,
        ["drawn by chance", "where methods differ most"],
    )
    differing = next(one.target for one in found.samples if len(set(one.target.answers.values())) > 1)
    assert differing.answers == {"sft": 1, "ct": 1, "ties": 0} and differing.prompt.startswith("…")
    assert found.samples[0].english is not None
    assert pick([], evaluations, "nya").samples == []
