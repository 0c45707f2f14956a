"""Bits per byte of held-out text, measured while a model trains on other text.

The text is beginnings of dev documents, the same ones every time. No random number is drawn and no gradient is left, so
that the measurement does not change the weights of a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from common.files import read_jsonl
from train.data.packing import IGNORED

if TYPE_CHECKING:
    import torch

DOCUMENTS = 64  # of a language, at most; their beginnings


@dataclass(frozen=True)
class DevEvaluation:
    """The text that a training is measured on. corpus: its folder. every_tokens: tokens between measurements."""

    corpus: str
    languages: tuple[str, ...]
    every_tokens: int


@dataclass(frozen=True)
class DevText:
    """Beginnings of documents as token ids, (documents, length), padded at the right.

    labels: the ids that are predicted, IGNORED elsewhere. bytes: of the predicted text, as UTF-8.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    bytes: int

    def part(self, rank: int, world: int) -> DevText:
        """Return the rows of one of `world` processes. All get the same number; rows without labels fill up."""
        missing = -len(self.ids) % world
        ids = np.concatenate([self.ids, self.ids[:1].repeat(missing, axis=0)])
        nothing = np.full((missing, self.ids.shape[1]), IGNORED, np.int64)
        labels = np.concatenate([self.labels, nothing])
        return DevText(ids[rank::world], labels[rank::world], self.bytes)


def read_dev_text(watched: DevEvaluation, model_dir: Path, length: int) -> dict[str, DevText]:
    """Read the beginnings of dev documents by language, each up to `length` tokens with those before a text.

    The documents are spread evenly over the file. Raises BadInput if a language has no dev text.
    """
    from transformers import AutoTokenizer

    from common.special_tokens import added_special_tokens

    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    before, _ = added_special_tokens(tokenizer)
    before = before or [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    texts = {}
    for language in watched.languages:
        path = Path(watched.corpus) / "text" / f"{language}.dev.jsonl"
        documents = [row["text"] for row in read_jsonl(path)] if path.is_file() else []
        if not documents:
            raise BadInput(
                f"dev_every_tokens: {path} has no text to measure on. Set dev_every_tokens=null, or give more text."
            )
        texts[language] = _beginnings(documents, tokenizer, before, length)
    return texts


def _beginnings(documents: list[str], tokenizer: Any, before: list[int], length: int) -> DevText:
    count = min(DOCUMENTS, len(documents))
    selected = [documents[number * len(documents) // count] for number in range(count)]
    ids = np.full((count, length), tokenizer.eos_token_id, np.int64)
    labels = np.full((count, length), IGNORED, np.int64)
    size = 0
    for row, text in enumerate(selected):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if not (tokens := encoded["input_ids"][: length - len(before)]):
            continue
        size += len(text[: encoded["offset_mapping"][len(tokens) - 1][1]].encode())
        start, stop = len(before), len(before) + len(tokens)
        ids[row, :start], ids[row, start:stop] = before, tokens
        labels[row, start:stop] = tokens
    return DevText(ids, labels, size)


def bits_per_byte(
    model: Any, texts: Mapping[str, DevText], rows_at_once: int, device: torch.device
) -> dict[str, float]:
    """Measure a model that is being trained, by language. Every process of a launch calls this, at the same step.

    model: as the Trainer wraps it; left in training mode. The sum of nats / ln 2 / bytes.
    """
    import torch
    from torch import distributed
    from torch.nn.functional import cross_entropy

    is_distributed = distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if is_distributed else (0, 1)
    measured = {}
    model.eval()
    with torch.no_grad():
        for language, text in texts.items():
            part = text.part(rank, world)
            nats = torch.zeros((), dtype=torch.float64, device=device)
            for start in range(0, len(part.ids), rows_at_once):
                ids, labels = (
                    torch.from_numpy(np.ascontiguousarray(rows[start : start + rows_at_once])).to(device)
                    for rows in (part.ids, part.labels)
                )
                logits, targets = model(input_ids=ids).logits[:, :-1].float(), labels[:, 1:]
                loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
                nats += loss.double()
            if is_distributed:
                distributed.all_reduce(nats)
            measured[language] = nats.item() / log(2) / text.bytes
    model.train()
    return measured
