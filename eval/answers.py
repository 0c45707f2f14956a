"""Generate a model's answers to prompts, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.chat import DEFAULT_DAY
from common.errors import BadInput
from common.special_tokens import added_special_tokens
from eval import loading
from eval.prompting import Generation, Message, generation_mode, render_chat, stop_tokens

Prompt = str | Sequence[Message]  # plain text, or messages for the chat template


@dataclass(frozen=True)
class Answer:
    """A generated answer. text: without special tokens. tokens: their number, without the stop.

    ended: whether the model ended it, with a stop token; else it was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    device: str | None = None,
    dtype: str | None = None,
    batch_tokens: int | None = None,
    generation: Generation = "own",
    day: str = DEFAULT_DAY,
) -> list[Answer]:
    """Return the answers to prompts in their order, decoded greedily.

    model: a causal LM in memory, or its Hugging Face folder. tokenizer: None for that of the folder.
    prompts: messages are put into the chat template, with what comes before an answer; a text is taken as it is.
    device, dtype: of the model's weights; None: as they are (float32 for a folder on the CPU).
    batch_tokens: tokens in one batch, padding and what may be generated included; a batch is halved if memory runs out.
    generation: own or greedy (eval/prompting.py). day: for today in chat templates that write it.
    Raises BadInput for a prompt that leaves no room for an answer, and for messages without a template.
    """
    from eval.batches import BatchLimits, default_batch_tokens, run_batches

    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens: must be 1 or more, got {max_new_tokens}. Set it to 256.")
    if isinstance(model, Path | str):
        model, folder_tokenizer = loading.load_checkpoint(Path(model), device=device, dtype=dtype)
        tokenizer = tokenizer or folder_tokenizer
    elif dtype is not None:
        loading.cast_weights(model, dtype)
    if device is not None:
        model.to(device)
    model.eval()
    texts = [prompt if isinstance(prompt, str) else render_chat(tokenizer, prompt, day) for prompt in prompts]
    encoded = encode(tokenizer, texts)
    lengths = _answer_lengths(model, encoded, max_new_tokens)
    limits = BatchLimits.of(batch_tokens or default_batch_tokens(model.device.type), model)
    answers: dict[int, Answer] = {}
    with generation_mode(model, generation):
        for group in _batchable_groups(model, encoded, lengths):

            def size(batch: Sequence[int]) -> tuple[int, int]:
                return len(batch) * max(len(encoded[number]) + lengths[number] for number in batch), len(batch)

            def run(batch: Sequence[int]) -> list[Answer]:
                return _generate(model, tokenizer, [encoded[number] for number in batch], lengths[batch[0]])

            for batch, generated in run_batches(group, size, limits, run):
                answers |= dict(zip(batch, generated, strict=True))
    return [answers[number] for number in range(len(prompts))]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of prompts: what the tokenizer puts before a text is there once, what it puts after is not."""
    before, _ = added_special_tokens(tokenizer)
    plain = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return [tokens if tokens[: len(before)] == before else before + tokens for tokens in plain]


def _answer_lengths(model: Any, encoded: Sequence[list[int]], most: int) -> list[int]:
    """Return how many tokens each answer may have within the model's context. Raises BadInput for none."""
    from eval.task_checks import context_length

    context = context_length(model.config)
    lengths = [most if context is None else min(most, context - len(tokens)) for tokens in encoded]
    for number, (length, tokens) in enumerate(zip(lengths, encoded, strict=True)):
        if not tokens or length < 1:
            raise BadInput(
                f"prompts: number {number + 1} must have 1 token or more and fewer than the {context} that the model"
                f" reads, got {len(tokens)}. Shorten it, or leave it out."
            )
    return lengths


def _batchable_groups(model: Any, encoded: Sequence[list[int]], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield numbers of prompts that may be answered together, the longest prompts first.

    Their answers have one limit. If padding changes a model's output, their prompts have one length.
    """
    from eval.packing import is_paddable

    may_pad = len(encoded) < 2 or is_paddable(model.config)
    groups: dict[tuple[int, int], list[int]] = {}
    for number in sorted(range(len(encoded)), key=lambda number: (-len(encoded[number]), number)):
        groups.setdefault((lengths[number], 0 if may_pad else len(encoded[number])), []).append(number)
    yield from groups.values()


def _generate(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
    """Return the answers to one batch, padded on the left."""
    import torch

    stops = stop_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stops, 0)[0]
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
        mask[row, longest - len(tokens) :] = 1
    generated = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stops) or None,
        pad_token_id=padding,
        use_cache=True,
    )
    return [_answer(tokenizer, tokens, stops) for tokens in generated[:, longest:].tolist()]


def _answer(tokenizer: Any, tokens: list[int], stops: Sequence[int]) -> Answer:
    end = next((index for index, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), len(kept), end is not None)
