"""The positive control: English in which a stated share of the word types is replaced by invented words.

The rest stay as they are: anchors, as names and loan words are between languages. No model has seen the invented
words: exposure is exactly zero. Grammar and topics are those of English, so there is transfer by construction. If
merging fails even on this control, the pipeline can produce a negative result.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import regex

WORD = regex.compile(r"\p{L}+")
ONSETS = ("b", "ch", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "nd", "mb", "kw", "ts")
VOWELS = ("a", "e", "i", "o", "u", "aa", "ia", "ue")
LETTERS_PER_SYLLABLE = 2.6  # of the invented words, on average: so they are about as long as those they stand for

ATTEMPTS_PER_LENGTH = 8  # before an invented word grows by a syllable, as the short forms run out


def place_of_word(word: str, salt: str) -> float:
    """Return a word's place in [0, 1), by a hash."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{word}".encode()).digest()[:8]) / 2**64


def invent_word(word: str, salt: str, longer: int = 0) -> str:
    """Return a word of onsets and vowels, the same for the same word and salt: about as long, or some syllables
    longer.
    """
    digest = hashlib.sha512(f"{salt}:{word}".encode()).digest()
    syllables = min(len(digest) // 2, max(1, round(len(word) / LETTERS_PER_SYLLABLE)) + longer)
    pairs = zip(digest[:syllables], digest[syllables : 2 * syllables], strict=True)
    return "".join(ONSETS[first % len(ONSETS)] + VOWELS[second % len(VOWELS)] for first, second in pairs)


def cipher_dictionary(texts: Iterable[str], share: float, seed: int) -> dict[str, str]:
    """Return the invented word of each word type that is replaced, in small letters: `share` of the types, by a hash.

    No two types share an invented word, and none is a word of the texts.
    """
    types = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    taken = set(types)
    made: dict[str, str] = {}
    for word in types:
        if place_of_word(word, f"{seed}:replaced") >= share:
            continue
        attempts = (invent_word(word, f"{seed}:{n}", n // ATTEMPTS_PER_LENGTH) for n in itertools.count())
        made[word] = next(candidate for candidate in attempts if candidate not in taken)
        taken.add(made[word])
    return made


def encipher(text: str, words: Mapping[str, str]) -> str:
    """Return a text with its words replaced; capitals and punctuation stay."""

    def replace(match: regex.Match[str]) -> str:
        word = match[0]
        other = words.get(word.lower())
        if other is None:
            return word
        return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other

    return str(WORD.sub(replace, text))
