"""The tasks of an evaluation, in lm-eval, built once and used for every checkpoint: items, text and lm-eval's YAMLs."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.items import item_error, text_error
from common.validation import parse_json
from eval.task_checks import check_metrics, check_shots, check_task, lower_is_better, missing_package

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

TEMPLATES = Path(__file__).parent / "tasks"
BITS, CORRECT_BITS, CALIBRATED = "bits_per_byte", "answer_bits_per_byte", "acc_calibrated"  # metrics
UNLABELLED = "@unlabelled"  # what the name of a task's calibration prompts ends with
BY_TEMPLATE = "@chat"  # what the name of a task ends with in chat prompts, if it is scored with plain ones too
SHOTS_SEED = 1234  # of the examples in prompts, as in lm_eval
CALIBRATION_PROMPTS = 100  # enough for a label's mean probability to within a few percent of itself
UNDETERMINED = "und"  # BCP 47: the language of a user's task that states none


Shots = int | Mapping[str, int] | None


@dataclass
class ScoredTask:
    """A task of lm-eval, with facts for its records.

    primary: the metric that compares checkpoints.
    chance, trivial: the accuracy of guessing and of the task's trivial baseline; None if they are not known.
    labels: the choices, if they are the same for all items (in any order).
    calibration: unlabelled prompts that share the label set (None: the task's own prompts).
    """

    task: Task
    family: str
    language: str
    primary: str
    chance: float | None = None
    trivial: float | None = None
    labels: tuple[str, ...] | None = None
    calibration: Task | None = None


@dataclass
class TaskSet:
    """Tasks by name, how many documents to take of each (all: None), and the tokens of their texts, per tokenizer."""

    entries: dict[str, ScoredTask]
    limit: int | None = None
    encodings: dict[Any, dict[Any, list[int]]] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, Task]:
        """Return all tasks of lm-eval, including those of calibration prompts."""
        tasks = {name: entry.task for name, entry in self.entries.items()}
        return tasks | {
            f"{name}{UNLABELLED}": entry.calibration for name, entry in self.entries.items() if entry.calibration
        }


def prepare(
    items: Path | None = None,
    text: Path | None = None,
    *,
    split: str = "test",
    limit: int | None = None,
    max_chars: int | None = None,
    include_path: Path | None = None,
    names: Sequence[str] = (),
    language: str = UNDETERMINED,
    fewshot: Shots = None,
) -> TaskSet:
    """Read and build every task once.

    items: folder of `<family>_<language>.<split>.jsonl`; each is a multiple-choice task, named by the file.
    text: folder of `<language>.<split>.jsonl`; each is a task `bits_per_byte_<language>`, on the first `max_chars`
    characters of each document (None: on all of it).
    include_path: folder of a user's lm-eval YAMLs, with data paths absolute or relative to this folder.
    names: names of those (empty: all), and of tasks that lm-eval ships.
    language: of tasks that do not state `metadata: {language: …}`.
    fewshot: examples in each prompt of lm-eval's tasks; by task, for some; None: as each task states.
    Raises BadInput for what cannot be read, found or built.
    """
    if split not in SPLITS:
        raise BadInput(f"split: {split!r} must be one of {', '.join(SPLITS)}")
    for option, number in (("limit", limit), ("max_chars", max_chars)):
        if number is not None and number < 1:
            raise BadInput(f"{option}: {number} must be 1 or more")
    entries: dict[str, ScoredTask] = {}
    if items is not None:
        for name, path in find_files(items, split, "items").items():
            dev = items / f"{name}.dev.jsonl"
            unlabelled = read_items(dev)[:CALIBRATION_PROMPTS] if split != "dev" and dev.exists() else []
            entries[name] = items_task(name, read_items(path), limit, unlabelled)
    if text is not None:
        for text_language, path in find_files(text, split, "text").items():
            name, documents = f"bits_per_byte_{text_language}", read_documents(path)
            entries[name] = text_task(name, text_language, [truncate(document, max_chars) for document in documents])
    if include_path is not None or names:
        for name, task in load_tasks(include_path, names, fewshot).items():
            if name in entries:
                raise BadInput(f"tasks: {name!r} is the name of an items file too; rename one")
            entries[name] = external_task(name, task, language, limit)
    if not entries:
        raise BadInput(
            "tasks: nothing to evaluate; give a folder of items, of text or of lm-eval YAMLs, or names of tasks"
        )
    for entry in entries.values():
        cache_requests(entry.task)
        if entry.calibration is not None:
            cache_requests(entry.calibration)
    return TaskSet(entries, limit)


def make_task(template: str, name: str, rows: list[Row]) -> Task:
    """Return the task of one of our templates over rows.

    Rows are passed in memory: `dataset_path: json` would take a second and a cache on disk.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)  # it warns of every custom dataset
    data = {"data": Dataset.from_list(rows)}
    return ConfigurableTask(
        config={**load_yaml(TEMPLATES / template), "task": name, "custom_dataset": lambda **_: data}
    )


