"""Hypotheses of an experiment: their file, when they were stated, and their answers."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import BadInput
from pipeline.cli import pipeline_main as main
from pipeline.report import hypotheses, merges, page, sources, summary, view
from pipeline.report.analysis import Inputs, analyse
from pipeline.report.claims import Answer
from pipeline.report.hypothesis_answers import HypothesisData, answers
from pipeline.report.paired import Evidence
from pipeline.report.records import Evaluation, FrontierPoint
from pipeline.run import collect
from tests.pipeline.report.points import frontier, point, share, write
from tests.pipeline.report.synthetic import BUDGETS, GOOD, INFO, LOST, Run

PAIR = ["ties", "ct_then_sft"]
HEAD: dict[str, Any] = {"statement": "It is so.", "expected": 0.04, "margin": 0.02}
GAP = {"id": "gap", "type": "gap", **HEAD, "terms": [{"methods": PAIR, "budget": "450k"}]}
CONTRAST = {
    "id": "contrast",
    "type": "contrast",
    **HEAD,
    "kind": "accuracy",
    "terms": [{"method": "ties", "budget": "10k"}, {"method": "ct_then_sft", "budget": "10k", "weight": -1}],
}


def file(folder: Path, *entries: Any, name: str = "study.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(list(entries), allow_unicode=True))
    return folder / name


def answered(folder: Path, points: list[FrontierPoint], *entries: Any) -> list[Answer]:
    return answers(file(folder / "hypotheses", *entries), HypothesisData.of([], points, [], "nya"))


def line(bits: float, above: float = 0.0) -> tuple[float, float]:
    return bits, 0.3 + 0.25 * (bits - 2.0) + above


def both(folder: Path, above: float = 0.05, **more: Any) -> list[FrontierPoint]:
    """TIES this much above CT-then-SFT."""
    first = frontier(folder, "ties", [line(x, above) for x in (2.0, 2.4)], **more)
    return first + frontier(folder, "ct_then_sft", [line(x) for x in (2.0, 2.4)], **more)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("text", "entry 1: expected keys such as id and statement, got 'text'"),
        ({k: v for k, v in GAP.items() if k != "type"}, "gap: type is missing. Choose gap, separate, contrast, count"),
        ({**GAP, "type": "gaps"}, "gap: type=gaps: no such type. Did you mean gap?"),
        ({**GAP, "margin": 0}, "gap: margin=0: "),
        ({**GAP, "expected": -0.04}, "gap: expected=-0.04: "),
        ({k: v for k, v in GAP.items() if k != "margin"}, "gap: margin: missing"),
        ({**GAP, "marign": 0.02}, "gap: marign: unknown key. Did you mean margin?"),
        ({**GAP, "terms": [{"methods": PAIR, "budget": "many"}]}, "gap: terms.0.budget=many: "),
        ({**GAP, "terms": [{"methods": PAIR, "budgets": 1}]}, "gap: terms.0."),
        ({**GAP, "terms": []}, "gap: terms=[]: "),
        ({**GAP, "role": "main"}, "gap: role=main: "),
        ({**GAP, "id": "a b"}, "a b: id=a b: "),
        (
            {**GAP, "terms": [{"methods": PAIR, "budget": 1, "regime": "wsd"}, {"methods": PAIR, "budget": 1}]},
            "gap: terms: ",
        ),
        ({**GAP, "regime": "wsd", "terms": [{"methods": PAIR, "budget": 1, "regime": "wsd"}]}, "gap: regime=wsd: "),
        ({**CONTRAST, "type": "count"}, "contrast: kind=accuracy: "),
        ({**CONTRAST, "kind": "lost_top_share", "family": "next"}, "contrast: kind=lost_top_share: "),
    ],
)
def test_bad_entries_are_rejected_in_one_line(tmp_path: Path, entry: Any, said: str) -> None:
    path = file(tmp_path, entry)
    with pytest.raises(BadInput) as caught:
        hypotheses.read(path)
    assert str(caught.value).startswith(f"{path}: {said}") and "\n" not in str(caught.value)


def test_bad_files_are_rejected_in_one_line(tmp_path: Path) -> None:
    for entries, said in (
        ([], "expected a list of hypotheses, each with id"),
        ([GAP, GAP], "two hypotheses have the id gap"),
        ([{**GAP, "id": f"gap-{n}"} for n in range(9)], "at most 8 hypotheses may have role=primary, got 9"),
    ):
        with pytest.raises(BadInput, match=said):
            hypotheses.read(file(tmp_path, *entries))
    eight = [{**GAP, "id": f"ክፍተት-{n}"} for n in range(8)] + [{**GAP, "role": "secondary"}]
    assert [one.id for one in hypotheses.read(file(tmp_path, *eight))][:2] == ["ክፍተት-0", "ክፍተት-1"]


def test_names_that_the_experiment_does_not_have_are_found_early(tmp_path: Path) -> None:
    stated = hypotheses.read(file(tmp_path, GAP, CONTRAST))
    assert hypotheses.without_data(stated, PAIR, {10_000, 450_000}) == {}
    said = "the method ties is not in the experiment. Did you mean tie?"
    assert hypotheses.without_data(stated, ["ct_then_sft", "tie"], {10_000, 450_000}) == {"gap": said, "contrast": said}
    lacking = hypotheses.without_data(stated, PAIR, {450_000, 50_000})
    assert lacking == {"contrast": "budget=10k: the experiment has 50k, 450k"}


def test_a_gap_is_answered_and_swapping_its_methods_contradicts_it(tmp_path: Path) -> None:
    swapped = {**GAP, "id": "swapped", "terms": [{"methods": PAIR[::-1], "budget": "450k"}]}
    first, second = answered(tmp_path, both(tmp_path, seeds=(0, 1, 2)), GAP, swapped)
    assert (first.verdict, second.verdict) == ("supported", "contradicted")
    assert first.estimate is not None and second.estimate is not None
    assert first.estimate.value == pytest.approx(0.05) and second.estimate.value == pytest.approx(-0.05)
    assert (first.more["refuted"], second.more["refuted"]) == (False, True)
    assert "At 450k, TIES minus CT-then-SFT, mean over 2.00 to 2.40 bits per byte: +0.050" in first.text
    (row,) = first.more["gaps"]
    assert row["window"] == pytest.approx([2.0, 2.4]) and row["slip"]["value"] == pytest.approx(0)
    assert first.more["level"] == 0.025 and first.more["low_holm"] < first.estimate.low


def test_a_difference_of_gaps_is_a_gap(tmp_path: Path) -> None:
    points = both(tmp_path, 0.05) + both(tmp_path, 0.02, budget=50_000)
    terms = [{"methods": PAIR, "budget": "450k"}, {"methods": PAIR, "budget": "50k", "weight": -1}]
    (answer,) = answered(tmp_path, points, {**GAP, "terms": terms})
    assert answer.estimate is not None and answer.estimate.value == pytest.approx(0.03)
    assert answer.verdict == "supported" and [row["weight"] for row in answer.more["gaps"]] == [1, -1]


def test_a_family_has_a_gap_of_its_own(tmp_path: Path) -> None:
    (known, unknown) = answered(
        tmp_path, both(tmp_path), {**GAP, "family": "next"}, {**GAP, "id": "other", "family": "genre"}
    )
    assert known.estimate is not None and known.estimate.value == pytest.approx(0.05)
    assert unknown.verdict == "no data"


def test_a_slip_is_inconclusive(tmp_path: Path) -> None:
    """On test TIES lies 0.03 bits further right than on dev."""
    verdicts = []
    for slip in (0.01, 0.03):
        points = [
            point(tmp_path / str(slip), "ties", x, x + slip, line(x, 0.1)[1], seed=seed, dev=line(x, 0.1))
            for x in (2.0, 2.4)
            for seed in (0, 1)
        ] + frontier(tmp_path / str(slip), "ct_then_sft", [line(x) for x in (2.0, 2.4)])
        (answer,) = answered(tmp_path, points, GAP)
        verdicts.append((answer.verdict, answer.more["gaps"][0]["matched"]))
    assert verdicts == [("supported", True), ("inconclusive", False)]
    assert answer.text.count("So the matching failed.") == 1 and answer.p_adjusted == 1.0


SEPARATE = {"id": "saves", "type": "separate", **HEAD, "methods": PAIR, "budget": "450k", "kind": "bits"}


@pytest.mark.parametrize(
    ("accuracy", "by_gap", "by_accuracy", "by_bits"),
    [
        (0.45, "supported", "supported", "supported"),  # more accurate at fewer bits
        (0.35, "inconclusive", "inconclusive", "supported"),  # as accurate at fewer bits
        (0.25, "inconclusive", "inconclusive", "inconclusive"),  # a trade-off
    ],
)
def test_separate_frontiers_are_claimed_by_a_bound(
    tmp_path: Path, accuracy: float, by_gap: str, by_accuracy: str, by_bits: str
) -> None:
    points = frontier(tmp_path, "ties", [(2.0, 0.2), (2.2, accuracy)], (0, 1, 2))
    points += frontier(tmp_path, "ct_then_sft", [(2.4, 0.35), (2.6, 0.4)], (0, 1, 2))
    entries = [GAP, {**SEPARATE, "id": "more", "kind": "accuracy"}, SEPARATE]
    reversed_ = [
        {**GAP, "terms": [{"methods": PAIR[::-1], "budget": "450k"}]},
        *({**one, "methods": PAIR[::-1]} for one in entries[1:]),
    ]
    found = answered(tmp_path, points, *entries)
    assert [answer.verdict for answer in found] == [by_gap, by_accuracy, by_bits]
    assert found[0].more["bound"] and found[0].more["gaps"][0]["gap"] is None
    against = {"supported": "contradicted"}
    verdicts = [answer.verdict for answer in answered(tmp_path, points, *reversed_)]
    assert verdicts == [against.get(one, one) for one in (by_gap, by_accuracy, by_bits)]
    assert "share fewer than 0.05 bits per byte" in found[0].text and "They tie at a price of" in found[0].text


def test_frontiers_that_share_bits_have_no_bound(tmp_path: Path) -> None:
    (answer,) = answered(tmp_path, both(tmp_path), SEPARATE)
    assert answer.verdict == "no data" and "only their gap can be claimed" in answer.text


def test_one_seed_and_secondary_hypotheses_decide_nothing(tmp_path: Path) -> None:
    points = both(tmp_path)
    one, other = answered(tmp_path, points, {**GAP, "seeds": [1]}, {**GAP, "id": "b", "role": "secondary"})
    assert (one.verdict, other.verdict) == ("inconclusive", "exploratory")
    assert one.estimate is not None and one.estimate.seeds == 1 and one.more["level"] == 0.05
    assert other.estimate is not None and other.p_adjusted is None and other.more["refuted"] is None
    assert summary.sentence([other], "Chichewa") == (
        "In Chichewa, no hypothesis has a verdict: 1 of 1 are exploratory."
    )
    (nobody,) = answered(tmp_path, points, {**GAP, "seeds": [7]})
    assert nobody.verdict == "no data" and "share no seed" in nobody.text


def test_a_regime_has_its_own_hypotheses(tmp_path: Path) -> None:
    given, path = (
        HypothesisData.of([], both(tmp_path), [], "nya"),
        file(tmp_path, GAP, {**GAP, "id": "wsd", "regime": "wsd"}),
    )
    found = {regime: [one.claim.id for one in answers(path, given, regime)] for regime in (None, "cosine", "wsd")}
    assert found == {None: ["gap"], "cosine": ["gap"], "wsd": ["gap", "wsd"]}


BETWEEN = {
    "id": "between",
    "type": "gap",
    **HEAD,
    "statement": "Under one cosine, TIES leads by more than with annealed budgets.",
    "terms": [
        {"regime": "cosine", "methods": PAIR, "budget": "450k", "weight": 1},
        {"regime": "wsd", "methods": PAIR, "budget": "450k", "weight": -1},
    ],
}
SCORES_BETWEEN = {
    **CONTRAST,
    "id": "scores",
    "terms": [
        {"regime": "cosine", "method": "ties", "budget": "10k", "weight": 1},
        {"regime": "wsd", "method": "ties", "budget": "10k", "weight": -1},
    ],
}


def test_a_report_over_regimes_answers_what_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TIES leads by 0.05 under one cosine and by 0.02 with annealed budgets, on the same seeds and items."""
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    monkeypatch.setattr("pipeline.report.figures.javascript", lambda: "")
    monkeypatch.chdir(tmp_path)
    file(tmp_path / hypotheses.FOLDER, {**GAP, "statement": "TIES leads."}, BETWEEN, SCORES_BETWEEN)
    for regime, above in (("wsd", 0.02), ("cosine", 0.05)):
        points = both(tmp_path / regime, above, seeds=(0, 1, 2))
        gains = {"ties": (10 * above, 0.0, 0.0)}
        scored = Run(tmp_path / regime / "run", gains, {}, seeds=(0,)).evaluations
        configs = {f"{regime} nya 450k": {"name": "study", "regime": regime}}
        info = replace(INFO, title="study", language_name="བོད་སྐད", configs=configs)
        sources.Sources(info=info, evaluations=scored, frontier=points).render(tmp_path / f"outputs/{regime}")
    assert main(["report", "outputs/wsd", "outputs/cosine", "out=outputs/both"]) == 0
    assert "TIES (cosine)" in capsys.readouterr().out

    def answered_in(name: str) -> dict[str, Any]:
        return {row["id"]: row for row in json.loads((tmp_path / f"outputs/{name}/claims.json").read_text())}

    alone, over_both = answered_in("wsd"), answered_in("both")
    assert list(alone) == ["gap"] and list(over_both) == ["between", "scores"]
    effects = [answered_in(name)["gap"]["effect"] for name in ("cosine", "wsd")]
    assert over_both["between"]["effect"] == pytest.approx(effects[0] - effects[1]) == pytest.approx(0.03)
    assert over_both["between"]["verdict"] == "supported" and over_both["between"]["seeds"] == 3
    assert over_both["scores"]["effect"] == pytest.approx(0.5 - 0.2)
    html = (tmp_path / "outputs/both/report.html").read_text()
    assert "<h1>བོད་སྐད, experiment study: wsd and cosine" in html
    assert "Under one cosine, TIES leads by more than with annealed budgets (+0.030 in accuracy, 95% CI" in html
    again = sources.read(tmp_path / "outputs/both")
    assert again.info.regimes == ("wsd", "cosine")
    collect.compare_regimes([sources.read(Path("outputs") / one) for one in ("wsd", "cosine")], Path("outputs"))
    assert answered_in(collect.BETWEEN) == over_both, "a run of both regimes writes the same report"


