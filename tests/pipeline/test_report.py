"""The report over synthetic folders whose numbers are known."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.harness import mean_records
from eval.stats import mean_interval, paired_difference, ratio_interval, wilson
from pipeline import report
from pipeline.report import choices, claims, discards, page, results, style
from pipeline.report.paired import Evidence, compare
from pipeline.report.records import Audit, Choice, Evaluation, Subject, publish

N = 200
BUDGETS = (10_000, 100_000, 1_000_000)
SUBJECT = Subject(
    "A <small> run & more", "nya", "Chichewa", {"nya 10k seed 0": {"name": "a <b>", "ct": {"tokens": 10_000}}}
)


def write_scores(folder: Path, right: dict[str, float], bits: float, target: str = "nya") -> Path:
    """A folder as eval.harness leaves it: of each family's N items the given share is right, the same items in every folder as far as it goes."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for language in (target, "en"):
        for family, share in right.items():
            head = {
                "task": f"{family}_{language}",
                "family": family,
                "language": language,
                "metric": "acc",
                "primary": True,
            }
            scores = [float((item * 37) % N < round(share * N)) for item in range(N)]
            low, high = wilson(sum(scores), N)
            records.append(
                {**head, "value": sum(scores) / N, "low": low, "high": high, "n": N, "chance": 0.25, "trivial": 0.3}
            )
            records.append({**records[-1], "metric": "acc_norm", "primary": False})
            samples += [
                {"task": head["task"], "id": str(item), "metric": "acc", "score": score, "prediction": 0, "target": 0}
                for item, score in enumerate(scores)
            ]
        sizes = [100 + item for item in range(30)]
        coded = [size * (bits + 0.1 * (item % 3 - 1)) for item, size in enumerate(sizes)]
        low, high = ratio_interval(coded, sizes)
        head = {
            "task": f"bits_per_byte_{language}",
            "family": "text",
            "language": language,
            "metric": "bits_per_byte",
            "primary": True,
        }
        records.append(
            {
                **head,
                "value": sum(coded) / sum(sizes),
                "low": low,
                "high": high,
                "n": 30,
                "chance": None,
                "trivial": None,
            }
        )
        samples += [
            {"task": head["task"], "id": str(item), "metric": "bits_per_byte", "bits": b, "bytes": s}
            for item, (b, s) in enumerate(zip(coded, sizes, strict=True))
        ]
    records += mean_records(records, samples)
    for name, lines in (("scores", records), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_audit(folder: Path, method: str, slack: float, lost: float) -> Path:
    shares = {"share_trimmed": 0.2, "share_in_conflict": 0.4, "share_lost_in_conflict": lost / 2}
    top = {
        level: {"share_of_parameters": 0.05, **shares, "share_lost_in_conflict": lost} for level in ("1%", "5%", "10%")
    }
    model = {
        "parameters": 100,
        **shares,
        "norm": 1.0,
        "norm_lost": 0.1,
        "slack_regained": 0.0,
        "slack_given_up": 0.0,
        "top": top,
    }
    folder.mkdir(parents=True)
    protect = ["sft"] if slack else []
    (folder / "audit.json").write_text(
        json.dumps({"method": method, "slack": slack, "protect": protect, "models": {"sft": model, "ct": model}})
    )
    return folder


@dataclass
class Run:
    """A run in which `gains` says, by method and budget, how much higher than CT-then-SFT's 0.4 each accuracy is."""

    root: Path
    gains: Mapping[str, tuple[float, ...]]
    lost: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...] = (0,)
    evaluations: list[Evaluation] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for method, share in (("base", 0.26), ("sft", 0.3)):
                folder = write_scores(self.root / f"{method}-{seed}", {"genre": share, "blank": share}, 5.0)
                self.evaluations += [Evaluation(method, budget, seed, folder) for budget in BUDGETS]
            for method, gains in {"ct": (-0.1,) * 3, "ct_then_sft": (0.0,) * 3, **self.gains}.items():
                for place, (budget, gain) in enumerate(zip(BUDGETS, gains, strict=True)):
                    share = 0.4 + gain + 0.1 * seed
                    folder = write_scores(
                        self.root / f"{method}-{budget}-{seed}",
                        {"genre": share, "blank": share},
                        4.0 - gain - place / 2,
                    )
                    self.evaluations.append(Evaluation(method, budget, seed, folder))
            for method, shares in self.lost.items():
                recipe = "ties_sv" if "sv" in method else "ties"
                for budget, share in zip(BUDGETS, shares, strict=True):
                    folder = write_audit(
                        self.root / f"audit-{method}-{budget}-{seed}", recipe, float("sv" in method), share
                    )
                    self.audits.append(Audit(method, budget, seed, folder))
            for method, gains in self.gains.items():
                for budget, gain in zip(BUDGETS, gains, strict=True):
                    folder = self.root / f"tune-{method}-{budget}-{seed}"
                    folder.mkdir()
                    settings = {"method": method, "lambda": 1.5}
                    tries = [
                        {"settings": {**settings, "lambda": 1.0}, "metric": "acc", "score": 0.1},
                        {"settings": settings, "metric": "acc", "score": 0.4 + gain},
                    ]
                    (folder / "tries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tries))
                    (folder / "choice.yml").write_text(yaml.safe_dump(settings))
                    self.choices.append(Choice(method, budget, seed, folder))
        record = {
            "kind": "ct",
            "slug": "nya-10k-s0",
            "key": "0123456789ab",
            "seconds": 61.5,
            "finished": "2026-01-02T03:04:05+00:00",
        }
        self.stages.append({**record, "commit": "c0ffee" * 6 + "+", "versions": {"torch": "2.13.0"}})

    def verdicts(self) -> list[str]:
        return [answer.verdict for answer in self.claims().answers]

    def claims(self) -> claims.Claims:
        return claims.claims(self.evaluations, discards.read(self.audits), choices.read(self.choices), "nya")

    def render(self, out: Path) -> report.ReportPaths:
        return report.render(self.evaluations, self.audits, self.choices, self.stages, out, SUBJECT)


GOOD = {"ties": (0.2, 0.1, 0.0), "ties_sv_1": (0.3, 0.2, 0.1)}
LOST = {"ties": (0.1, 0.2, 0.3), "ties_sv_1": (0.05, 0.1, 0.15)}


def test_every_score_is_a_row_and_unmerged_models_are_given_once(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST, seeds=(0, 1))
    rows = list(csv.DictReader(results.to_csv(results.gather(run.evaluations)).splitlines()))
    assert list(rows[0]) == [
        "language",
        "task",
        "metric",
        "method",
        "ct_tokens",
        "seed",
        "value",
        "low",
        "high",
        "n",
        "chance",
        "trivial",
    ]
    assert len(rows) == (2 + 4 * 3) * 2 * 2 * 6  # checkpoints, seeds, languages, records of a language
    found = [
        row
        for row in rows
        if row["task"] == "genre_nya"
        and row["method"] == "ties"
        and row["metric"] == "acc"
        and row["ct_tokens"] == "10000"
    ]
    assert [(float(row["value"]), row["seed"], row["n"]) for row in found] == [(0.6, "0", "200"), (0.7, "1", "200")]
    assert (float(found[0]["low"]), float(found[0]["high"])) == wilson(120, 200)
    assert {row["ct_tokens"] for row in rows if row["method"] in ("base", "sft")} == {"0"}
    assert {row["chance"] for row in rows if row["metric"] == "bits_per_byte"} == {""}


def test_tables_show_means_over_seeds_and_mark_the_best(tmp_path: Path) -> None:
    rows = results.gather(Run(tmp_path, GOOD, LOST, seeds=(0, 1)).evaluations)
    text = results.to_markdown(rows, "nya", {"nya": "Chichewa", "en": "English"})
    assert text.index("## Chichewa") < text.index("## English")
    assert "| measure | method | no CT | 10k | 100k | 1M |" in text
    assert "| mean accuracy | TIES SV 1 |  | **0.750** | **0.650** | **0.550** |" in text
    assert "| mean accuracy | TIES |  | 0.650 | 0.550 | 0.450 |" in text
    assert "| mean accuracy (chance 0.250, trivial 0.300) | base | 0.260 |  |  |  |" in text
    assert re.search(r"\| bits per byte \| TIES SV 1 \|  \| \*\*3\.\d+\*\* \|", text)  # the lowest is best
    printed = results.terminal_table(rows, "nya")
    assert re.search(r"^TIES SV 1 +0\.750 / 3\.\d{3} +0\.650 / 3\.\d{3} +0\.550 / 2\.\d{3}$", printed, re.MULTILINE)
    assert len(printed.splitlines()) == 8


def test_claims_follow_the_data(tmp_path: Path) -> None:
    assert Run(tmp_path / "good", GOOD, LOST).verdicts() == ["shown"] * 5
    flipped = Run(
        tmp_path / "bad",
        {"ties": (-0.2, -0.1, 0.1), "ties_sv_1": (-0.3, -0.2, 0.05)},
        {"ties": (0.3, 0.2, 0.1), "ties_sv_1": (0.6, 0.4, 0.2)},
    )
    assert flipped.verdicts() == ["the opposite is shown"] * 5
    level = Run(
        tmp_path / "level",
        {"ties": (0.0,) * 3, "ties_sv_1": (0.0,) * 3},
        {"ties": (0.1, 0.2, 0.1), "ties_sv_1": (0.0, 0.2, 0.1)},
    )
    assert level.verdicts() == ["not shown"] * 5


def test_claims_state_the_numbers(tmp_path: Path) -> None:
    first, second, third, fourth, fifth = (answer.text for answer in Run(tmp_path, GOOD, LOST).claims().answers)
    assert (
        "At 10k tokens" in first
        and "TIES SV 1, has a mean accuracy of 0.700; CT-then-SFT has 0.400. Difference +0.300 [+0.2" in first
    )
    assert "Of the 2 merges, 2 are shown" in first and "bits per byte (lower is better): \u22120.300 [" in first
    assert "From 10k to 1M the advantage shrinks by +0.200 [+0." in second
    assert "TIES: 10.0 % at 10k, 20.0 % at 100k, 30.0 % at 1M" in third and "SV" not in third
    assert "TIES SV 1: 5.0 % at 10k" in fourth
    assert "over all budgets: +0.100 [" in fifth and "1M +0.100 [" in fifth


def test_claims_without_their_data_say_so(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "base", {"genre": 0.3}, 5.0)
    found = claims.claims([Evaluation("base", 10_000, 0, folder)], [], [], "nya")
    assert [answer.verdict for answer in found.answers] == ["no data"] * 5 and found.comparisons == []
    assert report.render([Evaluation("base", 10_000, 0, folder)], [], [], [], tmp_path / "out", SUBJECT).page.is_file()


def test_comparisons_pair_items_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {}, seeds=(0, 1))
    given = [one for one in run.evaluations if not (one.method == "ct" and one.seed == 1)]
    found = {(one.baseline, one.kind, one.ct_tokens): one for one in compare(Evidence(given, "nya"))}
    assert len(found) == 3 * 2 * 3
    same = found["ct_then_sft", "accuracy", 10_000]
    assert same.difference.value == pytest.approx(0.1) and same.verdict == "better"
    assert found["ct", "accuracy", 10_000].difference.value == pytest.approx(0.2)  # seed 0 of both
    assert found["sft", "bits", 1_000_000].difference.value == pytest.approx(2.9 - 5.0)
    assert found["sft", "bits", 1_000_000].verdict == "better"
    gained = [
        0.5 * (80 <= item * 37 % N < 120) for item in sorted(range(N), key=str)
    ]  # items that ties has right and CT-then-SFT has not
    expected = mean_interval([gained, gained])
    assert (same.difference.low, same.difference.high) == pytest.approx(expected)


