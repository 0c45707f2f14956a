"""The text of evaluation items, as a model sees it with the right answer: what must not stand in training text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from eval.task_set import TaskSet


def texts(tasks: TaskSet) -> list[dict[str, str]]:
    """Every item that will be asked, as `{"task", "id", "text"}`.

    The text of an item is its prompt and right answer without the task's template, that of a document the whole of it.
    """
    rows = []
    for name, entry in tasks.entries.items():
        documents = list(entry.task.doc_iterator(limit=tasks.limit))
        contents = without_template([text_of(entry.task, document) for _, document in documents])
        for (number, document), text in zip(documents, contents, strict=True):
            rows.append({"task": name, "id": str(document.get("id", number)), "text": text})
    return rows


def without_template(rendered: list[str]) -> list[str]:
    """The items of a task without the lines that more than half of them share.

    Those are its template, and would hide how much of the rest is known.
    """
    items = [text.split("\n") for text in rendered]
    counts = Counter(line for lines in items for line in set(lines))
    template = {line for line, count in counts.items() if len(rendered) > 1 and count > len(rendered) / 2}
    return ["\n".join(line for line in lines if line not in template) for lines in items]


def text_of(task: Any, document: dict[str, Any]) -> str:
    """An item as lm-eval renders it: the prompt, then the target (where there are choices, the right one)."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(document))
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(document)
        if isinstance(prompt, int):  # the choices are whole beginnings, one of them right; the target is what follows
            return f"{choices[prompt]} {target}"
        target = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else target
    return f"{prompt} {' '.join(target) if isinstance(target, list) else target}"