def test_a_plan_without_a_regime_is_found_early(tmp_path: Path) -> None:
    stated = hypotheses.read(file(tmp_path, BETWEEN))
    known = [hypotheses.in_regime(method, regime) for method in PAIR for regime in ("wsd", "cosine")]
    assert hypotheses.without_data(stated, known, {450_000}) == {}
    lacking = hypotheses.without_data(stated, [one for one in known if one.startswith("wsd/")], {450_000})
    assert lacking["between"].startswith("the method cosine/ties is not in the experiment")


def test_contrasts_are_paired_differences_and_counts_are_shares(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST)
    folder = run.evaluations[0].folder
    knob = FrontierPoint(method="ties", ct_tokens=BUDGETS[0], seed=0, settings={"lambda": 2}, dev=folder, folder=folder)
    given = HypothesisData.of(run.evaluations, [knob], merges.read_audits(run.audits), "nya")
    shares = [{"method": "ties", "budget": "1M"}, {"method": "ties", "budget": "10k", "weight": -1}]
    lost = {**CONTRAST, "id": "lost", "type": "count", "kind": "lost_top_share", "terms": shares}
    missing = {**CONTRAST, "id": "missing", "terms": [{"method": "ties", "budget": "10k", "knob": {"lambda": "7e-4"}}]}
    there = {**CONTRAST, "id": "there", "terms": [{"method": "ties", "budget": "10k", "knob": {"lambda": 2.0}}]}
    base = {**CONTRAST, "id": "base", "terms": [{"method": "sft", "budget": "10k"}, {"method": "base", "budget": 0}]}
    file_ = file(tmp_path / "h", CONTRAST, lost, missing, there, base, {**lost, "id": "none", "terms": base["terms"]})
    paired, counted, absent, point_, without_ct, none = answers(file_, given)
    evidence = Evidence(run.evaluations, "nya")
    cells = [("ties", BUDGETS[0]), ("ct_then_sft", BUDGETS[0])]
    assert paired.estimate == evidence.difference("accuracy", [cells[0]], [cells[1]])
    assert counted.estimate is not None and counted.estimate.value == pytest.approx(0.2)
    assert counted.verdict == "supported" and counted.estimate.documents == 0
    assert absent.verdict == none.verdict == "no data" and "scores of TIES at 10k with \u03bb 7e-4." in absent.text
    assert point_.estimate is not None and without_ct.estimate is not None
    assert "it needs the audit of SFT at 10k" in none.text