def test_equals_are_not_told_apart(tmp_path: Path) -> None:
    found = compare(Evidence(Run(tmp_path, {"ties": (0.0, 0.0, 0.0)}, {}, seeds=(0, 1, 2)).evaluations, "nya"))
    assert {one.verdict for one in found if one.baseline == "ct_then_sft"} == {"not shown"}
    assert claims.signed(-1e-17) == "+0.000" and claims.signed(-0.25) == "\u22120.250"


@pytest.mark.parametrize("kind", ["accuracy", "bits"])
def test_comparisons_are_the_paired_bootstrap_of_the_evaluation_room(tmp_path: Path, kind: Any) -> None:
    run = Run(tmp_path, {"ties": (0.13, 0.1, 0.1)}, {})
    sides = []
    for method in ("ties", "ct"):
        folder = next(one.folder for one in run.evaluations if (one.method, one.ct_tokens) == (method, 10_000))
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        sides.append([one for one in samples if one["task"].endswith("_nya") and ("bits" in one) == (kind == "bits")])
    expected = paired_difference(sides[0], sides[1])
    found = Evidence(run.evaluations, "nya").difference(kind, [("ties", 10_000)], [("ct", 10_000)])
    assert found is not None and found.n == expected.n
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {})
    samples = run.evaluations[-1].folder / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"id": "7"', '"id": "another"'))
    with pytest.raises(ValueError, match="samples.jsonl: not the same items"):
        run.claims()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, report.ReportPaths]:
    run = Run(tmp_path_factory.mktemp("run"), GOOD, LOST)
    return run, run.render(tmp_path_factory.mktemp("report") / "out")


