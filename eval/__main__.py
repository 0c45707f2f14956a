"""`python -m eval MODEL --items FOLDER --text FOLDER --out FOLDER`: scores one checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from common.chat_date import STATED
from common.chat_files import text_in
from common.errors import BadInput, in_one_line
from common.special_tokens import in_words
from eval.asking import Asking
from eval.generation import MODES
from eval.task_set import UNDETERMINED


def parser(program: str) -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        prog=program, description="Score one checkpoint with lm-eval; writes scores.jsonl and samples.jsonl."
    )
    options.add_argument("model", type=Path, help="Hugging Face checkpoint folder")
    options.add_argument("--out", type=Path, required=True, help="folder to write to")
    options.add_argument("--items", type=Path, help="folder of <family>_<language>.<split>.jsonl: accuracy")
    options.add_argument("--text", type=Path, help="folder of <language>.<split>.jsonl documents: bits per byte")
    options.add_argument(
        "--include-path",
        type=Path,
        help="folder of your own lm-eval YAMLs (data paths absolute or relative to this folder)",
    )
    options.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks from --include-path (default: all of them) or that lm-eval ships",
    )
    options.add_argument(
        "--language", default=UNDETERMINED, help="language of tasks that do not state theirs (default: %(default)s)"
    )
    options.add_argument("--split", choices=("dev", "test"), default="test", help="of items and text (default: test)")
    options.add_argument("--limit", type=int, help="take only the first LIMIT documents of each task")
    options.add_argument(
        "--excerpt", type=int, help="measure bits per byte on the first EXCERPT characters of each document"
    )
    options.add_argument(
        "--trained-length",
        type=int,
        help="tokens of the blocks that the model was trained on; text is read within it (default: its context)",
    )
    options.add_argument(
        "--batch-tokens", type=int, help="tokens in one forward pass (default: 1024 on a CPU, 8192 elsewhere)"
    )
    options.add_argument(
        "--gpus", type=int, default=1, help="spread the model over this many GPUs, with --device cuda (default: 1)"
    )
    options.add_argument(
        "--chat",
        choices=("none", "auto", "both"),
        default="none",
        help="put prompts into the checkpoint's chat template; both: plain prompts too (default: none)",
    )
    options.add_argument("--system", help="system message that all chat prompts begin with (default: none)")
    options.add_argument(
        "--date", default=STATED, help="today, for chat templates that write it, such as %(default)s (the default)"
    )
    options.add_argument(
        "--fewshot", type=int, help="examples in each prompt of lm-eval's tasks (default: as each task states)"
    )
    options.add_argument(
        "--generation",
        choices=MODES,
        default="own",
        help="generate by the checkpoint's generation_config, or greedily with its stops alone (default: own)",
    )
    options.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)")
    return options


def asked(given: argparse.Namespace) -> Asking:
    """Return how the checkpoint is prompted. Raises BadInput."""
    try:
        date.fromisoformat(given.date)
    except ValueError:
        raise BadInput(
            f"--date: must be a day such as {STATED}, got {given.date!r}. Set it, or leave it out."
        ) from None
    if given.chat != "none" and not text_in(given.model):
        raise BadInput(
            f"--chat: must be none for a checkpoint without a chat template, got {given.chat}. Leave it out, or add"
            f" chat_template.jinja to {given.model}."
        )
    return Asking(given.chat, given.system, given.generation, given.date)


def main(arguments: Sequence[str] | None = None, program: str = "python -m eval") -> int:
    """Evaluates, writes, prints the scores; 2 where the input cannot work."""
    given = parser(program).parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval draws a bar for each task
    try:
        with in_one_line():
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
