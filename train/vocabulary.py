"""A vocabulary that learns a language: new tokens from its text, and first embeddings for them.

New tokens continue the tokenizer's own byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): the most frequent
pair of tokens in the text becomes a token, over and over. Their merges come after all others, so each new token is
reachable, and each token of before keeps its number. Only a BPE tokenizer can be continued.

Embeddings start as the mean of the tokens that a new one was written with before ("mean", Gee et al. 2022), or as a
weighted mean of the tokens that occur in the same contexts ("focus", after Dobler and de Melo 2023, arXiv 2305.14481;
contexts are counted in the text itself, in place of fastText).
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte, in SentencePiece's byte fallback
SPACE = "▁"  # begins a word where a tokenizer has no other rule that separates words
MIN_COUNT = 2  # a pair that occurs once is no token
CONTEXT_TOKENS, WINDOW, DIMENSIONS = 1_000, 5, 100  # contexts of a token: the commonest tokens up to 5 positions away
MIN_OCCURRENCES = 5  # of a token whose contexts are used

Pair = tuple[str, str]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Extension:
    """The new tokens of a tokenizer.

    described: the extended tokenizer, as its tokenizer.json. first: the number of the first new token; the others
    follow. made_of: the tokens that each new one joins, which may be new too: a pair, or the bytes of a character.
    """

    described: Mapping[str, Any]
    first: int
    made_of: Mapping[str, tuple[str, ...]]

    @property
    def tokens(self) -> list[str]:
        """Return the new tokens, in the order of their numbers."""
        return list(self.made_of)

    @cached_property
    def parts(self) -> list[list[int]]:
        """Return the numbers of the old tokens that each new token was written with."""
        numbers: Mapping[str, int] = self.described["model"]["vocab"]
        written: dict[str, list[int]] = {}
        for token, joined in self.made_of.items():
            written[token] = [number for part in joined for number in written.get(part) or [numbers[part]]]
        return list(written.values())


def extend(tokenizer: Any, texts: Iterable[str], count: int) -> Extension:
    """Return `count` new tokens for a `tokenizers.Tokenizer`, the most useful first; fewer if the text is too short.

    Raises BadInput for a tokenizer that is not BPE.
    """
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise BadInput(
            f"model.new_tokens={count}: this tokenizer is {model['type']}, and only BPE can be continued."
            " Set model.new_tokens=null."
        )
    known = tokenizer.get_vocab(with_added_tokens=True)
    words = count_words(tokenizer, texts)
    made_of: dict[str, tuple[str, ...]] = dict(itertools.islice(new_characters(words, known), count))
    pairs = list(itertools.islice(new_pairs(words, known), count - len(made_of)))
    made_of |= {"".join(pair): pair for pair in pairs}
    first = max(known.values()) + 1
    # an added token that is missing here would get another number when the tokenizer is loaded: it would be counted
    # from the size of this vocabulary
    vocabulary = {**known, **{token: first + number for number, token in enumerate(made_of)}}
    as_lists = any(isinstance(merge, list) for merge in model["merges"])
    merges = [*model["merges"], *(list(pair) if as_lists else " ".join(pair) for pair in pairs)]
    return Extension({**described, "model": {**model, "vocab": vocabulary, "merges": merges}}, first, made_of)


def count_words(tokenizer: Any, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Return how often each word occurs in the text, as the tokens that the tokenizer writes it with.

    A word is what the tokenizer never merges across. A character that is written as bytes (SentencePiece's byte
    fallback) stands for itself.
    """
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    words: Counter[str] = Counter()
    for text in texts:
        normal = normalizer.normalize_str(text) if normalizer else text
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normal)] if splitter else [normal]
        words.update(word for piece in pieces for word in re.findall(f"{SPACE}*[^{SPACE}]+", piece) or [piece])
    written: Counter[tuple[str, ...]] = Counter()
    for word, times in words.items():
        tokens = [token.value for token in tokenizer.model.tokenize(word)]
        if any(map(BYTE.fullmatch, tokens)):
            tokens = _as_characters(tokens)
        if "".join(tokens) == word:  # else something is unknown
            written[tuple(tokens)] += times
    return written


def _as_characters(tokens: Iterable[str]) -> list[str]:
    """Return tokens with each run of bytes as the characters that it spells."""
    characters: list[str] = []
    for is_byte, run in itertools.groupby(tokens, key=lambda token: BYTE.fullmatch(token) is not None):
        spelled = list(run)
        if is_byte:
            spelled = list(bytes(int(token[3:5], 16) for token in spelled).decode(errors="replace"))
        characters += spelled
    return characters