def test_the_page_is_one_file_that_refers_to_nothing_else(rendered: tuple[Run, report.ReportPaths]) -> None:
    _, paths = rendered
    html = paths.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<script|<link|https?://""", html)
    for wanted in (
        "data:image/svg+xml;base64,",
        "lambda = 1.5",
        "61.5",
        "c0ffeec0ff",
        "+0.300",
        "30.0 %",
        "torch 2.13.0",
        "name: a &lt;b&gt;",
    ):
        assert wanted in html, wanted
    assert "A &lt;small&gt; run &amp; more" in html and "<small> run" not in html and "a <b>" not in html
    assert (
        paths.curves.read_bytes().startswith(b"\x89PNG") and b"</svg>" in paths.curves.with_suffix(".svg").read_bytes()
    )
    assert sorted(path.name for path in paths.page.parent.iterdir()) == [
        "curves.png",
        "curves.svg",
        "report.html",
        "results.csv",
        "results.md",
    ]


def test_the_same_data_give_the_same_bytes(rendered: tuple[Run, report.ReportPaths], tmp_path: Path) -> None:
    run, first = rendered
    run.render(tmp_path)
    for path in first.page.parent.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_merge_without_task_vectors_discards_nothing(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"method": "linear", "slack": 0.0, "protect": [], "models": {}}))
    assert discards.read([Audit("linear", 10_000, 0, tmp_path)]) == []


