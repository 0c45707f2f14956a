"""`python -m eval MODEL --items FOLDER --text FOLDER --out FOLDER`: scores one checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date

from common.chat import DEFAULT_DAY, read_chat_template
from common.command_line import Options, parse_command_line
from common.errors import BadInput, user_errors
from common.processes import silence
from common.special_tokens import in_words
from eval.asking import Asking
from eval.options import COMMAND


def asked(given: Options) -> Asking:
    """Return how the checkpoint is prompted. Raises BadInput."""
    try:
        date.fromisoformat(given.date)
    except ValueError:
        raise BadInput(
            f"--date: must be a day such as {DEFAULT_DAY}, got {given.date!r}. Set it, or leave it out."
        ) from None
    if given.chat != "none" and not read_chat_template(given.model):
        raise BadInput(
            f"--chat: must be none for a checkpoint without a chat template, got {given.chat}. Leave it out, or add"
            f" chat_template.jinja to {given.model}."
        )
    return Asking(given.chat, given.system, given.generation, given.date)


def main(arguments: Sequence[str] | None = None, program: str = "python -m eval") -> int:
    """Evaluates, writes, prints the scores; 2 where the input cannot work."""
    given = parse_command_line(COMMAND, arguments, program)
    if isinstance(given, int):
        return given
    silence()
    try:
        with user_errors():
            from eval import harness, task_set

            if not (given.model / "config.json").is_file():  # before tasks are built and torch is imported
                raise BadInput(f"model: {given.model} is not a Hugging Face checkpoint folder (no config.json)")
            asking = asked(given)
            harness.check_out(given.out)
            tasks = task_set.prepare(
                given.items,
                given.text,
                split=given.split,
                limit=given.limit,
                excerpt=given.excerpt,
                include_path=given.include_path,
                names=given.tasks,
                language=given.language,
                fewshot=given.fewshot,
            )
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # a refusal is one line
            scores = harness.evaluate_folder(
                given.model,
                tasks,
                batch_tokens=given.batch_tokens,
                device=given.device,
                trained_length=given.trained_length,
                gpus=given.gpus,
                asking=asking,
            )
            harness.write(scores, given.out)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for row in scores.records:
        mark = "*" if row["primary"] else " "
        value = f"{row['value']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{row['task']:24} {row['metric']:14}{mark} {value}  n={row['n']}")
    print(f"written to {given.out}{in_words(scores.control)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