def items_task(name: str, rows: list[Row], limit: int | None, unlabelled: list[Row]) -> ScoredTask:
    """Return a multiple-choice task over items; chance and trivial are those of the first `limit` items.

    unlabelled: items of another split, for calibration if all items of both have the same choices.
    """
    task, scored = make_task("items.yaml", name, rows), rows[:limit]
    labels = fixed_labels(rows)
    same = labels is not None and bool(unlabelled) and fixed_labels([rows[0], *unlabelled]) is not None
    return ScoredTask(
        task,
        rows[0]["family"],
        rows[0]["language"],
        task.config.metadata["primary"] if labels is None else CALIBRATED,
        sum(1 / len(row["choices"]) for row in scored) / len(scored),
        sum(row["trivial"] == row["answer"] for row in scored) / len(scored),
        labels,
        make_task("items.yaml", f"{name}{UNLABELLED}", unlabelled) if same else None,
    )


def fixed_labels(rows: Sequence[Row]) -> tuple[str, ...] | None:
    """Return the choices of the first item, if two items or more all have the same ones in any order; else None."""
    first = rows[0]["choices"]
    same = all(sorted(row["choices"]) == sorted(first) for row in rows)
    return tuple(first) if same and len(rows) > 1 and len(set(first)) == len(first) else None


def text_task(name: str, language: str, rows: list[Row]) -> ScoredTask:
    """Return a task of bits per byte of documents."""
    task = make_task("bits_per_byte.yaml", name, rows)
    return ScoredTask(task, task.config.metadata["family"], language, "bits_per_byte")


def truncate(document: Row, max_chars: int | None) -> Row:
    """Cut a document to its first `max_chars` characters, at the end of a word.

    Many short beginnings measure more than a few whole documents.
    """
    text = document["text"]
    if max_chars is None or len(text) <= max_chars:
        return document
    return {**document, "text": text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]}


def external_task(name: str, task: Any, language: str, limit: int | None) -> ScoredTask:
    """Return a task of lm-eval's YAMLs. By default its name is the family, and its first metric is primary."""
    metadata = task.config.metadata or {}
    chance = None
    if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input and not task.multiple_target:
        counts = [len(task.doc_to_choice(doc)) for _, doc in task.doc_iterator(limit=limit)]
        chance = sum(1 / count for count in counts) / len(counts)
    primary = metadata.get("primary", primary_metric(task))
    usable = usable_metrics(task)
    if primary not in usable and task.OUTPUT_TYPE != "generate_until":
        raise BadInput(
            f"tasks: {name} has no metric {primary!r} that is the mean of a number for each document"
            f" (it has {', '.join(usable) or 'none'}). Add one to its metric_list, such as acc or {BITS}."
        )
    if task.OUTPUT_TYPE == "generate_until" and primary not in (names := generated_metrics(task)):
        raise BadInput(
            f"tasks: {name} has no metric that gives a number, got primary {primary!r} (it has"
            f" {', '.join(names) or 'none'}). Name one of its own, or add one such as exact_match or chrf."
        )
    return ScoredTask(task, metadata.get("family", name), metadata.get("language", language), primary, chance)


def mean_metrics(task: Any) -> list[str]:
    """Return the metrics whose score is the mean over documents: not perplexity, F1 and the like."""
    from lm_eval.api.metrics import mean

    return [metric for metric, aggregate in task.aggregation().items() if aggregate is mean]


