"""New tokens continue a tokenizer's own BPE, and start with sensible embeddings."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.errors import BadInput
from tests.architectures import tokenizer_kinds
from train import vocabulary
from train.vocabulary import Extension, extend, extend_rows, focus_weights, mean_weights, new_pairs, sparsemax


def tamil(lines: int) -> list[str]:
    """Text of a small lexicon of Tamil letters, which no tokenizer here was trained on."""
    rng = random.Random(3)
    lexicon = ["".join(rng.choices("கசடதபறமநவரலளயஅஆஇ", k=rng.randint(2, 4))) + "ி" for _ in range(80)]
    return [" ".join(rng.choices(lexicon, k=12)) + "." for _ in range(lines)]


TAMIL = tamil(40)
ENGLISH = ["The water of the river.\n\nA second line, with  two spaces!"]


def gpt_like(special: tuple[str, ...] = ()) -> Any:
    return tokenizer_kinds.byte_level("<|end|>", special=special)


def llama_like() -> Any:
    return tokenizer_kinds.llama2()


def reserved_at_the_end() -> Any:
    """Special tokens whose numbers follow those of the model's vocabulary, as Llama 3 has them."""
    made = gpt_like()
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|turn|>"]})
    return made


KINDS = pytest.mark.parametrize("build", [gpt_like, llama_like, reserved_at_the_end])


def extended(build: Any, count: int = 60) -> tuple[Any, Extension, tokenizers.Tokenizer]:
    before = build()
    extension = extend(before.backend_tokenizer, TAMIL, count)
    return before, extension, tokenizers.Tokenizer.from_str(json.dumps(extension.described))


@KINDS
def test_text_takes_fewer_tokens_and_comes_back(build: Any) -> None:
    before, extension, after = extended(build)
    for text in (*TAMIL, *ENGLISH):
        ids = after.encode(text, add_special_tokens=False).ids
        assert after.decode(ids).strip() == text
        assert before.decode(before.encode(text, add_special_tokens=False)).strip() == text
    old = sum(len(before.encode(text, add_special_tokens=False)) for text in TAMIL)
    new = sum(len(after.encode(text, add_special_tokens=False).ids) for text in TAMIL)
    assert new < 0.6 * old and len(extension.tokens) == 60


@KINDS
def test_every_token_of_before_keeps_its_number_and_every_new_one_is_reachable(build: Any, tmp_path: Any) -> None:
    before, extension, after = extended(build)
    old = before.get_vocab()
    assert {token: after.token_to_id(token) for token in old} == old
    assert extension.first == max(old.values()) + 1
    assert [after.token_to_id(token) for token in extension.tokens] == list(
        range(extension.first, extension.first + 60)
    )
    words = vocabulary.count_words(before.backend_tokenizer, TAMIL)
    used = Counter(token.value for word in words for token in after.model.tokenize("".join(word)))
    parts = {token for joined in extension.made_of.values() for token in joined}
    assert all(used[token] or token in parts for token in extension.tokens)
    PreTrainedTokenizerFast(tokenizer_object=after, eos_token=before.eos_token).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {token: loaded.get_vocab()[token] for token in old} == old and len(loaded) == len(old) + 60


@KINDS
def test_tokens_are_those_of_a_bpe_that_was_trained_step_by_step(build: Any) -> None:
    before, extension, after = extended(build, 25)
    words = vocabulary.count_words(before.backend_tokenizer, TAMIL)
    spelled = {word: list(word) for word in words}
    pairs = [(made[0], made[1]) for token, made in extension.made_of.items() if "".join(made) == token]
    assert pairs
    known = {**before.get_vocab(), **dict.fromkeys(extension.tokens[: -len(pairs)])}  # and characters
    for pair in pairs:  # counted again for each token
        counts: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for each in zip(spelled[word], spelled[word][1:], strict=False):
                counts[each] += times
        fresh = {each: count for each, count in counts.items() if "".join(each) not in known}
        assert counts[pair] == max(fresh.values())
        spelled = {word: vocabulary.merged(tokens, pair) for word, tokens in spelled.items()}
    for word, tokens in spelled.items():
        assert [token.value for token in after.model.tokenize("".join(word))] == tokens


