"""Settings: picked out of what a stage has, and light to import."""

import subprocess
import sys

import pytest

from common.errors import BadInput
from train.settings import CorpusOptions, CorpusSettings, LoraSettings, SftBlocksSettings, TrainingSettings


def test_fields_are_picked_out_of_more() -> None:
    values = {"tokens": 10, "block_size": 2, "replay_share": 0.5, "seed": 1, "further": "xx"}
    assert SftBlocksSettings(**values) == SftBlocksSettings(tokens=10, block_size=2, replay_share=0.5, seed=1)
    with pytest.raises(BadInput, match="SftBlocksSettings: seed is missing"):
        SftBlocksSettings(tokens=10, block_size=2, replay_share=0.5)


def test_what_lies_within_becomes_values_too(training: TrainingSettings) -> None:
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    read = TrainingSettings(**{**vars(training), "lora": lora})
    assert read.lora == LoraSettings(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj"))
    assert TrainingSettings(**{**vars(training), "lora": None}) == training


def test_a_folder_is_an_option_and_what_it_holds_a_setting() -> None:
    content = {"dataset": None, "subset": None, "files": "*.parquet", "split": "train", "revision": None}
    settings = {"source": "hub", "language": "xx", "dev": 0.1, "test": 0.1, "seed": 0, "inputs": ["0" * 64]}
    options = {f"{name}_folder": f"/data/{name}" for name in ("text", "english")}
    keyed = CorpusSettings(**{**settings, "text": {**content, "column": "text"}})
    placed = CorpusOptions(**{**options, "workers": 3})
    assert placed == CorpusOptions(text_folder="/data/text", english_folder="/data/english", workers=3)
    assert keyed.text is not None and "/data" not in repr(keyed)
    assert keyed.text.located(placed.text_folder).dataset == "/data/text"
    with pytest.raises(BadInput, match="a data set on the Hub or a folder is missing"):
        keyed.text.located(None)


def test_settings_are_light_to_import() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'datasets', 'tokenizers', 'pyarrow'}"
    code = f"import sys, train.settings, train.data.corpus.build; print({heavy} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