def new_characters(
    words: Mapping[tuple[str, ...], int], known: Mapping[str, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each character that has no token, the most frequent first, and its bytes as tokens."""
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for token in word:
            counts[token] += times if token not in known else 0
    for character, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if times >= MIN_COUNT:
            yield character, tuple(f"<0x{byte:02X}>" for byte in character.encode())


def new_pairs(words: Mapping[tuple[str, ...], int], known: Mapping[str, int]) -> Iterator[Pair]:
    """Yield pairs to merge, the most frequent first; of equally frequent ones, the first in the alphabet.

    words: their tokens, and how often they occur. A pair that writes a known token is left out.
    """
    spelled, times = [list(word) for word in words], list(words.values())
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, tokens in enumerate(spelled):
        for pair in itertools.pairwise(tokens):
            counts[pair] += times[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    taken = set(known)
    while heap:
        negative, pair = heapq.heappop(heap)
        if -negative < MIN_COUNT:
            return
        joined = "".join(pair)
        if counts[pair] != -negative or joined in taken:  # counted again since, or known
            continue
        taken.add(joined)
        yield pair
        changed: set[Pair] = set()
        for number in where.pop(pair):
            before = spelled[number]
            after = merged(before, pair)
            for sign, tokens in ((-1, before), (1, after)):
                for each in itertools.pairwise(tokens):
                    counts[each] += sign * times[number]
                    changed.add(each)
                    if sign > 0:
                        where[each].add(number)
            spelled[number] = after
        for each in changed - {pair}:
            heapq.heappush(heap, (-counts[each], each))


def merged(tokens: Sequence[str], pair: Pair) -> list[str]:
    """Return the tokens with each occurrence of a pair as one token, from left to right."""
    joined: list[str] = []
    position = 0
    while position < len(tokens):
        both = tuple(tokens[position : position + 2]) == pair
        joined.append("".join(pair) if both else tokens[position])
        position += 2 if both else 1
    return joined


def fertility(tokenizer: Any, texts: Sequence[str]) -> dict[str, float]:
    """Return bytes per token (UTF-8) and tokens per word that a `tokenizers.Tokenizer` makes of texts.

    Words are separated by white space, so tokens per word mean nothing for scripts without it.
    """
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    size, words = (sum(map(count, texts)) for count in (lambda t: len(t.encode()), lambda t: len(t.split())))
    return {"bytes_per_token": size / max(1, tokens), "tokens_per_word": tokens / max(1, words)}


def mean_weights(parts: Sequence[Sequence[int]], size: int) -> Matrix:
    """Return how much of each old token's embedding a new token gets: equal shares of its parts.

    float32 of (new tokens, size); each row sums to 1.
    """
    weights = np.zeros((len(parts), size), np.float32)
    for row, numbers in zip(weights, parts, strict=True):
        for number in numbers:
            row[number] += 1 / len(numbers)
    return weights


def focus_weights(parts: Sequence[Sequence[int]], size: int, first: int, documents: Iterable[Sequence[int]]) -> Matrix:
    """Return `mean_weights`, but by contexts for new tokens that occur often enough.

    size: old tokens. documents: the text as numbers of the extended tokenizer. Weights are the sparsemax (Martins and
    Astudillo 2016, arXiv 1602.02068) of the cosines between the contexts of a new token and those of each old one.
    """
    weights = mean_weights(parts, size)
    numbers, vectors = context_vectors(documents)
    old, new = numbers < size, numbers >= first
    if old.any() and new.any():
        similar = vectors[new] @ vectors[old].T
        for number, row in zip(numbers[new], similar, strict=True):
            weights[number - first] = 0
            weights[number - first][numbers[old]] = sparsemax(row)
    return weights


def context_vectors(documents: Iterable[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that occur at least `MIN_OCCURRENCES` times, ascending, and a vector of length 1 for each.

    Vectors are the positive pointwise mutual information of a token with the commonest tokens around it, in
    `DIMENSIONS` dimensions (singular values; Levy and Goldberg 2014).
    """
    texts = [np.asarray(document, np.int64) for document in documents]
    counts = Counter(number for text in texts for number in text.tolist())
    numbers = np.array(sorted(number for number, times in counts.items() if times >= MIN_OCCURRENCES), np.int64)
    contexts = np.array(sorted(sorted(numbers, key=lambda n: (-counts[n], n))[:CONTEXT_TOKENS]), np.int64)
    if not len(numbers):
        return numbers, np.zeros((0, 0))
    together = np.zeros((len(numbers), len(contexts)))
    for text in texts:
        row, column = _index(numbers, text), _index(contexts, text)
        for distance in range(1, min(WINDOW, len(text) - 1) + 1):
            for left, right in ((row[:-distance], column[distance:]), (row[distance:], column[:-distance])):
                both = (left >= 0) & (right >= 0)
                np.add.at(together, (left[both], right[both]), 1)
    total = max(together.sum(), 1)
    expected = together.sum(1, keepdims=True) * together.sum(0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(together > 0, np.log(together / expected), 0).clip(min=0)
    left, values, _ = np.linalg.svd(information, full_matrices=False)
    vectors = left[:, :DIMENSIONS] * np.sqrt(values[:DIMENSIONS])
    lengths = np.linalg.norm(vectors, axis=1)
    some = lengths > 0
    return numbers[some], vectors[some] / lengths[some, None]


def _index(sorted_numbers: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each value is in `sorted_numbers`; -1: nowhere."""
    places = np.searchsorted(sorted_numbers, values).clip(max=len(sorted_numbers) - 1)
    return np.where(sorted_numbers[places] == values, places, -1)


def sparsemax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest point to `values` (n,) among those with no negative entry and a sum of 1."""
    descending = np.sort(values)[::-1]
    excess = np.cumsum(descending) - 1
    support = int(np.flatnonzero(descending * np.arange(1, len(values) + 1) > excess)[-1]) + 1
    return (values - excess[support - 1] / support).clip(min=0)


def extend_rows(rows: Any, first: int, weights: Matrix) -> Any:
    """Return an embedding table, or a head's bias, with rows for new tokens: weighted means of old tokens' rows.

    rows: torch tensor of (rows, width); a bias is (rows,) or (1, rows). Its dtype is kept. weights: (new tokens, old
    tokens). New rows begin at `first`; a table with unused rows there is filled first.
    """
    import torch

    is_bias = rows.dim() == 1 or len(rows) == 1
    table = rows.detach().float().view(-1, 1) if is_bias else rows.detach().float()
    count, old = weights.shape
    longer = torch.zeros(max(first + count, len(table)), table.shape[1])
    longer[: len(table)] = table
    longer[first : first + count] = torch.from_numpy(weights) @ table[:old]
    return (longer.view(*rows.shape[:-1], -1) if is_bias else longer).to(rows.dtype)
