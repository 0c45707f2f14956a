"""`slackmerge make`: one stage of a plan with its missing parents, beside whatever else uses the store."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import BadInput
from pipeline import check, cli, run_plan, sweep
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run import make
from pipeline.run.make import find_planned, find_stage
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage, in_order
from pipeline.store import Store
from tests.messages import assert_one_line, assert_wording
from tests.pipeline import small, toy
from tests.pipeline.toy_stage import toy_stage

STAGES = small.stages()


def settings(folder: Path) -> list[str]:
    return ["experiment=test", f"store={folder}/store", f"outputs={folder}/outputs"]


def published(store: Store, stage: Stage) -> None:
    """An entry of a stage, with a file in it."""
    out = store.work(stage) / "out"
    out.mkdir(parents=True)
    (out / "note.txt").write_text("ꯃꯩꯇꯩꯂꯣꯟ")
    store.publish(stage, out, {"finished": "now", "seconds": 1.0, "amount": 1.0})


def plan_of(store: Store, stages: tuple[Stage, ...]) -> RunPlan:
    """As much of a plan as `needed` looks at, over toy stages."""

    def is_missing(stage: Stage) -> bool:
        return store.find(stage) is None

    return SimpleNamespace(stages=stages, store=store, is_missing=is_missing)  # type: ignore[return-value]


def test_a_stage_is_found_by_its_kind_and_slug_or_key() -> None:
    wanted = next(stage for stage in STAGES if stage.kind == "eval" and "ties" in stage.slug)
    assert find_stage(STAGES, "eval", wanted.slug) is wanted and find_stage(STAGES, "eval", wanted.key) is wanted
    twins = [toy_stage("ct", "nya", {"seed": seed}) for seed in (0, 1)]
    with pytest.raises(BadInput, match=f"^SLUG: 2 stages of kind ct .* got nya. Pass a key: {twins[0].key}, "):
        find_stage(twins, "ct", "nya")
    assert find_stage(twins, "ct", twins[1].key) is twins[1]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["mrege", "x"], "KIND: "),
        (["leaks", "x"], "KIND: "),
        (["ct", "nya-4069-s0"], "SLUG: "),
        (["ct", "en-s0"], "SLUG: "),
        (["ct", "ߒߞߏ"], "SLUG: "),
        (["ct"], "make: "),
        (["ct", "nya-4096-s0", "launcher=slurm"], "launcher: "),
        (["ct", "nya-4096-s0", "ct.tokns=4k"], "ct.tokns: "),
    ],
)
def test_what_cannot_be_made_is_one_line(
    words: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["make", *words, *settings(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert_one_line(error, key)
    assert_wording(f"make: {' '.join(words)}", error)
    assert not (tmp_path / "store").exists() and not (tmp_path / "outputs").exists()


def test_at_most_ten_names_are_listed() -> None:
    many = [toy_stage("ct", f"stage-{number}", {"seed": number}) for number in range(30)]
    with pytest.raises(BadInput, match=r"Choose one of (stage-\d+, ){9}stage-9 and 20 more\."):
        find_stage(many, "ct", "xyz")


def test_the_weights_of_a_merge_need_no_setting(tmp_path: Path) -> None:
    _, plan, stage = find_planned("weights", "nya-ties_sv_1-4096-s0", settings(tmp_path), multirun=False)
    written = run_plan.plan(sweep.expand([*settings(tmp_path), "merge.write=true"], multirun=False))
    assert stage in plan.stages and stage.key in written.by_key
    without = run_plan.plan(sweep.expand(settings(tmp_path), multirun=False))
    assert stage.parents["merge"].key in without.by_key and stage.key not in without.by_key


def test_what_is_needed_is_the_missing_parents_alone(tmp_path: Path) -> None:
    store, stages = Store(tmp_path), toy.plan()
    corpus, model, _, large_ct, _, score = stages
    plan = plan_of(store, stages)
    assert make.missing_ancestry(plan, score) == [corpus, model, large_ct, score], "no other budget"
    published(store, large_ct)
    assert make.missing_ancestry(plan, score) == [score], "what a finished parent was made from is not read"
    published(store, score)
    assert make.missing_ancestry(plan, score) == []


def test_a_smaller_budget_is_continued_and_keeps_its_state(tmp_path: Path) -> None:
    store, stages = Store(tmp_path), toy.plan()
    journal, makers = Journal(tmp_path / "journal.jsonl"), toy.Makers()
    corpus, model, small_ct, large_ct, *_ = stages
    Executor(store, stages, journal, maker=makers.__getitem__).compute([corpus, model, small_ct])
    one = Executor(store, [large_ct], journal, maker=makers.__getitem__, drops_states=False)
    one.compute([large_ct])
    assert journal.events("started")[-1]["resumed_tokens"] == 20
    for stage in (small_ct, large_ct):
        entry = store.find(stage)
        assert entry is not None and (entry.path / "state").exists(), stage


def test_a_stage_and_its_parents_are_made_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["make", "corpus", "nya-bible", *settings(tmp_path)]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("corpus nya-bible: 1 stage to compute, about ")
    assert lines[-1].startswith("[1/1] corpus nya-bible: done in ")
    summary = json.loads(last)
    assert summary["stages_run"] == 1 and Path(summary["folder"]).parent == tmp_path / "store" / "corpus"
    runs = list((tmp_path / "outputs").glob("*/runs/*"))
    assert cli.main(["make", "corpus", "nya-bible", *settings(tmp_path)]) == 0
    said, again = capsys.readouterr().out.splitlines()
    assert said == "corpus nya-bible: finished before; nothing to compute"
    assert json.loads(again)["folder"] == summary["folder"] and json.loads(again)["stages_run"] == 0
    assert list((tmp_path / "outputs").glob("*/runs/*")) == runs, "what computes nothing leaves nothing"


def test_a_stage_that_a_run_is_making_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expanded = sweep.expand(settings(tmp_path), multirun=False)
    corpus = find_stage(run_plan.plan(expanded).stages, "corpus", "nya-bible")
    store, held, waited = Store(tmp_path / "store"), threading.Event(), threading.Event()
    on_wait = Executor.on_wait

    def noted(executor: Executor, stage: Stage) -> None:
        on_wait(executor, stage)
        waited.set()

    def another_run() -> None:
        with store.claim(corpus):
            held.set()
            assert waited.wait(60)
            published(store, corpus)

    monkeypatch.setattr(Executor, "on_wait", noted)
    other = threading.Thread(target=another_run)
    other.start()
    assert held.wait(60)
    assert cli.main(["make", "corpus", "nya-bible", *settings(tmp_path)]) == 0
    other.join()
    lines = capsys.readouterr().out.splitlines()
    assert any("waits for another job" in line for line in lines)
    summary = json.loads(lines[-1])
    assert summary["stages_run"] == 0 and (Path(summary["folder"]) / "note.txt").exists()


def test_room_on_the_disk_is_asked_for_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = sweep.expand(settings(tmp_path), multirun=False)
    plan = run_plan.plan(expanded)
    stages = plan.stages
    corpus, ct = find_stage(stages, "corpus", "nya-bible"), find_stage(stages, "ct", "nya-4096-s0")
    monkeypatch.setattr(check.resources.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    refused = [str(finding) for finding in check.check_plan(plan, in_order([ct])) if finding.fails]
    assert refused and "this run may need" in refused[0]
    assert not [finding for finding in check.check_plan(plan, [corpus]) if finding.fails]
