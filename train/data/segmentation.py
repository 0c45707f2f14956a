"""The words of a language: where they end, what counts as a word, and which of them a question may be about.

Most scripts put spaces between words. Of those that do not (Tibetan, Khmer, Thai, Lao, Burmese, Chinese, Japanese), the
units are those of Unicode's default word segmentation (UAX #29): syllables of Tibetan, characters of Chinese, grapheme
clusters of the scripts of south-east Asia, whose words only a dictionary finds, unless the text marks them by
zero-width spaces. A unit keeps the separators that follow it, so that units in a row are a piece of the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import regex

LETTERS = regex.compile(r"\p{L}")
# Scripts without spaces between words, by Unicode's line-breaking classes (UAX #14): south-east Asian (SA), ideographs
# (ID) and small kana (CJ); and Tibetan.
CLUSTERS = regex.compile(r"[\p{L}&&\p{lb=SA}]", regex.V1)
IDEOGRAPHS = regex.compile(r"[\p{L}&&[\p{lb=ID}\p{lb=CJ}]]", regex.V1)
SYLLABLES = regex.compile(r"[\p{L}&&\p{Script=Tibetan}]", regex.V1)
BOUNDARIES = {
    "units": regex.compile(r"\b", regex.V1 | regex.WORD),
    "marks": regex.compile(r"(?<=[\u200b\s])", regex.V1),
}
WORDS = regex.compile(
    r"[\p{L}\p{M}\p{N}]+"
)  # of any text: vowel signs, which are marks, do not cut them; numbers count
WORD = regex.compile(r"[\p{L}\p{M}\u200c\u200d]+")  # with the joiners that shape letters in Persian or Bengali
AROUND = regex.compile(r"^[\p{P}\p{S}\p{Z}\p{Cf}]+|[\p{P}\p{S}\p{Z}\p{Cf}]+$")
SENTENCE_END = regex.compile(r"\p{Sentence_Terminal}[\p{P}\p{Z}]*$")
# What may stand between two units of one phrase: nothing, a tsheg, a zero-width space, a space.
SEPARATORS = ("", "\u0f0b", "\u200b", " ")
MARKED = 20  # letters to a zero-width space, at most, where text marks its words
SAMPLE = 200_000  # characters that identify a script


@dataclass(frozen=True)
class Segmenter:
    """How text is split into words.

    ends: what ends a word: spaces; marks (zero-width spaces, or spaces); or units, if nothing does.
    units: the number that is worth about a word of a spaced script. shortest: minimum letters of a content word.
    """

    ends: Literal["spaces", "marks", "units"] = "spaces"
    units: int = 1
    shortest: int = 3

    def split(self, text: str) -> list[str]:
        """Return a text as its words or units, each with its punctuation; `join` is the inverse."""
        if self.ends == "spaces":
            return text.split()
        pieces = [piece for piece in BOUNDARIES[self.ends].split(" ".join(text.split())) if piece]
        units: list[str] = []
        for piece in pieces:
            if units and not LETTERS.search(piece):
                units[-1] += piece
            else:
                units.append(piece)
        return units

    def join(self, words: Sequence[str]) -> str:
        """Return words or units in a row as text."""
        return " ".join(words) if self.ends == "spaces" else "".join(words).strip()

    def is_content_word(self, word: str) -> bool:
        """Return whether a question may be about a word: long enough, and not a name if the script has capitals."""
        return len(word) >= self.shortest and word == word.lower() and LETTERS.search(word) is not None

    def continues_phrase(self, word: str) -> bool:
        """Return whether the next word is in the same phrase: no punctuation follows this one."""
        return word[len(strip_punctuation(word)) :] in SEPARATORS and word.startswith(strip_punctuation(word))


@lru_cache(maxsize=2**18)  # each word is needed dozens of times
def strip_punctuation(word: str) -> str:
    """Return a word without the punctuation around it; empty if more than letters and their marks remain."""
    stripped = AROUND.sub("", word)
    return stripped if WORD.fullmatch(stripped) and LETTERS.search(stripped) else ""


def ends_sentence(word: str) -> bool:
    """Return whether a sentence ends with this word, in any script."""
    return SENTENCE_END.search(word) is not None


def detect_segmenter(texts: Iterable[str]) -> Segmenter:
    """Return the segmenter of a language, by the letters of a sample of its text."""
    sample = "".join(itertools.islice(itertools.chain.from_iterable(texts), SAMPLE))
    letters = len(LETTERS.findall(sample))
    marked = sample.count("\u200b") * MARKED > letters
    for script, segmenter in (
        (CLUSTERS, Segmenter("marks") if marked else Segmenter("units", units=4, shortest=1)),
        (IDEOGRAPHS, Segmenter("units", units=2, shortest=1)),
        (SYLLABLES, Segmenter("units", shortest=1)),
    ):
        if 2 * len(script.findall(sample)) > letters:
            return segmenter
    return Segmenter()
