"""What `make check` finds: every failure in a line of its own, and what the tokenizer makes of a script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline import check, sweep
from pipeline.check import Finding, data
from pipeline.check.data import measure_fertility
from pipeline.check.resources import check_hypotheses
from pipeline.config import Config
from pipeline.run.run import check_configs
from pipeline.run_plan import RunPlan, without_stages

ROOT = Path(__file__).parents[2]


def config(*overrides: str) -> Config:
    return sweep.expand(("experiment=tiny", *overrides), multirun=False).configs[0]


def found(tmp_path: Path, *overrides: str) -> list[Finding]:
    return check_configs([config(f"store={tmp_path}", *overrides)])[1]


def test_the_default_experiment_has_nothing_wrong(tmp_path: Path) -> None:
    assert [finding for finding in found(tmp_path) if finding.fails] == []


def test_all_failures_are_said_not_only_the_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"words": "no text here"}\n')
    source = [f"corpus.{part}.dataset={tmp_path}/data" for part in ("text", "english")]
    said = found(
        tmp_path,
        "corpus=hub",
        *source,
        "corpus.english.revision=null",
        f"ct.source={tmp_path}/none",
        "eval.tasks=[no_such_task]",
        f"eval.include_path={tasks(tmp_path)}",
    )
    lines = [finding.text for finding in said if finding.fails]
    for start in (
        f"ct.source={tmp_path}/none: no such folder",
        "corpus.text: ",
        "corpus.english: ",
        "tasks: 'no_such_task' is unknown",
    ):
        assert any(line.startswith(start) for line in lines), (start, lines)
    assert all("\n" not in line for line in lines)


def tasks(tmp_path: Path) -> Path:
    """A folder of tasks, so that the index of all that lm-eval ships is asked for one name only."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: mine\n")
    return folder


def test_too_little_text_for_the_largest_budget(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"Madzi a mtsinje wa {number} amayenda." for number in range(200)))
    text = ["language=mine", "language.code=nya", f"corpus.path={tmp_path}/text.txt"]
    said = [finding.text for finding in found(tmp_path, *text, "ct.tokens=450k") if finding.fails]
    assert len(said) == 1
    assert said[0].startswith("ct.tokens=450k: the my language text has about ")
    assert [finding for finding in found(tmp_path, *text, "ct.tokens=4k") if finding.fails] == []


def test_a_text_whose_documents_leave_a_split_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("Madzi a mtsinje wa 1 amayenda. " * 2000)
    text = ["language=mine", "language.code=nya", f"corpus.path={tmp_path}/line.txt", "ct.tokens=4k"]
    (said,) = [finding.text for finding in found(tmp_path, *text) if finding.fails]
    assert said.startswith(f"corpus.path={tmp_path}/line.txt: no nya document is in the dev split. Give more documents")


def test_what_a_run_would_find_after_its_first_stages_is_found_before(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"Madzi a mtsinje wa {number} amayenda." for number in range(200)))
    text = ["language=mine", "language.code=nya", f"corpus.path={tmp_path}/text.txt", "ct.tokens=4k"]
    (said,) = [finding.text for finding in found(tmp_path, *text, "model.path=null") if finding.fails]
    assert said.startswith("model.recipe.aligned_fraction=") and "this corpus has none" in said


def test_the_largest_budget_of_a_sweep_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"Madzi a mtsinje wa {number} amayenda." for number in range(200)))
    configs = [
        config(f"store={tmp_path}", "language=mine", f"corpus.path={tmp_path}/text.txt", f"ct.tokens={budget}")
        for budget in ("4k", "450k")
    ]
    said = list(data.check_budgets(RunPlan(tuple(map(without_stages, configs)))))
    assert [finding.text.partition(":")[0] for finding in said] == ["ct.tokens=450k"]


def test_partners_of_another_shape_are_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=2048, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
    )
    small.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-base").save_pretrained(tmp_path / "small")
    said = [finding.text for finding in found(tmp_path, f"sft.source={tmp_path}/small") if finding.fails]
    assert len(said) == 1 and "small" in said[0]


def test_no_room_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    said = [finding.text for finding in found(tmp_path) if finding.fails]
    assert len(said) == 1 and said[0].startswith(f"store={tmp_path}: 0.0 GB free, but this run may need ")


