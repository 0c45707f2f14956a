"""Whether an answer is in a language: character trigrams of the corpus decide between it and English.

Each language has a profile, the trigrams of its training text. An answer is in the language that gives it the higher
likelihood, with add-one smoothing (a multinomial naive Bayes classifier: T. Dunning, Statistical Identification of
Language, New Mexico State University MCCS 94-273, 1994). It is in neither if the profile of that language has less than
half of its trigrams: such an answer is in a third language, or is no language. How often this is wrong is measured on
the corpus's dev text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import regex

from common.files import read_jsonl
from pipeline.report.records import ENGLISH
from train.data.corpus.documents import normalised, read_rows, training_files

CHARACTERS = 1_000_000  # of training text per language; profiles of more text decide the same
PASSAGE, PASSAGES = 100, 500  # characters of a dev passage, and how many of a language are judged
SHORTEST = 3  # letters of an answer that can be judged
KNOWN = 0.5  # share of its trigrams that a profile must have
DIGITS = regex.compile(r"\p{N}+")


@dataclass(frozen=True)
class Errors:
    """Error rates on passages of dev text: missed, of the language; false, of English. None: no such passages."""

    missed: float | None
    false: float | None
    passages: int


@dataclass(frozen=True)
class Profiles:
    """Counts of trigrams by language."""

    counts: Mapping[str, Counter[str]]

    @staticmethod
    def of(texts: Mapping[str, str]) -> Profiles:
        """Count trigrams of texts of the same length: the shortest decides, so that no language knows more trigrams."""
        plain = {language: letters(text) for language, text in texts.items()}
        length = min((len(text) for text in plain.values()), default=0)
        return Profiles({language: Counter(trigrams(text[:length])) for language, text in plain.items()})

    def language_of(self, text: str) -> str | None:
        """Return the language of a text, or None if it is in none of them or too short."""
        plain = letters(text)
        found = trigrams(plain)
        if len(plain.replace(" ", "")) < SHORTEST or not self.counts:
            return None
        size = len(set().union(*self.counts.values())) + 1

        def likelihood(counts: Counter[str]) -> float:
            total = counts.total() + size
            return sum(log((counts[trigram] + 1) / total) for trigram in found)

        best = max(self.counts, key=lambda language: likelihood(self.counts[language]))
        known = sum(trigram in self.counts[best] for trigram in found)
        return best if known >= KNOWN * len(found) else None


@dataclass(frozen=True)
class Identifier:
    """Profiles of a language and of English, with their error rates."""

    language: str
    profiles: Profiles
    errors: Errors

    def is_in_language(self, text: str) -> bool:
        """Return whether a text is in the language; an empty one is not."""
        return self.profiles.language_of(text) == self.language


def letters(text: str) -> str:
    """Return the words of a text without digits and punctuation, case folded, one space around each."""
    return f" {' '.join(DIGITS.sub(' ', normalised(text)).split())} "


def trigrams(plain: str) -> list[str]:
    """Return the trigrams of what `letters` gave."""
    return [plain[place : place + 3] for place in range(len(plain) - 2)]


def learn(corpus: Path, language: str) -> Identifier:
    """Learn profiles from a corpus's training text, and measure their errors on its dev text."""
    languages = (language, ENGLISH)
    texts = {code: text for code in languages if (text := _training_text(corpus, code))}
    profiles = Profiles.of(texts)
    dev = {code: passages(_dev_texts(corpus, code)) for code in texts}
    return Identifier(language, profiles, errors(profiles, language, dev))


def errors(profiles: Profiles, language: str, dev: Mapping[str, Sequence[str]]) -> Errors:
    """Return the error rates on passages by language."""

    def share(code: str, wanted: bool) -> float | None:
        judged = [(profiles.language_of(passage) == language) is wanted for passage in dev.get(code, ())]
        return 1 - sum(judged) / len(judged) if judged else None

    missed = share(language, True)
    false = share(ENGLISH, False) if language != ENGLISH else None
    return Errors(missed, false, sum(map(len, dev.values())))


def passages(texts: Iterable[str]) -> list[str]:
    """Cut texts into passages of about PASSAGE characters that end with a word; a shorter rest is left out."""
    found: list[str] = []
    for text in texts:
        rest = text
        while len(rest) > PASSAGE and len(found) < PASSAGES:
            end = rest.find(" ", PASSAGE)
            end = PASSAGE if end < 0 or end > 2 * PASSAGE else end  # some scripts write no spaces
            found.append(rest[:end])
            rest = rest[end:]
    return found


def _training_text(corpus: Path, language: str) -> str:
    taken: list[str] = []
    size = 0
    for path in training_files(corpus, language):
        for row in read_rows(path):
            taken.append(row["text"][: CHARACTERS - size])
            size += len(taken[-1])
            if size >= CHARACTERS:
                return "\n".join(taken)
    return "\n".join(taken)


def _dev_texts(corpus: Path, language: str) -> list[str]:
    path = corpus / "text" / f"{language}.dev.jsonl"
    return [row["text"] for row in read_jsonl(path)] if path.is_file() else []
