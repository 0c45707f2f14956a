"""A worker: it makes its own stages or all of a plan, and what fails takes down what needs it and nothing else."""

from __future__ import annotations

from pathlib import Path

from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.stages.stage import Stage
from pipeline.store import Store
from tests.pipeline import toy
from tests.pipeline.toy_stage import toy_stage


def worker(root: Path, plan: tuple[Stage, ...], own: tuple[Stage, ...] | None, makers: object = None) -> Executor:
    keys = None if own is None else {stage.key for stage in own}
    maker = (makers or toy.Makers()).__getitem__  # type: ignore[attr-defined]
    return Executor(Store(root), plan, Journal(root / "journal.jsonl"), maker=maker, assigned=keys)


def happened(root: Path, event: str) -> list[str]:
    return [entry["slug"] for entry in Journal(root / "journal.jsonl").events(event)]


def test_a_job_makes_its_own_stages_only(tmp_path: Path) -> None:
    plan = toy.plan()
    worker(tmp_path, plan, plan[2:4]).compute(plan[2:4])
    assert happened(tmp_path, "started") == [] and happened(tmp_path, "not_run") == ["toy-20", "toy-40"]
    worker(tmp_path, plan, plan[:2]).compute(plan[:2])
    worker(tmp_path, plan, plan[2:4]).compute(plan[2:4])
    assert happened(tmp_path, "published") == ["toy", "toy", "toy-20", "toy-40"]


def test_what_fails_takes_down_only_what_needs_it(tmp_path: Path) -> None:
    def fails(job: object) -> None:
        raise ZeroDivisionError("of all things")

    corpus, other = toy_stage("corpus", "toy", {"words": 1}), toy_stage("corpus", "other", {"words": 2})
    items = [toy_stage("items", f"of-{parent.slug}", {}, {"corpus": parent}) for parent in (corpus, other)]
    plan = (corpus, *items, other)
    makers = {"corpus": lambda job: fails(job) if job.stage.slug == "toy" else None, "items": lambda job: None}
    worker(tmp_path, plan, plan, makers).compute((corpus, other, *items))
    assert happened(tmp_path, "failed") == ["toy"] and happened(tmp_path, "published") == ["other", "of-other"]
    assert [entry["message"] for entry in Journal(tmp_path / "journal.jsonl").events("not_run")] == [
        "items of-toy was not run, as corpus toy is missing"
    ]


def test_a_job_never_waits_for_another_s_claim(tmp_path: Path) -> None:
    corpus = toy.plan()[0]
    with Store(tmp_path).claim(corpus):
        worker(tmp_path, (corpus,), (corpus,)).compute((corpus,))
    assert happened(tmp_path, "not_run") == ["toy"] and happened(tmp_path, "started") == []


def test_a_damaged_parent_is_not_made_anew_by_whoever_reads_it(tmp_path: Path) -> None:
    plan = toy.plan()
    worker(tmp_path, plan, plan[:2]).compute(plan[:2])
    (next((tmp_path / "base").iterdir()) / "model" / "words").write_text("no longer what it was")
    worker(tmp_path, plan, plan[2:3]).compute(plan[2:3])
    assert (
        happened(tmp_path, "not_run") == ["toy-20"]
        and "moved away" in Journal(tmp_path / "journal.jsonl").events("not_run")[0]["message"]
    )


def test_a_worker_of_everything_goes_on_after_a_failure_and_does_not_try_it_again(tmp_path: Path) -> None:
    plan = toy.plan()

    def fails(job: object) -> None:
        raise ZeroDivisionError("of all things")

    makers = {**toy.Makers(), "ct": fails}
    for _ in range(2):  # as two processes of one run, which share its journal
        worker(tmp_path, plan, None, makers).compute(plan)
    assert happened(tmp_path, "published") == ["toy", "toy"]
    assert sorted(happened(tmp_path, "failed")) == ["toy-20"]
    assert set(happened(tmp_path, "not_run")) == {"toy-40", "toy-20"}