def usable_metrics(task: Any) -> list[str]:
    """Return the metrics of a task that are scored: means over documents, and bits per byte.

    For a task that generates also the other aggregates of lm-eval, such as chrF.
    """
    others = [metric for metric in task.aggregation() if metric == BITS]
    if task.OUTPUT_TYPE == "generate_until":
        others = [metric for metric in task.aggregation() if metric != "bypass"]
    return list(dict.fromkeys([*mean_metrics(task), *others]))


def generated_metrics(task: Any) -> list[str]:
    """Return the names of a generating task's metrics, alone and after each filter: `exact_match,strict-match`."""
    filters = [entry["name"] for entry in task.config.filter_list or ()]
    return [*(names := usable_metrics(task)), *(f"{metric},{name}" for metric in names for name in filters)]


def primary_metric(task: Any) -> str:
    """Return the first of a task's scored metrics, if possible one that is better the higher it is."""
    usable, lower = usable_metrics(task), lower_is_better(task)
    return next(iter([metric for metric in usable if metric not in lower] or usable or task.aggregation()))


def load_tasks(include_path: Path | None, names: Sequence[str], fewshot: Shots = None) -> dict[str, Task]:
    """Load tasks of a user's folder and tasks that lm-eval ships, by name; groups and tags as their members.

    fewshot: as in `prepare`; a task that states 0 keeps it, as in lm_eval.
    """
    if include_path and not os.path.isdir(include_path):  # Path.is_dir raises for a name that is too long
        raise BadInput(f"tasks: {include_path} is not a folder")
    folder = include_path.resolve() if include_path else None
    manager = task_manager(folder, False)
    wanted = list(names) or manager.all_subtasks
    if not wanted:
        raise BadInput(f"tasks: {include_path} holds no lm-eval YAML with a `task` (files end in .yaml)")
    if any(name not in manager.all_tasks for name in wanted):
        manager = task_manager(folder, True)
    for name in wanted:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise BadInput(f"tasks: {name!r} is unknown" + (f"; near it: {', '.join(close)}" if close else ""))
    loaded: dict[str, Task] = {}
    of_name: dict[str, list[str]] = {}
    with contextlib.chdir(folder or Path.cwd()):  # data paths in the YAMLs are relative to their folder
        for name in wanted:
            try:
                members = manager.load(name)["tasks"]
            except ImportError as error:
                raise BadInput(missing_package(name, error)) from error
            except Exception as error:  # whatever a user's YAML or an unreachable hub can raise
                said = " ".join(str(error).split())[:300]
                if "out of bounds for size 0" in said:  # of the first document
                    said = "it has no documents; see its data and its process_docs"
                raise BadInput(f"tasks: {name} cannot be loaded: {said}") from error
            loaded |= members
            of_name |= {name: list(members), **{member: [member] for member in members}}
    for name, shots in _shots(fewshot, of_name).items():
        if loaded[name].get_config("num_fewshot") != 0:
            loaded[name].set_config("num_fewshot", shots)
    for name, task in loaded.items():
        check_task(name, task)
        check_metrics(name, task)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SHOTS_SEED)  # as `lm_eval` itself does; its `evaluate` leaves both to the caller
        check_shots(name, task)
    return loaded