@given(st.dictionaries(st.text("ab", min_size=1, max_size=7), st.integers(1, 5), max_size=8), st.integers(1, 12))
def test_pairs_come_by_their_frequency(words: dict[str, int], count: int) -> None:
    spelled = {tuple(word): times for word, times in words.items()}
    tokens = {word: list(word) for word in spelled}
    found: list[tuple[str, str]] = []
    for pair in new_pairs(spelled, {"a": 0, "b": 1}):
        counts: Counter[tuple[str, str]] = Counter()
        for word, times in spelled.items():
            for each in zip(tokens[word], tokens[word][1:], strict=False):
                counts[each] += times
        made = {"a", "b", *("".join(each) for each in found)}
        new = {each: times for each, times in counts.items() if "".join(each) not in made}
        best = max(new.values())
        assert best >= 2 and pair == min(each for each, times in new.items() if times == best)
        tokens = {word: vocabulary.merged(written, pair) for word, written in tokens.items()}
        found.append(pair)
        if len(found) == count:
            break


def test_a_vocabulary_that_is_not_bpe_is_rejected() -> None:
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    with pytest.raises(BadInput, match=r"model\.new_tokens=5: .*Unigram"):
        extend(unigram, ["a"], 5)


def test_short_text_gives_fewer_tokens() -> None:
    extension = extend(gpt_like().backend_tokenizer, ["ககக ககக"], 50)
    assert 0 < len(extension.tokens) < 50
    assert not extend(gpt_like().backend_tokenizer, [], 50).tokens


@KINDS
def test_parts_are_the_old_tokens_that_a_new_one_was_written_with(build: Any) -> None:
    before, extension, _ = extended(build)
    names = {number: token for token, number in before.get_vocab().items()}
    for token, parts in zip(extension.tokens, extension.parts, strict=True):
        spelled = b"".join(
            bytes([int(names[part][3:5], 16)]) if vocabulary.BYTE.fullmatch(names[part]) else names[part].encode()
            for part in parts
        )
        assert spelled.decode() == token and len(parts) >= 2


def test_a_mean_has_equal_shares_and_counts_a_part_as_often_as_it_occurs() -> None:
    weights = mean_weights([[0, 1], [2, 2, 3]], 4)
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0, 0], [0, 0, 2 / 3, 1 / 3]], rtol=1e-6)


def test_a_token_gets_the_embedding_of_the_one_that_occurs_in_its_contexts() -> None:
    # 0 and 5 are followed by 1 and 2, 3 by 4: 5 is new, and was written as 3, 3
    rng = random.Random(0)
    choices = [[0, 1, 2], [5, 1, 2], [3, 4, 4], [3, 4, 4]]
    documents = [rng.choice(choices) for _ in range(400)]
    weights = focus_weights([[3, 3]], 5, 5, documents)
    assert weights[0].argmax() == 0 and weights[0].sum() == pytest.approx(1)
    rare = focus_weights([[3, 3], [1, 2]], 5, 5, documents)
    np.testing.assert_allclose(rare[1], [0, 0.5, 0.5, 0, 0])  # it does not occur: the mean of its parts
    np.testing.assert_allclose(focus_weights([[3, 3]], 5, 5, []), mean_weights([[3, 3]], 5))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_sparsemax_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    point = sparsemax(np.array(values))
    assert (point >= 0).all() and point.sum() == pytest.approx(1)
    # of a nearest point, what is moved off has one excess for all entries that stay, and no less for the others
    excess = np.array(values) - point
    kept = point > 0
    assert np.ptp(excess[kept]) < 1e-9 and (excess[~kept] <= excess[kept].max() + 1e-9).all()


def test_new_rows_are_means_of_old_ones_and_unused_rows_are_filled_first() -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 6)  # six tokens and two unused rows
    result = extend_rows(rows, 6, mean_weights([[0, 1], [2, 3, 4], [0, 5]], 6))
    assert result.shape == (9, 6) and torch.equal(result[:6], rows[:6])
    mean = (rows[2] + rows[3] + rows[4]) / 3
    torch.testing.assert_close(result[7], mean)
    assert extend_rows(rows.bfloat16(), 6, mean_weights([[0, 1]], 6)).dtype == torch.bfloat16
