"""What an adaptation reports: claims, the sentence, the files, and a page that is safe to open."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.errors import BadInput
from pipeline.report import adapt_page
from pipeline.report.adapt import FILE, TestScores, read_sources
from pipeline.report.adapt_claims import answers, settings_in_words
from pipeline.report.inference import holm
from pipeline.report.page import plain
from tests.pipeline.report.adapt_world import ANSWERS, SHARES, TRIES, adaptation, write_rows
from tests.pipeline.report.synthetic import N, item_records


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> adapt_page.AdaptPaths:
    sources = adaptation(tmp_path_factory.mktemp("adapt"))
    return adapt_page.render(sources, tmp_path_factory.mktemp("out") / "report")


def add_task(folder: Path, task: str, language: str, share: float) -> None:
    """A task of lm-eval in a folder of scores."""
    records, samples = item_records(task, language, share)
    for name, rows in (("scores.jsonl", records[:1]), ("samples.jsonl", samples)):
        path = folder / name
        kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        write_rows(path, [*kept, *({**row, "task": task} for row in rows)])


def right(share: float) -> np.ndarray:
    """Which of the N items a model of this share has right (tests/pipeline/report/synthetic.py)."""
    return np.asarray([float((item * 37) % N < round(share * N)) for item in range(N)])


def paired(first: float, second: float, threshold: float) -> tuple[float, float]:
    """The p-value, twice one-sided, of a difference above the threshold, and the lower end of its 95% interval.

    By a t-test of the sums over documents of four items, as a textbook has it.
    """
    by_document = (right(first) - right(second)).reshape(-1, 4).mean(axis=1)
    test = stats.ttest_1samp(by_document, threshold, alternative="greater")
    return min(1.0, 2 * float(test.pvalue)), float(stats.ttest_1samp(by_document, 0).confidence_interval(0.95).low)


def test_claims_are_paired_t_tests_over_documents_adjusted_by_holm(tmp_path: Path) -> None:
    shares = {**SHARES, "adapted": (0.40, 0.62)}
    sources = adaptation(tmp_path, shares)
    scores = TestScores(sources.evaluations, "tam", "Tamil")
    found = answers(scores, scores.measure("acc"), scores.measure("acc_en"), 0.02)
    expected = [paired(0.40, 0.35, 0), paired(0.62, 0.60, -0.02), paired(0.40, 0.45, 0)]
    adjusted = holm([p for p, _ in expected])
    for answer, (p, low), after in zip(found, expected, adjusted, strict=True):
        assert answer.estimate is not None
        assert answer.more["p_of_claim"] == pytest.approx(p, rel=1e-6)
        assert answer.estimate.low == pytest.approx(low, rel=1e-6)
        assert answer.p_adjusted == pytest.approx(after, rel=1e-6)
    assert [answer.verdict for answer in found] == ["supported", "supported", "contradicted"]
    assert [answer.more["threshold"] for answer in found] == [0, -0.02, 0]


@pytest.mark.parametrize(
    ("english", "verdict", "words"),
    [
        (0.60, "supported", "It keeps the chat model's English accuracy (+0.000"),
        (0.585, "inconclusive", "It is inconclusive whether it keeps the chat model's English accuracy to within 0.02"),
        (0.40, "contradicted", "It loses more than 0.02 of the chat model's English accuracy (\u22120.200"),
    ],
)
def test_what_is_lost_is_judged_against_the_tolerance(tmp_path: Path, english: float, verdict: str, words: str) -> None:
    found = adapt_page.adapt_view(adaptation(tmp_path, {**SHARES, "adapted": (0.55, english)}))
    assert found.claims[1].verdict == verdict
    assert words in found.sentence
    assert found.sentence.startswith(
        "The adapted model is better than the chat model in Tamil & more accuracy (+0.200,"
    )


def test_a_measure_of_which_less_is_better_is_turned_round(tmp_path: Path) -> None:
    sources = adaptation(tmp_path, gain="bits_per_byte", keep="bits_per_byte_en")
    found = adapt_page.adapt_view(sources)
    gained = found.claims[0].estimate
    assert gained is not None and gained.value == pytest.approx(0.20)  # 4 - share bits a byte
    assert "(+0.200 saved, 95% CI" in found.sentence
    assert found.claims[0].claim.unit == "bits per byte saved"


def test_the_chat_model_can_win_and_the_page_says_why(tmp_path: Path) -> None:
    tries = [(*one[:3], 0.3, one[4]) if one[0] != "sft" else one for one in TRIES]
    sources = adaptation(tmp_path / "run", tries=tries, chosen="sft")
    paths = adapt_page.render(sources, tmp_path / "out")
    assert paths.sentence == (
        "None of 3 merges beats the chat model on dev: 1 lost more than 0.02 in English accuracy, 2 did not raise "
        "Tamil & more accuracy. No model was written."
    )
    assert [row["verdict"] for row in json.loads(paths.claims.read_text())] == ["no data"] * 3
    page = paths.page.read_text()
    assert "None of 3 merges" in page and 'class="text">adapted model<' not in page


def test_one_model_as_the_pair_is_listed_once(tmp_path: Path) -> None:
    whole = adaptation(tmp_path)
    tests = {**whole.tests, "base": whole.tests["sft"], "ct": whole.tests["sft_then_ct"]}
    sources = replace(whole, tests=tests)
    assert list(sources.shown) == ["sft", "sft_then_ct", "adapted"]
    found = adapt_page.adapt_view(sources)
    assert list(found.answers) == ["sft", "sft_then_ct", "adapted"]
    without = {name: path for name, path in tests.items() if name != "sft_then_ct"}
    claims = adapt_page.adapt_view(replace(whole, tests=without)).claims
    assert claims[2].claim.text == "The adapted model is better than CT in Tamil & more accuracy."
    assert claims[2].estimate is not None


def test_the_files_have_the_numbers_of_the_page(rendered: adapt_page.AdaptPaths) -> None:
    tries = list(csv.DictReader(rendered.tries_csv.open()))
    assert [row["candidate"] for row in tries] == [name for name, *_ in TRIES]
    assert [row["dev_acc"] for row in tries] == ["0.35", "0.5", "0.6", "0.4"]
    assert [row["chosen"] for row in tries] == ["False", "True", "False", "False"]
    assert [row["kept"] for row in tries] == ["True", "True", "False", "True"]
    results = list(csv.DictReader(rendered.results_csv.open()))
    acc = {row["method"]: row for row in results if row["task"] == "mean_tam" and row["metric"] == "acc"}
    assert {name: float(row["value"]) for name, row in acc.items()} == {name: pair[0] for name, pair in SHARES.items()}
    assert {name: int(row["ct_tokens"]) for name, row in acc.items()} == {
        "base": 0, "sft": 0, "ct": 10_000, "sft_then_ct": 10_000, "adapted": 10_000
    }  # fmt: skip
    said = [json.loads(line) for line in rendered.answers.read_text().splitlines()]
    assert [row["answer"] for row in said if row["model"] == "ct"] == list(ANSWERS["ct"])
    assert [row["in_language"] for row in said if row["model"] == "ct"] == [True, True, True]
    assert [row["in_language"] for row in said if row["model"] == "base"] == [False, False, True]
    page = rendered.page.read_text()
    assert re.search(r"<strong>0\.550</strong><small>0\.4\d\d to 0\.6\d\d</small>", page)
    for shown in (
        "1 of 3",
        "2 h 0 min",
        "TIES + slack 1, lambda 0.75",
        "c0ffeec0ff",
        "+0.200<small>in accuracy</small></td>",
    ):
        assert shown in page, shown


def test_scores_and_intervals_are_those_of_the_csv(rendered: adapt_page.AdaptPaths) -> None:
    page = rendered.page.read_text()
    rows = [row for row in csv.DictReader(rendered.results_csv.open()) if row["method"] == "ct"]
    wanted = [("mean_tam", "acc"), ("mean_en", "acc"), ("bits_per_byte_tam", "bits_per_byte")]
    found = [row for row in rows if (row["task"], row["metric"]) in wanted]
    assert len(found) == 3
    for row in found:
        value, low, high = (float(row[name]) for name in ("value", "low", "high"))
        assert f"{value:.3f}<small>{low:.3f} to {high:.3f}</small>" in page


def test_a_task_of_ones_own_can_be_raised(tmp_path: Path) -> None:
    """Two tasks of lm-eval in the language and one in English: `tasks` is the mean of the two."""
    sources = adaptation(tmp_path, gain="tasks")
    for name, share in (("base", 0.2), ("sft", 0.2), ("adapted", 0.6), ("ct", 0.5), ("sft_then_ct", 0.4)):
        for task, language, more in (("quiz", "tam", 0.0), ("maths", "tam", 0.1), ("trivia", "en", 0.3)):
            add_task(sources.tests[name], task, language, share + more)
    scores = TestScores(sources.evaluations, "tam", "Tamil")
    assert scores.own_tasks == ["quiz", "maths"]
    level, gain = scores.score(scores.measure("tasks"), "sft"), scores.gain(scores.measure("tasks"), "adapted", "sft")
    assert level is not None and level.value == pytest.approx(0.25) and level.n == 2 * N
    assert gain is not None and gain.value == pytest.approx(0.4) and gain.n == 2 * N
    found = adapt_page.adapt_view(sources)
    assert "better than the chat model in Tamil & more tasks (+0.400" in found.sentence
    assert [column.title for column in found.columns][:5] == [
        "Tamil & more tasks", "Tamil & more accuracy", "Tamil & more bits per byte", "quiz", "maths"
    ]  # fmt: skip
    page = adapt_page.render(sources, tmp_path / "out").page.read_text()
    assert "The first items of quiz, maths took part in the choice too" in page


def test_a_page_states_how_models_were_asked_and_what_ct_read(tmp_path: Path) -> None:
    sources = adaptation(tmp_path / "run")
    for name, chat in (("base", False), ("sft", True), ("ct", False), ("adapted", True)):
        path = sources.tests[name] / "scores.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_rows(path, [{**row, "chat": chat} if row["family"] == "next" else row for row in rows])
    page = adapt_page.render(sources, tmp_path / "out").page.read_text()
    assert "Plain prompts: base, CT. By the chat template: chat model, adapted model." in page
    assert "No choice has seen these items." in page


def test_the_line_for_the_terminal(rendered: adapt_page.AdaptPaths) -> None:
    assert re.fullmatch(
        r"ties_sv_1, lambda 0\.75; on test Tamil & more accuracy \+0\.200 \[\+0\.\d+, \+0\.\d+\], "
        r"English accuracy \+0\.000 \[\u22120\.\d+, \+0\.\d+\] \(kept\)",
        rendered.line,
    )


def test_the_card_has_the_scores_of_the_page(rendered: adapt_page.AdaptPaths) -> None:
    lines = rendered.scores.splitlines()
    assert lines[0] == "| measure | base | chat model | CT | CT on the chat model | adapted model |"
    assert "| Tamil & more accuracy (200 items) | 0.300 [" in lines[2] and "()" not in rendered.scores
    assert [line for line in lines if line.startswith("| answers that end by themselves | 0 of 3 [")]


def test_settings_are_in_words() -> None:
    assert settings_in_words({"models.sft.weight": 0.5, "lambda": 1.0}) == "weight of the chat model 0.5, lambda 1"
    assert settings_in_words({"models.ct.density": 0.2, "t": 0.35}) == "density of CT 0.2, t 0.35"


def test_what_models_say_is_text_and_nothing_else(rendered: adapt_page.AdaptPaths) -> None:
    page = rendered.page.read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#39;மழை&#39;)&lt;/script&gt;" in page
    assert "\x00" not in page and "\x1b" not in page
    assert page.count('dir="auto"') == 3 * (1 + 4)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<script [^>]*src|<link""", page)
    assert "adapt &lt;i&gt;" in page and "Tamil &amp; more" in page and "name: a &lt;b&gt;" in page


def test_controls_and_surrogates_are_replaced() -> None:
    assert plain("a\x00b\ud800c\n\tமழை") == "a\ufffdb\ufffdc\n\tமழை"


def test_a_report_is_drawn_again_from_its_folder(rendered: adapt_page.AdaptPaths, tmp_path: Path) -> None:
    again = adapt_page.render(read_sources(rendered.page.parent), tmp_path / "again")
    for first, second in zip(rendered.files, again.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_lost_results_are_named(tmp_path: Path) -> None:
    sources = adaptation(tmp_path / "run")
    adapt_page.render(sources, tmp_path / "out")
    (sources.choice / "choice.yml").unlink()
    sources.choice.rename(tmp_path / "gone")
    with pytest.raises(BadInput, match=rf"{FILE}: .*choose is missing. Restore the store"):
        read_sources(tmp_path / "out")
