"""The text of evaluation items, as a model sees it with the right answer: what must not stand in training text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from eval.task_set import TaskSet


def texts(tasks: TaskSet) -> list[dict[str, str]]:
    """Every item that will be asked (`{"task", "id", "text"}`): prompt and right answer without the task's template, or the whole scored document."""
    found = []
    for name, entry in tasks.entries.items():
        documents = list(entry.task.doc_iterator(limit=tasks.limit))
        contents = without_template([text_of(entry.task, document) for _, document in documents])
        for (number, document), text in zip(documents, contents, strict=True):
            found.append({"task": name, "id": str(document.get("id", number)), "text": text})
    return found


def without_template(rendered: list[str]) -> list[str]:
    """The items of a task without the lines that more than half of them share: those are its template, and would hide how much of the rest is known."""
    lines = [text.split("\n") for text in rendered]
    common = Counter(line for own in lines for line in set(own))
    template = {line for line, count in common.items() if len(rendered) > 1 and count > len(rendered) / 2}
    return ["\n".join(line for line in own if line not in template) for own in lines]


def text_of(task: Any, document: dict[str, Any]) -> str:
    """An item as lm-eval renders it: the prompt, then the target, which is the text of the right choice where there are choices."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(document))
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(document)
        if isinstance(
            prompt, int
        ):  # the choices are whole beginnings, one of them right, and the target is what follows
            return f"{choices[prompt]} {target}"
        target = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else target
    return f"{prompt} {' '.join(target) if isinstance(target, list) else target}"