def byte_fallback() -> object:
    """A tokenizer with pieces for Latin letters and bytes for everything else, as Llama-2's is for many scripts."""
    from tokenizers import Tokenizer, decoders, models

    letters = [*"abcdefghijklmnopqrstuvwxyz ", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: place for place, piece in enumerate(["<unk>", *letters])}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def test_a_script_that_falls_into_bytes_is_seen() -> None:
    latin, tibetan = (measure_fertility(byte_fallback(), [text]) for text in ("the water of the river", "ཆུ་བོའི་ཆུ"))
    assert (latin.fallback, latin.bytes_a_token, latin.returned) == (0.0, 1.0, 1.0)
    assert (tibetan.fallback, tibetan.bytes_a_token, tibetan.returned) == (1.0, 1.0, 1.0)
    mixed = measure_fertility(byte_fallback(), ["ab", "ཆ"])
    assert mixed.fallback == pytest.approx(3 / 5)


def test_parts_of_characters_are_seen_in_byte_level_tokenizers_too() -> None:
    tokenizer = data.load_tokenizer(ROOT / "models" / "tiny-base", "model.path")
    chichewa, tibetan = (measure_fertility(tokenizer, [text]) for text in ("Madzi a mtsinje amayenda.", "ཆུ་བོའི་ཆུ"))
    assert chichewa.fallback == 0.0 and chichewa.returned == 1.0
    assert tibetan.fallback > data.MAX_FALLBACK_SHARE and tibetan.returned == 1.0 and tibetan.unknown == 0.0


def test_control_tokens_in_the_text_are_a_warning(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Madzi <|end|> a mtsinje.\n\nMadzi <|end|><|end|>\n\nMadzi <|start|>")
    asked = ["language=mine", f"corpus.path={text}"]
    (warned,) = [
        finding for finding in data.check_tokenizer(without_stages(config(*asked))) if "control tokens" in finding.text
    ]
    assert not warned.fails and "<|end|> (3 times in up to 200 documents)" in warned.text
    text.write_text("Madzi a mtsinje.\n\nMadzi")
    assert not [
        finding for finding in data.check_tokenizer(without_stages(config(*asked))) if "control tokens" in finding.text
    ]


def test_text_that_a_tokenizer_loses_fails_and_a_hardly_known_script_warns(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    (tmp_path / "text.txt").write_text("ཆུ་བོའི་ཆུ\n\nབོད་ཡིག")
    text = ["language=mine", f"corpus.path={tmp_path}/text.txt"]
    warned = list(data.check_tokenizer(without_stages(config(*text))))
    assert len(warned) == 1 and not warned[0].fails and "splits the script into many tokens" in warned[0].text
    folder = tmp_path / "model"
    folder.mkdir()
    Tokenizer(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    failed = list(data.check_tokenizer(without_stages(config(*text, f"model.path={folder}"))))
    assert failed[0].fails and "as unknown" in failed[0].text


def test_hypotheses_are_read_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = config(f"store={tmp_path}", "name=mine")
    monkeypatch.chdir(tmp_path)
    plan = RunPlan((without_stages(cell),))
    assert list(check_hypotheses(plan)) == []
    path = Path("hypotheses") / f"{cell.name}.yaml"
    path.parent.mkdir()
    entry = (
        "[{id: a, type: contrast, kind: bits, statement: s, expected: 1, margin: 1, terms: [{method: M, budget: B}]}]"
    )
    budget = str(cell.ct.tokens)
    path.write_text(entry.replace("M", "ct_then_sft").replace("B", budget))
    (warning,) = check_hypotheses(plan)
    assert not warning.fails and "not in a git repository" in warning.text
    subprocess.run(["git", "init", "-q"], check=True)
    (warning,) = check_hypotheses(plan)
    assert not warning.fails and f"{path}: a: its present text is not committed" in warning.text
    for method, tokens, said in (("tie", budget, "method tie is not"), ("ct", "7M", "budget=7M: the experiment has")):
        path.write_text(entry.replace("M", method, 1).replace("B", tokens))
        first, second = check_hypotheses(plan)
        assert f"{path}: a: this run gives no data for it: " in first.text and said in first.text
        assert not first.fails and "not committed" in second.text
    path.write_text("[]")
    (failure,) = check.guarded(check_hypotheses, plan)
    assert failure.fails and "expected a list of hypotheses" in failure.text
