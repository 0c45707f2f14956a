"""The numbers of `lm_eval` on its command line, by a chat template with examples and a system message, in Tamil."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.files import read_jsonl
from eval import harness, task_set
from eval.harness import Scores
from eval.language_model import PackedLM
from eval.prompting import Prompting
from tests.eval import local_tasks
from tests.eval.chat_models import saved

SYSTEM = "சுருக்கமாக பதில் சொல்."
ASKING = Prompting("auto", SYSTEM)
GENERATED = ("mgsm_tam", "flores_tam", "xlsum_tam")


@dataclass
class Run:
    """Our scores, and the results and logged samples of the command line, of one model folder and one of tasks."""

    ours: Scores
    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    asked: list[tuple[Any, Any]]  # our requests with their answers


def scored(model: Path, tasks: Path, **settings: Any) -> Scores:
    prepared = task_set.prepare(include_path=tasks, language="tam", fewshot=2)
    return harness.evaluate_folder(model, prepared, prompting=ASKING, batch_tokens=900, **settings)


def targets_of(answers: dict[str, list[str]]) -> dict[str, list[str]]:
    """Targets of which some are what the model said: a first or a last word, or the beginning of a text."""
    words = [answer.split() or ["-"] for answer in answers["mgsm_tam"]]
    sums = [own[0] if place % 2 == 0 else own[-1] if place == 1 else "இல்லை" for place, own in enumerate(words)]
    halves = {
        name: [f"{answer[: len(answer) * 2 // 3]} நீர் மலை ." for answer in answers[name]]
        for name in ("flores_tam", "xlsum_tam")
    }
    return {"mgsm_tam": sums, **halves}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("parity")
    model, tasks = saved(folder / "model"), local_tasks.write(folder / "tasks")
    first = scored(model, tasks)
    said = {name: [row["answer"] for row in first.samples if row["task"] == name] for name in GENERATED}
    tasks = local_tasks.write(folder / "answered", targets=targets_of(said))
    with noted_requests() as asked:
        ours = scored(model, tasks)
    return Run(ours, *command_line(model, tasks, folder / "out"), asked)


@contextmanager
def noted_requests() -> Iterator[list[tuple[Any, Any]]]:
    """What our model is asked within the context, with its answers."""
    noted: list[tuple[Any, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("loglikelihood", "generate_until"):
            own = getattr(PackedLM, kind)

            def note(lm: Any, requests: list[Any], own: Any = own) -> list[Any]:
                noted.extend(zip(requests, found := own(lm, requests), strict=True))
                return found

            patch.setattr(PackedLM, kind, note)
        yield noted


def command_line(model: Path, tasks: Path, out: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """`lm_eval` on its command line, in this process; it does not index the tasks that it ships."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.tasks import TaskManager

    listed = ["--tasks", ",".join(local_tasks.TASKS), "--include_path", str(tasks), "--output_path", str(out)]
    how = ["--apply_chat_template", "--num_fewshot", "2", "--system_instruction", SYSTEM, "--log_samples"]
    which = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    start = TaskManager.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISABLE_MULTIPROC", "1")
        patch.setattr(sys, "argv", ["lm_eval", "run", *which, *listed, *how, "--batch_size", "1"])
        patch.setattr(
            TaskManager, "__init__", lambda self, *a, **given: start(self, *a, **{**given, "include_defaults": False})
        )
        cli = HarnessCLI()
        cli.execute(cli.parse_args())
    (results,) = out.rglob("results_*.json")
    logged = {name: next(out.rglob(f"samples_{name}_*.jsonl")) for name in local_tasks.TASKS}
    samples = {name: read_jsonl(path) for name, path in logged.items()}
    return json.loads(results.read_text(encoding="utf-8"))["results"], samples


def test_aggregates_are_those_of_the_command_line(run: Run) -> None:
    expected = {
        (task, key.removesuffix(",none")): value
        for task, values in run.results.items()
        for key, value in values.items()
        if "," in key and "_stderr" not in key
    }
    found = {(row["task"], row["metric"]): row for row in run.ours.records if row["family"] != "mean"}
    assert set(expected) == set(found) - {("choice_tam", "answer_bits_per_byte")}
    for key, value in expected.items():
        row = found[key]
        assert row["value"] == pytest.approx(value, rel=1e-9, abs=1e-9), key
        assert row["low"] <= row["value"] <= row["high"] and row["chat"] is True, key
    sums = [found["mgsm_tam", f"exact_match,{name}"]["value"] for name in ("strict-match", "flexible-extract")]
    assert 0 < sums[1] <= sums[0] < 1
    assert all(5 < found["flores_tam", metric]["value"] < 95 for metric in ("bleu", "chrf", "ter"))
    assert 0.2 < found["xlsum_tam", "rougeL"]["value"] < 1
    lower = {key for key, row in found.items() if row.get("higher_is_better") is False}
    assert lower == {("flores_tam", "ter")}
    assert {key for key, row in found.items() if row.get("aggregate")} == {
        ("flores_tam", metric) for metric in ("bleu", "ter", "chrf")
    }


def test_texts_are_those_of_the_command_line(run: Run) -> None:
    for name in GENERATED:
        logged = [row for row in run.samples[name] if row["filter"] != "flexible-extract"]
        theirs = sorted((row["doc_id"], row["resps"][0][0]) for row in logged)
        own = [(int(row["id"]), row["answer"]) for row in run.ours.samples if row["task"] == name]
        assert sorted(own) == theirs and len(own) == 4


def test_prompts_and_log_likelihoods_are_those_of_the_command_line(run: Run) -> None:
    samples = run.samples
    theirs = {
        (name, row["doc_id"], row["arguments"]["gen_args_0"]["arg_0"]) for name in samples for row in samples[name]
    }
    assert {(request.task_name, request.doc_id, request.args[0]) for request, _ in run.asked} == theirs
    assert len(theirs) == 16
    prompt = next(prompt for name, _, prompt in sorted(theirs) if name == "mgsm_tam")
    assert prompt.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nகேள்வி:")
    assert prompt.count("<|im_start|>assistant\n") == 3 and prompt.endswith("<|im_start|>assistant\n")
    choices = [(request, found) for request, found in run.asked if request.task_name == "choice_tam"]
    assert len(choices) == 16
    for request, found in choices:
        row = next(row for row in samples["choice_tam"] if row["doc_id"] == request.doc_id)
        assert request.args[1] == row["arguments"][f"gen_args_{request.idx}"]["arg_1"]
        value, greedy = row["filtered_resps"][request.idx]
        assert found[0] == pytest.approx(float(value), rel=1e-5)
        assert found[1] is (str(greedy) == "True")
