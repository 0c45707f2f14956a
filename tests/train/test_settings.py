"""Settings: picked from sections, strict about names, and light to import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import BadInput
from train.settings import CorpusOptions, HubCorpusSettings, LoraSettings, SftBlocksSettings, TrainingSettings


def test_fields_are_picked_from_the_first_section_that_has_them(training: TrainingSettings) -> None:
    picked = SftBlocksSettings.pick(training, replay_fraction=0.5)
    assert picked == SftBlocksSettings(tokens=2048, block_size=32, replay_fraction=0.5, seed=0)
    with pytest.raises(ValidationError, match="replay_fraction"):
        SftBlocksSettings.pick(training)
    with pytest.raises(ValidationError, match="further"):
        SftBlocksSettings.pick(training, replay_fraction=0.5, further="xx")


def test_settings_come_back_from_json(training: TrainingSettings) -> None:
    lora = LoraSettings(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj"))
    changed = training.replace(lora=lora)
    assert TrainingSettings.model_validate_json(changed.model_dump_json()) == changed != training
    assert "lora" not in training.key_content() and changed.key_content()["lora"]["targets"] == ["q_proj", "v_proj"]


def test_a_folder_is_an_option_and_what_it_holds_a_setting() -> None:
    content = {"dataset": None, "subset": None, "files": "*.parquet", "split": "train", "revision": None}
    source = {**content, "column": "text"}
    settings: dict[str, Any] = {"source": "hub", "language": "xx", "dev": 0.1, "test": 0.1, "seed": 0}
    keyed = HubCorpusSettings(**settings, text=source, english=source, text_bytes=None, english_bytes=None)
    placed = CorpusOptions(text_folder="/data/text", english_folder="/data/english", workers=3)
    assert "/data" not in repr(keyed)
    assert keyed.text.located(placed.text_folder).dataset == "/data/text"
    with pytest.raises(BadInput, match="a data set on the Hub or a folder is missing"):
        keyed.text.located(None)


def test_settings_are_light_to_import() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'datasets', 'tokenizers', 'pyarrow'}"
    code = f"import sys, train.settings, train.data.corpus.build; print({heavy} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
