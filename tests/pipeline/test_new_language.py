"""A new language is one YAML of at most twelve lines, and every language can have the text of another corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import run_plan, sweep
from pipeline.config import Config, HubCorpus
from pipeline.inputs import inputs
from pipeline.journal import Journal
from pipeline.run.cells import run_executor
from tests.messages import assert_one_line, assert_wording

YAML = """\
# @package _global_
defaults:
  - override /corpus: files
language:
  code: epo
  iso639_1: null
  name: Esperanto
  max_tokens: null
  tasks: []
corpus:
  path: examples/mine/text/*.txt
"""


def test_a_new_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(YAML.splitlines()) <= 12
    shutil.copytree(sweep.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "language" / "epo.yaml").write_text(YAML)
    monkeypatch.setattr(sweep, "CONF", tmp_path / "conf")
    words = ["experiment=test", "language=epo", f"store={tmp_path / 'store'}", f"outputs={tmp_path}", "tracking=none"]
    plan = run_plan.plan(sweep.expand(words, multirun=False))
    assert [cell.language for cell in plan.cells] == ["epo"]
    corpus = next(stage for stage in plan.stages if stage.kind == "corpus")
    folder = run_executor(plan, Journal(tmp_path / "runs" / "now" / "journal.jsonl")).materialize(corpus)
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    assert counts["languages"]["epo"]["train"]["words"] > 1000


LANGUAGES = sorted(path.stem for path in (sweep.CONF / "language").glob("*.yaml"))
TEXT = "corpus.path=examples/mine/text/*.txt"


def config_of(*words: str) -> Config:
    return sweep.expand(["experiment=test", *words], multirun=False).configs[0]


def test_a_language_can_have_another_corpus(tmp_path: Path) -> None:
    """What its file sets for its own corpus does not count."""
    words = ["experiment=test", "language=" + ",".join(LANGUAGES), "corpus=files", TEXT, "ct.tokens=2048"]
    found = sweep.expand(words, multirun=True).configs
    assert len(found) == len(LANGUAGES) and all(config.corpus == found[0].corpus for config in found)
    hub = config_of("language=nya", "corpus=hub", f"corpus.text.dataset={tmp_path}", "corpus.text_bytes=2MB").corpus
    assert isinstance(hub, HubCorpus) and (hub.text.folder, hub.text_bytes) == (str(tmp_path), 2_000_000)


def test_text_of_another_language_is_rejected() -> None:
    for corpus in ("cipher", "bible"):
        with pytest.raises(BadInput) as error:
            inputs(config_of("language=tam", f"corpus={corpus}"))
        assert_one_line(error.value, "language.code=tam: ")
        assert_wording(f"corpus: {corpus} in Tamil", error.value)


def test_a_corpus_replaces_that_of_files_of_the_user(tmp_path: Path) -> None:
    """Of a language with a path, and of an experiment that chooses both."""
    for name, text in {
        "language/epo": YAML,
        "experiment/own": "# @package _global_\n"
        "defaults: [test, {override /language: tam}, {override /corpus: files}]\n"
        "corpus: {path: a.txt}\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    found = f"hydra.searchpath=[file://{tmp_path}]"
    assert config_of(found, "language=epo", "language.code=nya", "corpus=bible").corpus == config_of().corpus
    own = sweep.expand([found, "experiment=own"], multirun=False).configs[0]
    assert (own.corpus.source, own.language.code) == ("files", "tam")


@pytest.mark.parametrize(
    ("case", "words", "key"),
    [
        (
            "key of another corpus",
            ["language=tam", "corpus=files", "corpus.text_bytes=3MB", TEXT],
            "corpus.text_bytes: ",
        ),
        ("path without corpus", ["language=tam", TEXT], "corpus.path: "),
        ("data set without corpus", ["language=nya", "corpus.text.dataset=a"], "corpus.text.dataset: "),
        ("path of the Bible", ["language=nya", TEXT], "corpus.path: "),
        ("key of no corpus", ["language=tam", "corpus=files", "corpus.txt=a"], "corpus.txt: "),
    ],
)
def test_a_key_of_another_corpus_names_it(case: str, words: list[str], key: str) -> None:
    with pytest.raises(BadInput) as error:
        config_of(*words)
    assert_one_line(error.value, key)
    assert_wording(f"corpus: {case}", error.value)
