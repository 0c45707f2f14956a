"""The base model that ships with the repository is what its recipe says."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from eval import harness, task_set

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "tiny-base"


def test_it_has_the_shape_and_the_training_of_its_recipe() -> None:
    recipe = yaml.safe_load((ROOT / "conf" / "model" / "tiny.yaml").read_text())["recipe"]
    config = json.loads((FOLDER / "config.json").read_text())
    shape = {
        "hidden_size": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
    }
    assert {name: recipe[name] for name in shape} == {name: config[key] for name, key in shape.items()}
    assert (config["vocab_size"], config["max_position_embeddings"]) == (recipe["vocabulary"], recipe["context"])
    log = [json.loads(line) for line in (FOLDER / "log.jsonl").read_text().splitlines()]
    assert log[-1]["tokens"] == log[-1]["of_tokens"] == recipe["tokens"]


def test_it_knows_english_and_hardly_any_chichewa(tmp_path: Path) -> None:
    sentences = {
        "en": "The king sent messengers to all the cities of Israel.",
        "nya": "Mfumu inatumiza mithenga ku mizinda yonse ya Israele.",
    }
    for language, text in sentences.items():
        (tmp_path / f"{language}.test.jsonl").write_text(json.dumps({"id": language, "text": text}) + "\n")
    scores = harness.evaluate_folder(FOLDER, task_set.prepare(text=tmp_path))
    bits = {row["language"]: row["value"] for row in scores.records}
    assert bits["en"] < 2 < bits["nya"]