def test_discarded_shares_are_means_over_seeds(tmp_path: Path) -> None:
    audits = [
        Audit("ties", 10_000, seed, write_audit(tmp_path / str(seed), "ties", 0.0, lost))
        for seed, lost in enumerate((0.1, 0.3))
    ]
    (one,) = discards.read(audits)
    assert one.of_top["5%"].lost == pytest.approx(0.2) and one.of_all.lost == pytest.approx(0.1) and one.plain_ties


def test_methods_keep_their_looks_apart() -> None:
    looks = style.looks(["base", "sft", "ct", "ct_then_sft", *(f"merge_{place}" for place in range(18))])
    assert len({(look.color, look.line) for look in looks.values()}) == len(looks) == 20


@pytest.mark.parametrize("budgets", [BUDGETS, (10_000,), tuple(1_000 * 2**step for step in range(20))])
def test_dodged_points_stay_near_their_budget_and_in_order(budgets: tuple[int, ...]) -> None:
    moved = [style.dodge(budgets, place, 8) for place in range(8)]
    across = [line[place] for place in range(len(budgets)) for line in moved]
    assert across == sorted(across) and len(set(across)) == len(across)
    assert moved[0][0] < budgets[0] < moved[-1][0]


def test_publishing_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        publish(tmp_path / "results.csv", fail)
    assert list(tmp_path.iterdir()) == []


def test_times_are_added_up_by_kind() -> None:
    assert page.by_kind(
        [{"kind": "eval", "seconds": 1.0}, {"kind": "ct", "seconds": 5.0}, {"kind": "eval", "seconds": 2.0}]
    ) == [
        ("ct", 1, 5.0),
        ("eval", 2, 3.0),
    ]


def test_no_torch_is_imported() -> None:
    rooms = "pipeline.report, pipeline.report.page, pipeline.report.claims, pipeline.report.curves, pipeline.report.discards_plot"
    code = f"import sys, {rooms}; assert not {{'torch', 'lm_eval', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_leaks_are_a_section_where_they_were_looked_for(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "base", {"next": 0.5}, 2.0)
    worst = {
        "task": "next_nya",
        "id": "i<1>",
        "share": 0.5,
        "jaccard": 0.9,
        "text": "an item",
        "training": {"file": "text/a", "document": "d", "text": "a passage"},
    }
    tasks = {"next_nya": {"items": 50, "too_short": 3, "verbatim": 2, "near": 1}}
    read = {"files": 1, "documents": 12_345, "bytes": 10**7}
    leaks = {
        "gram_words": 13,
        "shingle_words": 5,
        "shortest_words": 8,
        "near_jaccard": 0.8,
        "read": read,
        "tasks": tasks,
        "worst": [worst],
    }
    evaluations = [Evaluation("base", 10_000, 0, folder)]
    page = report.render(evaluations, [], [], [], tmp_path / "with", SUBJECT, leaks).page.read_text()
    assert "<tr><th>next_nya</th><td>50</td><td>3</td><td>2</td><td>1</td></tr>" in page
    assert "12,345 documents" in page and "i&lt;1&gt;" in page and "a passage" in page
    assert 'id="leaks"' not in report.render(evaluations, [], [], [], tmp_path / "without", SUBJECT).page.read_text()
