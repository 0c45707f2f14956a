"""The questions of eval.questions leave every model room for an answer."""

from __future__ import annotations

from collections.abc import Iterator

from common import hub as model_hub
from common.errors import BadInput
from eval.chat_prompts import rendered
from eval.task_checks import context_length
from pipeline import architecture
from pipeline.check.finding import Finding, given
from pipeline.check.given_checkpoints import described_folder
from pipeline.config import Config
from pipeline.page_questions import KEY, read_questions
from pipeline.stages.scoring import prompt


def questions(config: Config) -> Iterator[Finding]:
    """Yield how many questions there are. Raises BadInput for one that a model cannot read."""
    if config.adapt is None or config.eval.questions is None:
        return
    from train.data.packing import load_tokenizer

    asked = read_questions(config.eval.questions)
    for key, path in given(config).items():
        folder = described_folder(path, fetch=model_hub.is_online())
        if folder is None:  # another check says why
            continue
        context = context_length(architecture.config_of(folder, f"{key}={path}"))
        tokenizer = load_tokenizer(folder)
        for number, question in enumerate(asked, start=1):
            messages = prompt(tokenizer, question, config.eval.system)
            text = messages if isinstance(messages, str) else rendered(tokenizer, messages, config.chat.date)
            length = len(tokenizer.encode(text, add_special_tokens=False))
            if context is not None and length >= context:
                raise BadInput(
                    f"{KEY}={config.eval.questions}: question {number} has {length} tokens, and {key}={path} reads"
                    f" {context} with the answer. Shorten it."
                )
    yield Finding(False, f"questions   {len(asked)}, all of them on the page", told=True)
