"""The text of evaluation items, as a model sees it with the right answer: what must not stand in training text."""

from __future__ import annotations

from typing import Any

from eval.task_set import TaskSet


def texts(tasks: TaskSet) -> list[dict[str, str]]:
    """Every item that will be asked (`{"task", "id", "text"}`): prompt and right answer, or the whole document where text is scored."""
    found = []
    for name, entry in tasks.entries.items():
        for number, document in entry.task.doc_iterator(limit=tasks.limit):
            found.append({"task": name, "id": str(document.get("id", number)), "text": text_of(entry.task, document)})
    return found


def text_of(task: Any, document: dict[str, Any]) -> str:
    """An item as lm-eval renders it: the prompt, then the target, which is the text of the right choice where there are choices."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(document))
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(document)
        if isinstance(prompt, int):  # the choices are whole texts, of which the prompt is one beginning
            return str(choices[prompt]) + " " + str(target)
        target = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else target
    return f"{prompt} {' '.join(target) if isinstance(target, list) else target}"
