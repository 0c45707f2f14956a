"""What of a model folder is given away: its files and no others, without paths of this machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

import merge
from common.errors import BadInput
from merge.output.sharing import local_path, share
from tests.merge.conftest import recipe
from tests.merge.test_adapters import lora


@pytest.fixture
def model(folders: dict[str, Path]) -> Path:
    return folders["ct"]


def text(shared: object, place: str) -> str:
    found = shared.files[place]  # type: ignore[attr-defined]
    return found if isinstance(found, str) else found.read_text(encoding="utf-8")


def test_a_model_is_shared_without_what_lies_beside_it(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ 'வணக்கம்' }}")
    (model / "LICENSE").write_text("of the base")
    (model / "checkpoint-7").mkdir()
    for name in (".env", "optimizer.pt", "notes.txt", "checkpoint-7/model.safetensors", "train.py"):
        (model / name).write_text("stays here")
    shared = share(model)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"} <= set(shared.files)
    assert set(shared.left_out) == {".env", "optimizer.pt", "notes.txt", "checkpoint-7/model.safetensors", "train.py"}
    assert all(isinstance(found, Path) for found in shared.files.values()), "nothing is rewritten without need"


def test_shards_and_the_code_of_a_model_are_shared(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shutil.copy(model / "model-00001-of-00002.safetensors", model / "model-00002-of-00002.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}}))
    (model / "own.py").write_text("")
    assert {*shards, "model.safetensors.index.json", "own.py"} <= set(share(model).files)
    (model / shards[1]).unlink()
    with pytest.raises(BadInput, match=r"^FOLDER: the weights are missing or incomplete, got "):
        share(model)


def test_the_folder_that_a_config_came_from_is_left_out(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/ߒߞߏ"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "me/base", "tokenizer_file": str(model)}))
    shared = share(model)
    assert json.loads(text(shared, "config.json")) == config
    assert json.loads(text(shared, "tokenizer_config.json")) == {"name_or_path": "me/base"}
    assert "/home/me" in (model / "config.json").read_text(), "the folder itself is not changed"


def test_the_recipe_of_a_merge_has_the_names_of_its_card(folders: dict[str, Path], tmp_path: Path) -> None:
    out = merge.write(recipe(folders, "ties"), tmp_path / "out")
    assert str(tmp_path) in (out / "merge.yml").read_text()
    shared = share(out)
    assert str(tmp_path) not in text(shared, "merge.yml") + text(shared, "README.md")
    saved, shown = yaml.safe_load(text(shared, "merge.yml")), text(shared, "README.md")
    names = [saved["base"], *(one["path"] for one in saved["models"].values())]
    assert len(set(names)) == 3 and all(f"`{name}`" in shown for name in names)
    assert {"audit.json", "audit.parquet", "README.md"} <= set(shared.files)


def test_results_of_other_merges_keep_their_names(folders: dict[str, Path], tmp_path: Path) -> None:
    from merge.chained import write_stages

    file = tmp_path / "chain.yml"
    one = {"method": "linear", "models": {name: {"path": str(folders[name])} for name in ("ct", "sft")}}
    two = {"method": "linear", "models": {"a": {"path": "half"}, "b": {"path": str(folders["base"])}}}
    file.write_text(yaml.safe_dump_all([{"name": "half", **one}, two]))
    out = write_stages(file, tmp_path / "out")
    first, last = yaml.safe_load_all(text(share(out), "merge.yml"))
    assert first["name"] == "half" and last["models"]["a"]["path"] == "half"
    assert last["models"]["b"]["path"] == "base" or last["models"]["b"]["path"].endswith("/base")
    assert str(tmp_path) not in text(share(out), "merge.yml")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("me/base", ("me/base", None)),
        ("/cache/hub/models--me--base/snapshots/" + "1" * 40, ("me/base", "1" * 40)),
    ],
)
def test_an_adapter_names_its_base_on_the_hub(base: str, expected: tuple[str, str | None], tmp_path: Path) -> None:
    from peft import PeftConfig

    folder = lora(tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    shared = share(folder)
    assert shared.adapter_of == expected[0] and "adapter_model.safetensors" in shared.files
    (tmp_path / "there").mkdir()
    shared.put(tmp_path / "there")
    read = PeftConfig.from_pretrained(str(tmp_path / "there"))
    assert (read.base_model_name_or_path, read.revision) == expected


def test_an_adapter_of_a_local_base_needs_its_id(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lora(tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    for base in (str(model), "models/base", None):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(BadInput, match=r"is no model of the Hub, got .* then pass --base OWNER/NAME\.$"):
            share(folder)
    assert share(folder, "me/base@v2").adapter_of == "me/base"
    with pytest.raises(BadInput, match=r"^--base: not a model of the Hub, got base\. Pass OWNER/NAME\.$"):
        share(folder, "base")
    with pytest.raises(BadInput, match=r"^--base: is for adapters, but "):
        share(model, "me/base")


def test_what_is_no_model_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^FOLDER: no such folder, got .*none\. "):
        share(tmp_path / "none")
    (tmp_path / "entry" / "model").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"^FOLDER: holds no model .* Pass .*entry/model\.$"):
        share(tmp_path / "entry")
    (tmp_path / "secret").write_text("a key")
    os.symlink(tmp_path / "secret", model / "vocab.txt")
    with pytest.raises(BadInput, match=r"vocab\.txt: .*a link to .*secret"):
        share(model)
    (model / "vocab.txt").unlink()
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"^FOLDER=.*: an adapter \(adapter_config\.json\) "):
        share(model)


def test_a_card_that_names_a_folder_of_this_machine_is_one_line(model: Path) -> None:
    (model / "README.md").write_text("---\ntags: [merge]\n---\n# මාදිලිය\n\nFrom /home/me/models/base.\n")
    with pytest.raises(BadInput, match=r"README\.md: line 6 names a path of this machine, got /home/me/models/base\."):
        share(model)
    assert share(model, card="# fine\n").files["README.md"] == "# fine\n"


@pytest.mark.parametrize(
    "line",
    [
        "From `/home/me/base`, by hand",
        "base: /scratch/project_7/models/base",
        "file:///mnt/data/x.txt",
        "see ~/models/base",
        r"C:\Users\me\base",
        "(/Volumes/disk/ꯃꯩꯇꯩ)",
        "base_model: ../base",
        "- ./models/base",
    ],
)
def test_paths_of_a_machine_are_seen(line: str) -> None:
    assert local_path(line)


@pytest.mark.parametrize(
    "line",
    [
        "https://huggingface.co/home/me/base and http://data.org/x/y",
        "[the data](https://example.org/tmp/x)",
        "accuracy 1/2, and/or 3/4; tokens/s",
        "base_model: me/base",
        "- read `tmp/base/model.safetensors`: " + "0" * 64,
        "[a page](/datasets/me/text)",
        "</div> <br/>",
        "a ratio of 5 / 7 / 9",
        "path: out/merged",
        "ta~/ba",
    ],
)
def test_what_is_no_path_of_a_machine_passes(line: str) -> None:
    assert local_path(line) is None