def test_a_contrast_may_be_of_the_tasks_in_english(tmp_path: Path) -> None:
    evaluations = []
    for method, of_target, of_english in (("ties", 0.5, 0.6), ("ct_then_sft", 0.3, 0.7)):
        for seed in (0, 1):
            folder = write(tmp_path / f"{method}-{seed}", {"next": share(of_target)}, [2.0] * 40)
            other = write(tmp_path / f"{method}-{seed}-en", {"next": share(of_english)}, [1.5] * 40, language="en")
            for name in ("scores.jsonl", "samples.jsonl"):
                (folder / name).write_text((folder / name).read_text() + (other / name).read_text())
            evaluations.append(Evaluation(method, 10_000, seed, folder))
    given = HypothesisData.of(evaluations, [], [], "nya")
    english = {**CONTRAST, "id": "english", "language": "en"}
    of_bits = {**english, "id": "bits", "kind": "bits", "terms": CONTRAST["terms"][:1]}
    unknown = {**english, "id": "unknown", "language": "bod"}
    stated = file(tmp_path / "h", CONTRAST, english, of_bits, unknown)
    values = [one.estimate and round(one.estimate.value, 3) for one in answers(stated, given)]
    assert values == [0.2, -0.1, 1.5, None]
    assert [one.claim.statistic[:27] for one in answers(stated, given)][1] == "weighted sum of accuracy in"
    with pytest.raises(BadInput, match="Leave out family, language and knob"):
        hypotheses.read(file(tmp_path / "bad", {**english, "type": "count", "kind": "lost_top_share"}))


