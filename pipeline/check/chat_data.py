"""Checks of the chat template and the conversations of SFT: they fit each other and the tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub as model_hub
from common import hub_data
from common.errors import BadInput
from pipeline.check.finding import Finding, is_done
from pipeline.check.text import hub_source
from pipeline.config import Config
from pipeline.inputs import chat_template
from pipeline.stages.data import chat
from train.data.chat import reading
from train.data.chat.template import NONE
from train.settings import ChatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.data.chat.template import ChatTemplate

SAMPLE = 200  # conversations that are put into the template


def conversations(config: Config) -> Iterator[Finding]:
    """Check that answers can be masked in this template, and that conversations can be read and fit it."""
    if config.sft.template == NONE or is_done(config, "sft_blocks"):
        return
    from train.data.chat.masking import LEFT_OUT, Masking, refuse_misfits
    from train.data.chat.template import of_tokenizer
    from train.data.tokenization import TokenizerFile

    rows = sample(config)
    tokenizer = tokenizer_at_hand(config)
    if tokenizer is None:
        return
    where = "model: its tokenizer" if config.model.path is None else f"model.path={config.model.path}: its tokenizer"
    settings = ChatSettings(**chat(config, chat_template(config, network=False))["chat"])
    template = of_tokenizer(tokenizer, settings, where)
    masking = Masking(template, settings.system, config.sft.block_size, settings.too_long == "cut")
    file = TokenizerFile.of(tokenizer)
    _, counts = masking.examples(rows, file.load().library, file.dtype)
    refuse_misfits(counts, "sft")
    yield Finding(False, f"template    {described(template, counts)}.", told=True)
    left_out = sum(count for name, count in counts.items() if name.startswith(LEFT_OUT))
    if rows and left_out > len(rows) / 2:
        yield Finding(False, f"sft: of the first {len(rows):,} conversations, {left_out:,} are left out.")


def described(template: ChatTemplate, counts: Mapping[str, int]) -> str:
    """Describe what a template does with conversations. counts: of a sample; see train.data.chat.masking."""
    said = [f"ends an answer by {template.stop_token}", "a conversation is one sequence"]
    if not template.one_sequence:
        grown = f" ({counts['conversations']:,} become {counts['sequences']:,})" if counts.get("unrolled") else ""
        said[1] = f"unrolled, an example an answer{grown}: later prompts do not continue earlier answers"
    if template.lead.strip():
        said.append(f"an answer begins with {template.lead!r}, which is learnt")
    if template.own_system:
        said.append("adds a system prompt of its own (kept)")
    if template.folds_system:
        said.append("takes no system message: it goes into the first question")
    return "; ".join(said)


def sample(config: Config) -> list[dict[str, Any]]:
    """Return some conversations, or prompts with outputs; none if they are made of the text. Raises BadInput."""
    sft = config.sft
    if sft.path:
        return reading.own_conversations(sft.path, sft.format)[0][:SAMPLE]
    if sft.hub is None:
        return []
    source = hub_source(sft.hub)
    if sft.hub.columns is None:
        return reading.first_conversations(source, sft.format, "sft.hub")[:SAMPLE]
    rows = hub_data.rows(hub_data.open_stream(source, "sft.hub"), sft.hub.columns, source, "sft.hub")
    texts = itertools.islice(rows, SAMPLE)
    return [{"prompt": prompt, "output": answer} for prompt, answer in texts if prompt.strip() and answer.strip()]


def tokenizer_at_hand(config: Config) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that SFT is tokenised by, or for a recipe one of the same special tokens.

    None if it cannot be had, which another check says.
    """
    from train.base_model import train_tokenizer
    from train.data.packing import load_tokenizer

    path = config.model.path
    if path is None:
        made: PreTrainedTokenizerBase = train_tokenizer(["a"], 300)
        return made
    model = model_hub.parse(path, "model.path")
    folder = Path(path) if model is None else model_hub.tokenizer_folder(model, "model.path", model_hub.is_online())
    try:
        return load_tokenizer(folder)
    except BadInput:
        raise
    except Exception:  # whatever transformers raises for files that are missing or of no known kind
        return None
