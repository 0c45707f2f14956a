"""What goes along with the weights: tokenizers of every kind, named templates, a model's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import merge
from merge.checkpoints.tokenizer import read_vocabulary
from merge.output.out_folder import OutFolder
from tests.merge import vocabularies
from tests.merge.conftest import recipe

TEMPLATES = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}
OF_TOKENIZERS = (
    "tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm",
    "target.spm", "tekken.json", "qwen.tiktoken", "vocab.txt", "vocab.json", "merges.txt", "vocab-src.json",
    "bpe.codes", "added_tokens.json", "prophetnet.tokenizer", "normalizer.json", "audio_tokenizer_config.json",
)  # fmt: skip
CONFIGURATION = """
from transformers import LlamaConfig
from .parts.sizes import SIZE

class MineConfig(LlamaConfig):
    model_type = "mine"
    size = SIZE
"""


@pytest.mark.parametrize("name", OF_TOKENIZERS)
def test_files_of_every_tokenizer_are_copied(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["base"] / name).write_text("{}")
    assert (merge.write(recipe(folders, "ties"), tmp_path / "out") / name).read_text() == "{}"


def test_nothing_else_is_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    """Code that no config names, states of a training, and what else lies there."""
    expected = {file.name for file in merge.write(recipe(folders, "ties"), tmp_path / "plain").iterdir()}
    for name in ("train.py", "optimizer.pt", "training_args.bin", "trainer_state.json", ".env", "notes.txt"):
        (folders["base"] / name).write_text("{}")
    assert {file.name for file in merge.write(recipe(folders, "ties"), tmp_path / "out").iterdir()} == expected


def named_templates(folder: Path, how: str) -> None:
    if how == "files":
        (folder / "chat_template.jinja").write_text(TEMPLATES["default"])
        (folder / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(TEMPLATES[name])
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()] if how == "listed" else {}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | ({"chat_template": listed} if listed else {})))


@pytest.mark.parametrize("chosen", [None, "{{ 4 }}"])
@pytest.mark.parametrize("how", ["files", "listed"])
def test_named_templates_stay(how: str, chosen: str | None, folders: dict[str, Path], tmp_path: Path) -> None:
    """As transformers reads them; one that a recipe gives is the default one."""
    from transformers import AutoTokenizer

    named_templates(folders["base"], how)
    (tmp_path / "filled").mkdir()  # whose files are renamed one by one, and folders with them
    for out in (tmp_path / "out", tmp_path / "filled"):
        merge.write(recipe(folders, "ties", chat_template=chosen), out)
        found = AutoTokenizer.from_pretrained(out).chat_template
        assert found == TEMPLATES | ({"default": chosen} if chosen else {})


def test_a_folder_that_was_published_by_halves_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    folder = OutFolder(target)
    aside = folder.open()
    (aside / "additional_chat_templates").mkdir()
    (aside / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    (aside / "config.json").mkdir()  # a file that cannot be renamed
    (target / "config.json").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        folder.publish()
    (aside / "config.json").rmdir()
    (aside / "config.json").write_text("{}")
    folder.discard()
    assert [file.name for file in target.iterdir()] == ["config.json"]


def test_a_models_own_code_goes_along(folders: dict[str, Path], tmp_path: Path) -> None:
    """And what it imports of its folder, so that the merge loads as its parents do."""
    from transformers import AutoConfig

    config = json.loads((folders["base"] / "config.json").read_text()) | {"model_type": "mine"}
    maps = {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "owner/elsewhere--modeling_mine.Mine"}
    for folder in folders.values():
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": maps}))
        (folder / "configuration_mine.py").write_text(CONFIGURATION)
        (folder / "parts").mkdir()
        (folder / "parts" / "sizes.py").write_text("SIZE = 7\n")
        (folder / "unused.py").write_text("")
    out = merge.write(recipe(folders, "ties"), tmp_path / "out")
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*.py")) == [
        "configuration_mine.py",
        "parts/sizes.py",
    ]
    assert (out / "configuration_mine.py").read_text() == CONFIGURATION
    (folders["base"] / "parts" / "sizes.py").unlink()
    (folders["base"] / "parts" / "sizes.py").symlink_to(tmp_path / "secret.py")
    (tmp_path / "secret.py").write_text("")
    with pytest.raises(merge.BadInput, match=r"a link to .*secret.py"):
        merge.write(recipe(folders, "ties"), tmp_path / "again")
    (tmp_path / "flat").mkdir()
    for file in ("config.json", "configuration_mine.py"):
        (tmp_path / "flat" / file).write_text(
            (out / file).read_text().replace("from .parts.sizes import SIZE", "SIZE = 7")
        )
    loaded = AutoConfig.from_pretrained(tmp_path / "flat", trust_remote_code=True)
    assert loaded.size == 7


def test_code_of_a_tokenizer_comes_from_its_model(tmp_path: Path) -> None:
    folders = vocabularies.make(tmp_path)
    for name in ("base", "sft"):
        file = folders[name] / "tokenizer_config.json"
        file.write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}))
        (folders[name] / "tokenization_mine.py").write_text(f"# {name}")
    out = merge.write(recipe(folders, "ties", tokenizer="sft"), tmp_path / "out")
    assert (out / "tokenization_mine.py").read_text() == "# sft"


def test_a_union_leaves_no_older_form_of_the_vocabulary(tmp_path: Path) -> None:
    folders = vocabularies.make(tmp_path)
    for name in ("tokenizer.model", "spiece.model", "tekken.json", "vocab.txt", "qwen.tiktoken"):
        (folders["base"] / name).write_text("{}")
    out = merge.write(recipe(folders, "ties", tokenizer="union"), tmp_path / "out")
    left = {file.name for file in out.iterdir()} & set(OF_TOKENIZERS)
    assert not left and (out / "tokenizer.json").is_file()


TEKKEN = {"config": {"default_vocab_size": 5, "default_num_special_tokens": 2}}


@pytest.mark.parametrize(
    ("name", "mine", "other"),
    [
        ("vocab.txt", "[PAD]\na\nb\n", "[PAD]\nb\na\n"),
        ("mine.tiktoken", "YQ== 0\nYg== 1\n", "Yg== 0\nYQ== 1\n"),
        *(
            (
                name,
                json.dumps(TEKKEN | {"vocab": [{"token_bytes": token} for token in ("YQ==", "Yg==", "Yw==", "ZA==")]}),
                json.dumps(TEKKEN | {"vocab": [{"token_bytes": token} for token in ("Yg==", "YQ==", "Yw==", "ZA==")]}),
            )
            for name in ("tekken.json", "tekken_240911.json")
        ),
    ],
)
def test_vocabularies_in_other_forms_are_compared(
    name: str, mine: str, other: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for folder in folders.values():
        (folder / "tokenizer.json").unlink()
        (folder / name).write_text(mine)
    merge.check(recipe(folders, "ties"))
    (folders["sft"] / name).write_text(other)
    with pytest.raises(merge.BadInput, match="sft: its tokenizer has another vocabulary than"):
        merge.check(recipe(folders, "ties"))
    if name.startswith("tekken"):
        found = read_vocabulary(folders["base"])
        assert found is not None and found.ids == {"YQ==": 2, "Yg==": 3, "Yw==": 4}  # ZA== is beyond the size


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "spm.model"])
def test_models_of_sentencepiece_by_other_names(name: str, folders: dict[str, Path]) -> None:
    from transformers.utils import sentencepiece_model_pb2_new

    for folder in folders.values():
        (folder / "tokenizer.json").unlink()
        pieces = ("<unk>", "a", "b") if folder.name != "sft" else ("<unk>", "b", "a")
        made: Any = sentencepiece_model_pb2_new
        model = made.ModelProto(pieces=[{"piece": piece} for piece in pieces])
        (folder / name).write_bytes(model.SerializeToString())
    with pytest.raises(merge.BadInput, match="id 1 is 'b', not 'a'"):
        merge.check(recipe(folders, "ties"))