def commit(folder: Path, when: str) -> None:
    env = os.environ | {"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["add", "-A"], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", *arguments], cwd=folder, env=env, check=True)


def minute(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_the_commit_of_each_entry_as_it_is_now_counts(tmp_path: Path) -> None:
    assert hypotheses.commit_times(file(tmp_path / "elsewhere", GAP)) is None, "no repository"
    path = file(tmp_path / "repo", {**GAP, "source": "2026-01-01"}, CONTRAST)
    subprocess.run(["git", "init", "-q"], cwd=path.parent, check=True)
    assert hypotheses.commit_times(path) == {"gap": None, "contrast": None}
    commit(path.parent, "2026-01-01T10:00:00+00:00")
    file(path.parent, {**GAP, "source": "2026-01-01"}, {**CONTRAST, "margin": 0.1})
    (path.parent / "other").write_text("")
    first = minute("2026-01-01T10:00:00+00:00")
    assert hypotheses.commit_times(path) == {"gap": first, "contrast": None}
    commit(path.parent, "2026-01-02T10:00:00+00:00")
    path.write_text(f"# a comment\n{path.read_text()}")
    commit(path.parent, "2026-01-03T10:00:00+00:00")
    assert hypotheses.commit_times(path) == {"gap": first, "contrast": minute("2026-01-02T10:00:00+00:00")}


def test_hypotheses_that_are_younger_than_their_scores_get_no_verdict(tmp_path: Path) -> None:
    points = both(tmp_path)
    for each in points:
        finished = "2026-02-01T00:00:00+00:00" if each.method == "ties" else "2026-03-01T00:00:00+00:00"
        (each.folder / "stage.json").write_text(json.dumps({"finished": finished}))
    path = file(tmp_path / "repo", GAP)
    subprocess.run(["git", "init", "-q"], cwd=path.parent, check=True)
    given = HypothesisData.of([], points, [], "nya")
    found = {}
    for when in (None, "2026-02-02T00:00:00+00:00", "2026-01-31T00:00:00+00:00"):
        if when:
            file(path.parent, {**GAP, "source": when})
            commit(path.parent, when)
        (answer,) = answers(path, given)
        found[when] = (answer.verdict, answer.more["stated"])
    assert list(found.values()) == [("exploratory", "after"), ("exploratory", "after"), ("supported", "before")]
    assert "Stated 2026-01-31 00:00 UTC, before the first score." in answer.text
    assert hypotheses.first_scored([tmp_path]) is None
    assert hypotheses.stated(datetime(2026, 1, 1, tzinfo=UTC), None).when == "unknown"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with frontiers at one budget and a hypothesis about them, drawn again from its sources."""
    root = tmp_path_factory.mktemp("run")
    run = Run(root, GOOD, LOST)
    points = both(root, budget=BUDGETS[0]) + frontier(root, "ties_sv_1", [(3.0, 0.3), (3.2, 0.4)], budget=BUDGETS[0])
    entries = [
        {**GAP, "terms": [{"methods": PAIR, "budget": "10k"}], "statement": "At 10k tokens, TIES <wins>."},
        CONTRAST,
    ]
    file(root / hypotheses.FOLDER, *entries)
    kept = sources.Sources(
        info=replace(INFO, title="study"),
        evaluations=run.evaluations,
        audits=run.audits,
        choices=run.choices,
        frontier=points,
    )
    before = Path.cwd()
    os.chdir(root)
    try:
        kept.save(root)
        sources.read(root).render(root / "out")
    finally:
        os.chdir(before)
    assert sources.read(root / "out").frontier == points
    return root / "out"


def test_a_report_answers_the_hypotheses_of_its_experiment(reported: Path) -> None:
    rows = json.loads((reported / "claims.json").read_text())
    assert [(row["id"], row["verdict"], row["role"]) for row in rows] == [
        ("gap", "supported", "primary"),
        ("contrast", "supported", "primary"),
    ]
    html = (reported / "report.html").read_text()
    assert (
        "At 10k tokens, TIES &lt;wins&gt; (+0.050 in accuracy, 95% CI" in html
        and "those of <code>hypotheses/study.yaml</code>" in html
    )
    assert "1. At 10k tokens, TIES &lt;wins&gt;." in html and "When it was stated is unknown" in html
    assert "We stated these claims" not in html and 'id="chart-forest"' in html
    assert "TIES minus CT-then-SFT" in html


def test_frontiers_are_files(reported: Path) -> None:
    with (reported / "frontier.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 12 and list(rows[0])[:3] == ["method", "knob", "ct_tokens"]
    ties = next(row for row in rows if row["method"] == "ties" and row["knob"] == "λ 1")
    assert (ties["dev_bits"], ties["test_accuracy"], ties["pruned"]) == ("2.0", "0.35", "false")
    gaps = json.loads((reported / "gaps.json").read_text())
    assert [(row["first"], row["second"]) for row in gaps] == [("ties", "ct_then_sft"), ("ties_sv_1", "ct_then_sft")]
    assert gaps[0]["gap"]["value"] == pytest.approx(0.05) and gaps[1]["gap"] is None and gaps[1]["separate"]
    for name in ("frontiers-10k", "forest"):
        svg = (reported / "figures" / f"{name}.svg").read_text()
        assert "TIES" in svg and "</svg>" in svg
    assert "fewer than 0.05 shared bits per byte" in svg


def test_without_frontiers_and_hypotheses_a_report_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    folder = Run(tmp_path / "run", GOOD, LOST).render(tmp_path / "out").page.parent
    assert not {"frontier.csv", "gaps.json"} & {path.name for path in folder.iterdir()}
    assert 'id="frontiers"' not in (folder / "report.html").read_text()


def test_frontiers_that_share_no_bits_have_no_gap_to_draw(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", GOOD, LOST)
    apart = [("ct_then_sft", [(2.0, 0.3), (2.2, 0.4)]), ("ties", [(3.0, 0.3), (3.2, 0.4)])]
    points = [one for method, curve in apart for one in frontier(tmp_path, method, curve, budget=BUDGETS[0])]
    seen = view.page_view(
        analyse(Inputs(info=INFO, evaluations=run.evaluations, audits=run.audits, choices=run.choices, frontier=points))
    )
    assert seen.has["frontiers"] and not seen.has["gap"] and not seen.has["forest"]
    html = page.render(view.TEMPLATE, seen)
    assert "No gap is measured" in html and 'data-state="pair"' not in html and 'id="chart-forest"' not in html


def test_an_experiments_file_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = file(tmp_path / hypotheses.FOLDER, GAP)
    assert hypotheses.find("study") == path.relative_to(tmp_path)
    assert hypotheses.find("other") is None and hypotheses.find("../study") is None
