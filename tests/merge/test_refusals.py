"""What cannot be merged is refused before anything is written, in one line that names the file or tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.cli import main
from tests.merge.conftest import config, recipe, save, tokenizer
from tests.merge.test_adapters import lora


def rewrite(folder: Path, **tensors: torch.Tensor) -> None:
    """Replace tensors of a folder, dots written as __; None removes one."""
    held = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        held[name.replace("__", ".")] = tensor
    save(folder, {name: tensor for name, tensor in held.items() if tensor is not None})


def refusal(folders: dict[str, Path]) -> str:
    with pytest.raises(merge.BadInput) as refused:
        merge.check(recipe(folders, "ties"))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_good_folders_pass(folders: dict[str, Path]) -> None:
    merge.check(recipe(folders, "ties"))


def test_shapes(folders: dict[str, Path]) -> None:
    rewrite(folders["sft"], model__norm__weight=torch.zeros(7))
    assert "tensor model.norm.weight is [7], but in" in refusal(folders) and str(folders["sft"]) in refusal(folders)


def test_vocabulary_sizes(folders: dict[str, Path]) -> None:
    rewrite(folders["sft"], model__embed_tokens__weight=torch.zeros(81, 32))
    assert "the vocabularies differ" in refusal(folders)


def test_tokenizers(folders: dict[str, Path]) -> None:
    other = tokenizer()
    other["model"]["vocab"] = {f"w{i}": (i + 1) % 80 for i in range(80)}
    (folders["sft"] / "tokenizer.json").write_text(json.dumps(other))
    assert "another vocabulary" in refusal(folders)
    merge.check(recipe(folders, "ties", tokenizer="optional"))
    (folders["base"] / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(folders)


def test_architectures(folders: dict[str, Path]) -> None:
    (folders["sft"] / "config.json").write_text(json.dumps(config() | {"model_type": "mistral"}))
    assert "model_type is mistral" in refusal(folders)


def test_missing_tensor(folders: dict[str, Path]) -> None:
    rewrite(folders["sft"], model__norm__weight=None)  # type: ignore[arg-type]
    assert "tensor model.norm.weight is missing" in refusal(folders)


def test_missing_folder_and_files(folders: dict[str, Path]) -> None:
    (folders["sft"] / "model.safetensors").unlink()
    assert ": no weights" in refusal(folders)
    (folders["ct"] / "config.json").unlink()
    assert "config.json: no such file" in refusal(folders)
    folders["base"] = Path("nowhere")
    assert "nowhere: no such folder" in refusal(folders)


@pytest.mark.parametrize("cut", [4, 100, -100])
def test_damaged_file(folders: dict[str, Path], cut: int) -> None:
    file = folders["sft"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert str(file) in refusal(folders) and "damaged" in refusal(folders)


def test_shard_missing_from_index(folders: dict[str, Path]) -> None:
    (folders["sft"] / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folders["sft"] / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors: " in refusal(folders)


@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic", "dare_ties"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("where", "audit", "compute_dtype"),
    [("sft", True, "float32"), ("sft", False, "bfloat16"), ("base", False, "float32")],
)
def test_nan_names_the_tensor_before_anything_is_written(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    bad: float,
    where: str,
    audit: bool,
    compute_dtype: str,
) -> None:
    if method == "linear" and where == "base":
        pytest.skip("has no base")
    monkeypatch.delattr("merge.output.writer.FileSink.write")
    norm = load_file(folders[where] / "model.safetensors")["model.norm.weight"]
    norm[3] = bad
    rewrite(folders[where], model__norm__weight=norm)
    models = {"ct": {}, "sft": {} if method in ("linear", "task_arithmetic") else {"density": 0.5}}
    one = recipe(folders, method, models, compute_dtype=compute_dtype)
    with pytest.raises(
        merge.BadInput, match=f"{where}/model.safetensors: tensor model.norm.weight holds NaN or infinite"
    ):
        merge.write(one, tmp_path / "out", audit=audit)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_buffers_that_differ(folders: dict[str, Path]) -> None:
    for name in ("base", "ct", "sft"):
        rewrite(folders[name], model__steps=torch.tensor([1 if name == "sft" else 0]))
    with pytest.raises(merge.BadInput, match="buffer model.steps differs"):
        merge.audit(recipe(folders, "ties"))


def test_command_line(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "merge.yml"
    recipe(folders, "ties_sv", {"ct": {"density": 0.5}, "sft": {}}, slack=1, protect="sft").save(path)
    assert main([str(path), "--plan"]) == 0
    assert "read " in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "out"), "--grid", "slack=0,1", "ct.density=0.2,0.5"]) == 0
    written = capsys.readouterr().out.split()
    assert len(written) == 4 and all(Path(folder, "config.json").is_file() for folder in written)
    assert main([str(path), "--audit-only"]) == 0
    assert set(json.loads(capsys.readouterr().out)["models"]) == {"ct", "sft"}
    for wrong, words in (
        (["--grid", "slak=1"], "no key slak."),
        (["--memory", "lots"], "--memory: "),
        ([], "OUT_DIR: missing"),
    ):
        assert main([str(path), *wrong]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_an_adapters_folder_in_place_of_a_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    folders["ct"] = lora(tmp_path / "lora")
    with pytest.raises(merge.BadInput, match=r"lora: .* LoRA adapter"):
        merge.check(recipe(folders, "ties"))