def _shots(fewshot: Shots, of_name: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the number of examples in a prompt, by task. of_name: the tasks of a name, several for a group."""
    by_name = dict.fromkeys(of_name, fewshot) if isinstance(fewshot, int) else fewshot or {}
    shots: dict[str, int] = {}
    for name, number in by_name.items():
        if name not in of_name:
            close = difflib.get_close_matches(name, list(of_name), n=3)
            near = f" Near it: {', '.join(close)}." if close else ""
            raise BadInput(f"eval.fewshot: must name tasks that are scored, got {name!r}.{near} Correct the name.")
        if number < 0:
            raise BadInput(f"eval.fewshot: must be 0 or more, got {number} for {name}. Set it to 0.")
        shots |= dict.fromkeys(of_name[name], number)
    return shots


@cache
def task_manager(folder: Path | None, shipped: bool) -> TaskManager:
    """Return lm-eval's index of tasks. With all that it ships it takes many seconds, once."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    for path in _yamls(folder):  # the index would leave a broken file out without a word
        try:
            load_yaml(path, resolve_func=False)
        except (YAMLError, ValueError, OSError) as error:
            raise BadInput(f"tasks: {path}: {' '.join(str(error).split())[:300]}") from None
    return TaskManager(include_path=folder, include_defaults=shipped)


def _yamls(folder: Path | None) -> Iterator[Path]:
    yield from sorted(folder.glob("**/*.yaml")) if folder else ()


def cache_requests(task: Any) -> None:
    """Make a task keep its requests: a second `evaluate` starts with the same ones, unanswered.

    They are kept for each prompt mode: plain, and each chat template with each system message. Building draws examples,
    so each build begins with the same seed.
    """
    build: Callable[..., None] = task.build_all_requests
    kept: dict[tuple[Any, ...], list[Any]] = {}

    def reuse(**kwargs: Any) -> None:
        if task.OUTPUT_TYPE == "loglikelihood_rolling":  # a text has no prompt
            kwargs |= {"apply_chat_template": False, "chat_template": None, "system_instruction": None}
        chat = bool(kwargs.get("apply_chat_template"))
        how = (kwargs.get("system_instruction"), chat, kwargs["tokenizer_name"] if chat else "")
        if how not in kept:
            task.set_fewshot_seed(SHOTS_SEED)
            build(**kwargs)
            kept[how] = task.instances
        task._instances = kept[how]
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}

    task.build_all_requests = reuse


Row = dict[str, Any]
SPLITS = ("dev", "test")


def find_files(folder: Path, split: str, what: str) -> dict[str, Path]:
    """Return the files `<name>.<split>.jsonl` of a folder by name, sorted. what: names the folder in errors."""
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise BadInput(f"{what}: {folder} is not a folder")
    suffix = f".{split}.jsonl"
    paths = {path.name.removesuffix(suffix): path for path in sorted(folder.glob(f"*{suffix}"))}
    if not paths:
        raise BadInput(f"{what}: {folder} holds no file *{suffix}")
    return paths


def read_items(path: Path) -> list[Row]:
    """Read the items of one family in one language, rows of `common.items.Item`."""
    rows = _read_rows(path, item_error)
    for name in ("family", "language"):
        values = sorted({row[name] for row in rows})
        if len(values) > 1:
            raise BadInput(f"{path}: one file holds one {name}, not both {values[0]!r} and {values[1]!r}")
    return rows


def read_documents(path: Path) -> list[Row]:
    """Read documents, `{"id", "text"}` per line."""
    return _read_rows(path, lambda row: text_error(row, ("id", "text")))


def _read_rows(path: Path, wrong: Callable[[Row], str | None]) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start})") from None
    rows: list[Row] = []
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line.encode(), f"{path} line {number}")
        problem = wrong(row)
        if not problem and row["id"] in seen:
            problem = f"the id {row['id']!r} is listed twice"
        if problem:
            raise BadInput(f"{path} line {number}: {problem}")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise BadInput(f"{path}: empty; one JSON object a line is needed")
    return rows


def item_texts(tasks: TaskSet) -> list[dict[str, str]]:
    """Return every item that is scored, as `{"task", "id", "text"}`, for a search in training text.

    The text of an item is its prompt and right answer without the task's template; that of a document is all of it.
    """
    rows = []
    for name, entry in tasks.entries.items():
        documents = list(entry.task.doc_iterator(limit=tasks.limit))
        contents = without_template([item_text(entry.task, document) for _, document in documents])
        for (number, document), text in zip(documents, contents, strict=True):
            rows.append({"task": name, "id": str(document.get("id", number)), "text": text})
    return rows


def without_template(rendered: list[str]) -> list[str]:
    """Return the items of a task without the lines that more than half of them share.

    These are its template, and would hide how much of the rest is known.
    """
    items = [text.split("\n") for text in rendered]
    counts = Counter(line for lines in items for line in set(lines))
    template = {line for line, count in counts.items() if len(rendered) > 1 and count > len(rendered) / 2}
    return ["\n".join(line for line in lines if line not in template) for lines in items]


def item_text(task: Any, document: dict[str, Any]) -> str:
    """Render an item as lm-eval does: the prompt, then the target (of choices the right one)."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(document))
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(document)
        if isinstance(prompt, int):  # the choices are whole beginnings, one of them right; the target is what follows
            return f"{choices[prompt]} {target}"
        target = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else target
    return f"{prompt} {' '.join(target) if isinstance(target, list) else target}"
