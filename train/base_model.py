"""The recipe of the small base model: English, a stated share of aligned verses, and a little repeated text.

It plays the part of Llama-2.

A large base model has met a trace of most languages and can copy from its context. A model of a few million parameters
gets neither from English alone in hours on a CPU, so its text has three sources, all from training chapters only, and
from none that is withheld (see `documents.is_withheld`):

english   running text, the rest of the blocks
aligned   verses in both languages, in either order, of `aligned_chapters` of the chapters: the trace of the language
repeated  an English passage followed by itself: teaches copying (induction), as duplicated text on the web does
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import read_jsonl
from train.data import packing
from train.data.blocks import BlockFile, interleave
from train.data.corpus.documents import hash_fraction, is_withheld
from train.data.tokenization import VERIFIED, TokenizerFile
from train.settings import BaseModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|end|>"


def prepare(corpus_dir: Path, settings: BaseModelSettings, out: Path) -> None:
    """Write tokenizer, untrained model and blocks of the recipe to `out/model` and `out/blocks`.

    Raises BadInput if `aligned_chapters` is less than one chapter, or if `withheld_chapters` leaves no English.
    """
    share, seed = settings.withheld_chapters, settings.seed
    english = packing.texts(corpus_dir, "en", lambda chapter: not is_withheld(chapter, share, seed))
    if not english:
        raise BadInput(f"model.recipe.withheld_chapters={share}: leaves no English to train on. Set a smaller value.")
    tokenizer = train_tokenizer(english, settings.vocabulary)
    tokenizer.save_pretrained(out / "model")
    save_untrained(tokenizer, settings, out / "model")
    sources: list[tuple[float, Iterator[str]]] = [
        (1 - settings.aligned_fraction - settings.repeated_fraction, packing.shuffled(english, f"{seed}:english")),
        (settings.aligned_fraction, _for_ever(lambda rng: aligned_documents(corpus_dir, settings, rng), seed)),
        (settings.repeated_fraction, _for_ever(lambda rng: repeated_documents(english, rng), seed)),
    ]
    described = TokenizerFile.of(tokenizer)
    encode = described.load().verified(english[:VERIFIED])
    streams = [packing.chunks(texts, encode, described.end, settings.block_size) for _, texts in sources]
    steps = settings.tokens // settings.batch_tokens
    blocks = BlockFile(out / "blocks" / "blocks.npy", settings.block_size, described.dtype)
    order = interleave([share for share, _ in sources])
    for source in itertools.islice(order, steps * settings.batch_tokens // settings.block_size):
        blocks.append(next(streams[source]))
    blocks.close()
    packing.write_counts(out / "blocks", blocks=blocks.count, tokens=blocks.count * settings.block_size)


def save_untrained(tokenizer: PreTrainedTokenizerBase, settings: BaseModelSettings, folder: Path) -> None:
    """Save a Llama of the recipe's shape, with weights drawn by the recipe's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Train a byte-level BPE tokenizer on English text.

    Another language is split into more and shorter pieces, as with Llama's tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def aligned_documents(corpus_dir: Path, settings: BaseModelSettings, rng: random.Random) -> list[str]:
    """Return chapters of aligned verses, one line per verse and language.

    The order of the languages alternates by document. The chapters are a fixed fraction, `aligned_chapters`, of the
    training chapters: the first ones by a hash of their names, without withheld ones.
    """
    aligned = corpus_dir / "verses.jsonl"
    if not aligned.exists():
        share = settings.aligned_fraction
        raise BadInput(
            f"model.recipe.aligned_fraction={share}: this corpus has no aligned verses. "
            "Set model.recipe.aligned_fraction=0, or corpus=bible."
        )
    chapters: dict[str, list[dict[str, str]]] = {}
    for verse in read_jsonl(aligned):
        if verse["split"] == "train":
            chapters.setdefault(verse["id"].rpartition(".")[0], []).append(verse)
    seed, withheld = settings.seed, settings.withheld_chapters
    readable = [chapter for chapter in chapters if not is_withheld(chapter, withheld, seed)]
    count = round(settings.aligned_chapters * len(chapters))
    asked = f"model.recipe.aligned_chapters={settings.aligned_chapters}"
    if not count:
        raise BadInput(f"{asked}: is less than one of {len(chapters)} training chapters. Set a larger value.")
    if count > len(readable):
        left = f"only {len(readable)} of {len(chapters)} training chapters are left"
        raise BadInput(f"{asked}: with withheld_chapters={withheld} {left}.")
    chosen = set(sorted(readable, key=lambda chapter: hash_fraction(chapter, seed))[:count])
    documents = []
    for verses in (verses for chapter, verses in chapters.items() if chapter in chosen):
        first, second = rng.sample(["en", settings.language], 2)
        documents.append("\n".join(f"{verse[first]}\n{verse[second]}" for verse in verses))
    return documents


def repeated_documents(texts: list[str], rng: random.Random, words: int = 24) -> list[str]:
    """Return a passage of some words from each text, followed by itself."""
    documents = []
    for text in texts:
        split = text.split()
        start = rng.randrange(max(1, len(split) - words))
        passage = " ".join(split[start : start + rng.randrange(words // 3, words)])
        documents.append(f"{passage}\n{passage}")
    return documents


def _for_ever(make: Callable[[random.Random], list[str]], seed: int) -> Iterator[str]:
    for epoch in itertools.count():
        rng = random.Random(f"{seed}:{epoch}")
        documents = make(rng)
        rng.shuffle(documents)
        yield from documents
