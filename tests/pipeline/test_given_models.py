"""What a given checkpoint is known by are the files that are loaded: all of them, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import BadInput
from common.files import Checksums
from pipeline import inputs, sweep
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs

SHIPPED = Path(__file__).parents[2] / "models" / "tiny-base"
WEIGHTS = load_file(SHIPPED / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without weights."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


def save(file: Path, factor: float = 1.0) -> None:
    file.parent.mkdir(exist_ok=True)
    save_file({name: tensor * factor for name, tensor in WEIGHTS.items()}, file, metadata={"format": "pt"})


def index(folder: Path, name: str) -> None:
    listed = {"metadata": {}, "weight_map": dict.fromkeys(WEIGHTS, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))


def known_by(folder: Path) -> str:
    return inputs.checkpoint(str(folder), "model.path", Checksums(folder.parent / "kept.json"), network=False)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "deeper/weights.safetensors"])
def test_other_weights_are_another_model(folder: Path, name: str) -> None:
    index(folder, name)
    save(folder / name)
    before = known_by(folder)
    save(folder / name, 2.0)
    assert known_by(folder) != before


def test_weights_that_nobody_loads_change_nothing(folder: Path) -> None:
    save(folder / "model.safetensors")
    before = known_by(folder)
    save(folder / "consolidated.safetensors")
    assert known_by(folder) == before


@pytest.mark.parametrize("name", ["../weights.safetensors", "/tmp/weights.safetensors"])
def test_weights_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    index(folder, name)
    save(folder.parent / "weights.safetensors")
    save(folder / "other.safetensors")
    with pytest.raises(BadInput, match=r"^model\.path=.*weight_map: expected the name of a file inside"):
        known_by(folder)


def test_a_pickle_beside_any_safetensors_is_refused(folder: Path) -> None:
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    save(folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"its weights must be safetensors, got pytorch_model\.bin, a pickle"):
        known_by(folder)


def test_an_adapter_beside_a_model_is_refused(folder: Path) -> None:
    save(folder / "model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"^model\.path=.*: an adapter .* is next to the model"):
        known_by(folder)


@pytest.mark.parametrize("key", ["model.path", "ct.source", "sft.source"])
def test_a_tokenizer_that_adds_special_tokens_makes_new_keys(folder: Path, key: str) -> None:
    """What is trained and scored with such a tokenizer has changed; with others, keys stay."""
    save(folder / "model.safetensors")

    def planned() -> dict[str, str]:
        overrides = ("experiment=test", "model=folder", f"model.path={SHIPPED}", f"{key}={folder}")
        config = sweep.expand(overrides, multirun=False).configs[0]
        cell = plan_cell(config, Inputs("model", "ct", "sft", special_tokens=inputs.inputs(config).special_tokens))
        return {name: stage.key for name, stage in cell.evals.items()}

    before = planned()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = tokenizer["added_tokens"][0]
    template = [{"SpecialToken": {"id": end["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"]["single"] = template
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    after = planned()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == (set(before) if key == "model.path" else changed) and changed
    assert key == "model.path" or "base" not in changed
