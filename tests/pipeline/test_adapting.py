"""The choice of the adapted model, and its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import hub
from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from pipeline import model_cards
from pipeline.execute import Job
from pipeline.model_cards import Facts, Origin
from pipeline.run import adapted_model
from pipeline.stages import adapting
from pipeline.stages.adapting import CHOOSE, ChooseSettings, add_stop, use_cache
from pipeline.stages.stage import Stage
from tests.pipeline.tiny_pair import DOCUMENT_END, make_pair

SCORES = [("sft", 0.3, 0.50), ("a", 0.9, 0.47), ("b", 0.5, 0.49), ("c", 0.4, 0.50), ("d", 0.5, 0.48)]


def record(task: str, metric: str, language: str, value: float, **more: Any) -> dict[str, Any]:
    row = {"task": task, "family": "mean", "language": language, "metric": metric, "primary": True, "value": value}
    return row | more


def job(tmp_path: Path, scores: list[tuple[str, float, float]], **asked: Any) -> Job:
    """A stage `choose` over candidates with these (gain, keep): one method each."""
    folders = {}
    for name, gain, keep in scores:
        folders[name] = tmp_path / name
        folders[name].mkdir()
        rows = [record("mean_tam", "acc", "tam", gain), record("mean_en", "acc", "en", keep)]
        write_jsonl(folders[name] / "scores.jsonl", rows)
    candidates = [{"candidate": name, "method": f"by_{name}", "settings": {"t": gain}} for name, gain, _ in scores[1:]]
    settings = ChooseSettings(
        gain="acc", keep="acc_en", tolerance=0.02, language="tam", candidates=tuple(candidates), **asked
    )
    out = tmp_path / "out"
    out.mkdir()
    return Job(Stage(CHOOSE, "toy", settings), out, tmp_path, folders)


def chosen(made: Job) -> dict[str, Any]:
    adapting.run_choose(made)
    found: dict[str, Any] = yaml.safe_load((made.out / "choice.yml").read_text())
    return found


def test_of_those_that_keep_the_one_that_gains_most_wins(tmp_path: Path) -> None:
    """b and d gain the same, and d loses exactly the tolerance; a gains most and loses more."""
    made = job(tmp_path, SCORES)
    choice = chosen(made)
    assert choice == {
        "candidate": "b", "method": "by_b", "settings": {"t": 0.5}, "gain": "acc", "keep": "acc_en", "tolerance": 0.02
    }  # fmt: skip
    rows = read_jsonl(made.out / "candidates.jsonl")
    assert [row["candidate"] for row in rows] == ["sft", "a", "b", "c", "d"]
    assert [row["kept"] for row in rows] == [True, False, True, True, True]
    assert rows[1] == {
        "candidate": "a", "method": "by_a", "settings": {"t": 0.9}, "gain": 0.9, "keep": 0.47, "kept": False
    }  # fmt: skip
    assert made.note == ": by_b, t 0.5"


def test_the_chat_model_wins_where_all_others_lose_too_much(tmp_path: Path) -> None:
    made = job(tmp_path, [SCORES[0], *[(name, gain, 0.45) for name, gain, _ in SCORES[1:]]])
    assert chosen(made)["candidate"] == "sft" and made.note == ": the chat model as it is"


def test_a_method_that_is_asked_for_is_written_all_the_same(tmp_path: Path) -> None:
    choice = chosen(job(tmp_path, SCORES, write="by_a"))
    assert (choice["candidate"], choice["write"]) == ("a", "by_a")


def test_less_is_better_for_bits(tmp_path: Path) -> None:
    rows = [{"gain": 2.0, "keep": 1.0}, {"gain": 1.5, "keep": 1.03}, {"gain": 1.8, "keep": 1.01}]
    marked = adapting.marked(rows, 0.02, -1)
    assert [row["kept"] for row in marked] == [True, False, True]
    assert adapting.winner([{**row, "method": "m"} for row in marked], "best", -1, -1)["gain"] == 1.8


def test_measures_are_read_from_scores() -> None:
    rows = [
        record("mean_tam", "acc", "tam", 0.4, chat=False), record("mean_tam@chat", "acc", "tam", 0.6, chat=True),
        record("bits_per_byte_en", "bits_per_byte", "en", 1.2, family="text"),
        record("belebele_tam", "acc", "tam", 0.7, family="belebele_tam", chat=True),
        record("xquad_tam", "acc", "tam", 0.5, family="xquad_tam", chat=True),
        record("next_tam", "acc", "tam", 0.1, family="next", chat=True),
    ]  # fmt: skip
    assert adapting.value(rows, "acc", "tam") == 0.6  # scored both ways: by its template, as it is used
    assert adapting.value(rows, "tasks", "tam") == pytest.approx(0.6)
    assert adapting.value(rows, "xquad_tam", "tam") == 0.5
    assert adapting.sign(rows, "bits_per_byte_en", "tam") == -1 and adapting.sign(rows, "acc", "tam") == 1
    with pytest.raises(BadInput, match=r"nothing was scored by flores\. Name one of .*xquad_tam"):
        adapting.value(rows, "flores", "tam")


def test_tasks_of_two_scales_have_no_mean() -> None:
    shares = [record(task, "acc", "tam", 0.5, family=task) for task in ("belebele", "xcopa")]
    hundreds = record("flores", "chrf", "tam", 40.0, family="flores")
    assert adapting.value(shares, "tasks", "tam") == 0.5
    assert adapting.value([hundreds], "tasks", "tam") == 40.0
    with pytest.raises(BadInput, match=r"adapt\.gain=auto: .*xcopa \(acc\) and flores \(chrf\)"):
        adapting.value([*shares, hundreds], "tasks", "tam")


def test_a_missing_stop_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    """Gemma's way: the turn's end is no eos. Its other generation settings, also unknown ones, are as they were."""
    _, chat = make_pair(tmp_path)
    file = chat / "generation_config.json"
    stated = {"eos_token_id": 7, "repetition_penalty": 1.3, "of_others": [1]}
    file.write_text(json.dumps(stated))
    assert add_stop(chat) == "<|im_end|>"
    added = json.loads(file.read_text())
    vocabulary = json.loads((chat / "tokenizer.json").read_text())["added_tokens"]
    [turn_end] = [token["id"] for token in vocabulary if token["content"] == "<|im_end|>"]
    assert added == {**stated, "eos_token_id": [7, turn_end]}
    assert add_stop(chat) is None and json.loads(file.read_text()) == added
    file.unlink()
    assert add_stop(chat) is None  # its config.json ends answers there
    assert DOCUMENT_END != "<|im_end|>"


def test_generations_use_their_cache(tmp_path: Path) -> None:
    _, chat = make_pair(tmp_path)
    for name in ("config.json", "generation_config.json"):
        stated = json.loads((chat / name).read_text())
        (chat / name).write_text(json.dumps({**stated, "use_cache": False}))
    use_cache(chat)
    assert all(json.loads((chat / name).read_text())["use_cache"] for name in ("config.json", "generation_config.json"))


def facts(base: str | None = "apache-2.0", chat: str | None = "apache-2.0", **more: Any) -> Facts:
    choice = {"candidate": "ties-try-1", "method": "ties", "settings": {"lambda": 0.75}}
    choice |= {"gain": "acc", "keep": "acc_en", "tolerance": 0.02}
    pair = Origin("o/base", "o/base", base), Origin("o/chat", "o/chat", chat)
    said = ("ties, lambda 0.75", 29, "bfloat16", ())
    return Facts("chat, adapted to Tamil", "tam", "Tamil", *pair, choice, *said, **more)


def test_the_card_names_both_models_and_their_licence() -> None:
    card = model_cards.render_adapted(facts(stop="<|im_end|>"), "# x\n\n## How to make it again\n\nrecipe\n")
    assert hub.card_head(card) == {
        "base_model": ["o/base", "o/chat"],
        "base_model_relation": "merge",
        "language": ["tam"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "slackmerge", "conversational"],
    }
    assert "`<|im_end|>` was added to the tokens that end an answer" in card
    assert "Tokenizer, chat template and generation settings are those of `o/chat`." in card
    assert card.endswith("## How to make it again\n\nrecipe\n") and "# x" not in card


def test_the_card_names_new_tokens() -> None:
    card = model_cards.render_adapted(facts(new_tokens=40), "")
    assert "The tokenizer is that of `o/chat` with 40 more tokens for Tamil. Chat template and generation" in card


@pytest.mark.parametrize(
    ("base", "chat", "head"),
    [
        ("apache-2.0", "llama3.2", {"license": "other", "license_name": "apache-2.0-and-llama3.2"}),
        ("apache-2.0", None, {}),
    ],
)
def test_licences_that_differ_or_are_not_stated(base: str, chat: str | None, head: dict[str, str]) -> None:
    found = model_cards.head(facts(base, chat))
    assert {key: value for key, value in found.items() if key.startswith("license")} == head
    text = model_cards.render_adapted(facts(base, chat), "")
    assert f"`o/base`: apache-2.0, `o/chat`: {chat or 'states none'}." in text


def test_scores_are_put_into_the_card_once() -> None:
    card = model_cards.render_adapted(facts(), "## How to make it again\n")
    once = model_cards.with_scores(card, "| a |")
    assert model_cards.with_scores(once, "| b |") == once.replace("| a |", "| b |")
    assert once.index("| a |") < once.index("## Rights") < once.index("## How to make it again")


def entry(folder: Path, weights: str | None) -> Path:
    """An entry `adapted` with a model of these weights, or of the chat model as it is."""
    folder.mkdir()
    if weights is not None:
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_text(weights)
        (folder / "model" / "merge.yml").write_text("method: ties")
        (folder / "model" / "README.md").write_text(model_cards.render_adapted(facts(), ""))
    return folder


def test_the_model_beside_the_report_is_that_of_the_choice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first, second = entry(tmp_path / "1", "first"), entry(tmp_path / "2", "second")
    (first / "model" / "chat_template.jinja").write_text("{{ x }}")
    target = adapted_model.publish(first, out, "| scores |")
    assert target == out / "model" and "| scores |" in (target / "README.md").read_text()
    stamp = (target / "model.safetensors").stat().st_ino
    adapted_model.publish(first, out, "| others |")
    assert (target / "model.safetensors").stat().st_ino == stamp  # not copied again
    adapted_model.publish(second, out, "")
    assert (target / "model.safetensors").read_text() == "second" and not (target / "chat_template.jinja").exists()
    assert adapted_model.publish(entry(tmp_path / "3", None), out, "") is None
    assert list(out.iterdir()) == []


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "mine.txt").write_text("notes")
    with pytest.raises(BadInput, match=r"out/model: is not a model that was written here\."):
        adapted_model.publish(entry(tmp_path / "1", "w"), tmp_path / "out", "")
    assert (tmp_path / "out" / "model" / "mine.txt").read_text() == "notes"
