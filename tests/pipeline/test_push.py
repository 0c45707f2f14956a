"""`slackmerge push`: checkpoints of folders and of the store to a hub that this machine plays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline import cli, model_cards
from pipeline.run.make import find_planned
from pipeline.stages.stage import Stage, in_order
from pipeline.store import Store
from tests.fake_hub import READER, FakeHub, Repository, serving
from tests.merge.test_adapters import lora
from tests.messages import assert_one_line, assert_wording
from tests.pipeline.toy_stage import toy_stage

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny-base"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(monkeypatch) as served:
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text("{{ 'བོད་ཡིག' }}", encoding="utf-8")
    return folder


def push(*words: str | Path) -> int:
    return cli.main(["push", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert push(*words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_folder_is_uploaded_as_it_is(model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(model, "me/tiny", "--private") == 0
    note, address = capsys.readouterr().out.splitlines()
    assert note == "note: not uploaded: 1 other file of the folder (log.jsonl)" and address.endswith("/me/tiny")
    here = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "log.jsonl"}
    assert hub.files("me/tiny") == here and hub.repositories["me/tiny"].private
    before = len(hub.messages)
    assert push(model, "me/tiny") == 0, "what is there already is no other content"
    assert len(hub.messages) == before, "and no commit is made of it"


def test_a_dry_run_asks_nothing(
    model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(model, "me/tiny", "--dry-run", "--private") == 0
    said = capsys.readouterr().out
    names = [path.name for path in model.iterdir() if path.name != "log.jsonl"]
    size = sum((model / name).stat().st_size for name in names)
    assert said.startswith(f"me/tiny (private): {len(names)} files, {size / 1e6:,.1f} MB; nothing is uploaded\n")
    for name in names:
        assert f" {(model / name).stat().st_size:,} bytes  {name}\n" in said
    assert not hub.asked


def test_other_content_is_left_alone(model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    held = hub.repositories["me/tiny"] = Repository(private=False)
    held.branches["main"] |= {"config.json": b"{}", "notes.md": b"theirs"}
    said = refusal(capsys, model, "me/tiny")
    assert said.startswith("me/tiny: holds other files already, got config.json, notes.md. Pass another name, ")
    assert "is public already, but --private was passed" in refusal(capsys, model, "me/tiny", "--private")
    assert not hub.changes()

    assert push(model, "me/tiny", "--revision", "v2") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/me/tiny/tree/v2")
    assert "notes.md" not in hub.files("me/tiny", "v2") and "model.safetensors" in hub.files("me/tiny", "v2")
    assert hub.files("me/tiny") == {"config.json": b"{}", "notes.md": b"theirs"}

    assert push(model, "me/tiny", "--replace") == 0
    assert hub.files("me/tiny") == hub.files("me/tiny", "v2")
    assert ".gitattributes" in held.branches["main"]


def test_an_upload_that_was_cut_off_is_repeated(model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.broken = "/commit/"
    assert "me/tiny: the Hub answered 507 (" in refusal(capsys, model, "me/tiny")
    assert not hub.files("me/tiny")
    hub.broken = None
    assert push(model, "me/tiny") == 0 and "model.safetensors" in hub.files("me/tiny")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([], "push: "),
        (["{model}"], "push: "),
        (["{model}", "tiny"], "OWNER/NAME: "),
        (["{model}", "me/tiny@v2"], "OWNER/NAME: "),
        (["{model}", "me/tiny", "--revision", "a b"], "--revision: "),
        (["{model}", "me/tiny", "store=x"], "push: "),
        (["{model}/none", "me/tiny"], "FOLDER: "),
        (["{model}", "them/tiny"], "them/tiny: "),
        (["cct", "nya", "me/tiny"], "KIND: "),
        (["eval", "nya", "me/tiny"], "KIND: "),
        (["merge", "nya", "me/tiny"], "KIND: "),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    words: list[str], key: str, model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, *(word.replace("{model}", str(model)) for word in words))
    assert_one_line(error, key)
    assert_wording(f"push: {' '.join(words)}", error, MODEL=model)
    assert not hub.changes()


def test_tokens_and_networks_that_fail_are_one_line(
    model: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    hub.refuses_creation = True
    assert "the Hub answered 403 (" in refusal(capsys, model, "team/tiny")
    for token, says in ((READER, "this token may only read"), ("hf_wrong", "The token is not valid.")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert says in refusal(capsys, model, "me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached (ConnectError). Go online" in refusal(capsys, model, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token of the Hub here. Log in with `hf auth login`, or set HF_TOKEN." in refusal(
        capsys, model, "me/tiny"
    )


def test_an_adapter_is_pushed_with_its_base(tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lora(tmp_path / "lora")
    assert push(folder, "me/lora", "--base", "me/base") == 0
    pushed = hub.files("me/lora")
    assert set(pushed) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    head = ModelCard(pushed["README.md"].decode()).data
    assert (head.base_model, head.library_name) == ("me/base", "peft")
    assert "an adapter; its base is me/base" in capsys.readouterr().out


def entry(stage: Stage, store: Store) -> Path:
    """A published checkpoint of a stage: the tiny model."""
    out = store.work(stage) / "out"
    shutil.copytree(TINY, out / "model", ignore=shutil.ignore_patterns("README.md", "log.jsonl"))
    about = {"finished": "now", "seconds": 1.0, "amount": 1.0, "versions": {"torch": "2.13.0"}}
    return store.publish(stage, out, about).path


def test_a_checkpoint_of_the_store_is_pushed_with_a_card(
    tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["experiment=test", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]
    _, plan, stage = find_planned("ct", "nya-4096-s0", settings, multirun=False)
    said = refusal(capsys, "ct", "nya-4096-s0", "me/nya", *settings)
    assert said.startswith("ct nya-4096-s0: not computed yet in store=") and "slackmerge make ct nya-4096-s0" in said
    folder = entry(stage, plan.store)
    assert push("ct", "nya-4096-s0", "me/nya", *settings) == 0
    pushed = hub.files("me/nya")
    assert pushed["model.safetensors"] == (TINY / "model.safetensors").read_bytes()
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.to_dict() == {"language": ["nya"], "library_name": "transformers", "tags": ["slackmerge", "ct"]}
    assert "# nya\n" in card.text and str(tmp_path) not in card.text
    assert "slackmerge make ct nya-4096-s0 experiment=test\n" in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert [one["stage"] for one in recipe] == [str(made) for made in in_order([stage])]
    assert recipe[-1]["settings"] == stage.key_content
    (folder / "model" / "config.json").write_text("{}")
    assert "config.json has 2 bytes, not " in refusal(capsys, "ct", "nya-4096-s0", "me/nya", *settings)


def test_a_card_names_bases_of_the_hub_and_no_folders() -> None:
    given = toy_stage("model", "llama", {"checksum": "1"}, {}, {"path": "hub:meta/llama@" + "1" * 40})
    local = toy_stage("model", "mine", {"checksum": "2"}, {}, {"path": "/home/me/mine"})
    corpus = toy_stage("corpus", "tam", {"language": "tam_Taml", "text": "தமிழ்"})
    for model, bases in ((given, ["meta/llama"]), (local, None)):
        parents = {"model": model, "blocks": corpus}
        stage = toy_stage("ct", "tam-32k-s0", {"tokens": 32_000, "lora": {"rank": 64}}, parents)
        words = ["language=tam", "corpus.path='/home/me/*.txt'", "model.path=hub:meta/llama", "store=s", "+compute.x=1"]
        text = model_cards.render_checkpoint("tamil", in_order([stage]), {}, words)
        head = ModelCard(text).data.to_dict()
        assert head.get("base_model") == bases and head["language"] == ["tam"]
        assert "/home/me" not in text and "தமிழ்" in text
        assert "slackmerge make ct tam-32k-s0 language=tam corpus.path=PATH model.path=hub:meta/llama\n" in text
        assert "on 32,000 tokens. It was trained with LoRA; the weights include the adapter." in text
