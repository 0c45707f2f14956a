"""Task families: functions from a passage to a question with choices.

Pure; the only randomness is the generator that they are given.

The same functions make the English instructions for SFT and the items for evaluation in both languages: the templates
are shared, the passages differ.

family   what is asked                                 what it needs
next     which word comes next; the text stands last   to predict the language
route    the same; the text first, then the question   the same, and to do it because it was asked
blank    which word fills the blank                    the same, and to bring it to the answer
lookup   which word comes after a given word           to find and copy, in any language
genre    which kind of book a passage is from          to know what passages are about
about    what a verse is about, in English words       the words of the language

The trivial baseline takes the choice most frequent in training text; of genre, the first label; of about, the label
that stands in the text, else the first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from train.data.corpus.bible import GENRES
from train.data.writing import Segmenter, detect_segmenter, ends_sentence, strip_punctuation

QUESTIONS = {  # the question of each family; `word_family` adds those of running text
    "genre": "Which kind of book is this from?",
    "about": "What is this about?",
}
BLANK = "_"
COMMONEST = 25  # words of a language that are not asked for: articles, conjunctions, pronouns
TOPICS = {
    "war": "army armies battle battles fight fought spear spears sword swords warriors weapons war",
    "water": "sea river rivers rain well wells waters flood spring springs waves water",
    "family": "wife wives brother brothers mother daughter daughters sister sisters husband family",
    "food": "bread eat ate wine hunger hungry flour oil fruit grain meal food",
    "worship": "altar offering offerings sacrifice sacrifices priest priests incense temple worship",
    "kings": "king throne kingdom reign reigned crown queen kings",
    "animals": "sheep ox oxen cattle goats goat lamb lambs flock flocks donkey donkeys horses camels lion lions"
    " animals",
    "death": "die died dies dead grave buried kill killed tomb death",
}


@dataclass(frozen=True)
class Question:
    """One question: a text, the instruction, the choices, the correct one, and the trivial baseline's."""

    text: str
    question: str
    choices: tuple[str, ...]
    answer: int
    trivial: int
    document: str = ""  # id of the document that the text is from; `questions.QuestionSource` sets it
    text_last: bool = False  # so that the answer continues the text; else the question stands next to the answer
    after: tuple[str, ...] = ()  # the next words of the document, up to two, where they are known

    @property
    def prompt(self) -> str:
        """Return the model's input; the answer follows after a space."""
        return f"{self.question}\n{self.text}" if self.text_last else prompt(self.question, self.text)


def prompt(instruction: str, text: str) -> str:
    """Return an instruction and its text, up to the answer.

    The text comes first, so that what is asked stands next to the answer.
    """
    return "\n".join(part for part in (text, instruction, "Answer:") if part)


class Vocabulary:
    """The words of a language's training text by frequency: the source of distractors."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        self.writing = detect_segmenter(texts)
        split = self.writing.split
        self.counts = Counter(clean for text in texts for word in split(text) if (clean := strip_punctuation(word)))
        self.ranked = [word for word, count in self.counts.most_common() if count >= 3]
        self.rank = {word: rank for rank, word in enumerate(self.ranked)}
        self._askable = {word for word in self.ranked[COMMONEST:] if self.writing.askable(word)}

    def askable(self, word: str) -> bool:
        """Return whether a question may be about a word.

        By the language's writing it can be; it is known, and not one of the commonest.
        """
        return word in self._askable

    def like(self, word: str, avoid: set[str], rng: random.Random, count: int = 3) -> list[str] | None:
        """Draw distractors of about the frequency of `word`, from neighbouring ranks.

        None if there are too few.
        """
        rank = self.rank[word]
        reach = max(30, rank // 4)
        near = [
            other
            for other in self.ranked[max(COMMONEST, rank - reach) : rank + reach]
            if other in self._askable and other not in avoid and other != word
        ]
        return rng.sample(near, count) if len(near) >= count else None

    def commonest(self, choices: list[str]) -> int:
        """Return the number of the choice that is most frequent in training text."""
        return max(range(len(choices)), key=lambda number: self.counts[choices[number]])


WordFamily = Callable[[list[str], Vocabulary, random.Random], Question | None]
WORD_FAMILIES: dict[str, WordFamily] = {}  # by name: words of a document -> a question, or None if this try gives none


def word_family(name: str, question: str) -> Callable[[WordFamily], WordFamily]:
    """Register a function as the family of this name, with this text of its questions."""

    def enter(make: WordFamily) -> WordFamily:
        QUESTIONS[name], WORD_FAMILIES[name] = question, make
        return make

    return enter


def multiple_choice(
    text: str, question: str, right: str, wrong: list[str], vocabulary: Vocabulary, rng: random.Random
) -> Question:
    """Return a question with its choices in a random order and the frequency baseline."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Question(text, question, tuple(choices), choices.index(right), vocabulary.commonest(choices))


def random_window(words: list[str], shortest: int, longest: int, writing: Segmenter, rng: random.Random) -> list[str]:
    """From `shortest` to `longest` words in a row, anywhere; none if there are fewer than `longest`."""
    shortest, longest = shortest * writing.units, longest * writing.units
    if len(words) < longest:
        return []
    length = rng.randint(shortest, longest)
    start = rng.randrange(len(words) - length + 1)
    return words[start : start + length]


@word_family("next", "Which word comes next?")
def next_word(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for the last of 9 to 15 words: the text comes last, so a model that continues the text answers it."""
    asked = continuation(words, vocabulary, rng)
    return asked and replace(asked, text_last=True)


@word_family("route", QUESTIONS["next"])
def route(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask the same with the question after the text: a model that only continues the text does not answer it."""
    return continuation(words, vocabulary, rng)


def continuation(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for the word after 8 to 14 words, within the sentence."""
    writing = vocabulary.writing
    if len(words) < 15 * writing.units:
        return None
    length = rng.randint(8 * writing.units, 14 * writing.units)
    start = rng.randrange(len(words) - length)
    right = strip_punctuation(words[start + length])
    if not vocabulary.askable(right) or ends_sentence(words[start + length - 1]):
        return None
    text, after = words[start : start + length], tuple(words[start + length : start + length + 2])
    wrong = vocabulary.like(right, {strip_punctuation(word) for word in text}, rng)
    asked = wrong and multiple_choice(writing.join(text), QUESTIONS["next"], right, wrong, vocabulary, rng)
    return replace(asked, after=after) if asked else None


@word_family("blank", "Which word fills the blank?")
def blank(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for a blank in the second half of 9 to 14 words."""
    text = random_window(words, 9, 14, vocabulary.writing, rng)
    if not text:
        return None
    position = rng.randrange(len(text) // 2, len(text) - 2)
    right = strip_punctuation(text[position])
    if not vocabulary.askable(right):
        return None
    wrong = vocabulary.like(right, {strip_punctuation(word) for word in text}, rng)
    text = [*text[:position], BLANK, *text[position + 1 :]]
    return (
        multiple_choice(vocabulary.writing.join(text), QUESTIONS["blank"], right, wrong, vocabulary, rng)
        if wrong
        else None
    )


@word_family("lookup", "Which word comes after {word}?")
def lookup(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask which word of the text comes after another; the wrong choices are in the same text."""
    return lookup_in(random_window(words, 10, 16, vocabulary.writing, rng), vocabulary, rng)


def lookup_in(text: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask `lookup` about the words of a given text."""
    writing = vocabulary.writing
    plain = [strip_punctuation(word) for word in text]
    candidates = sorted({word for word in plain if vocabulary.askable(word) and plain.count(word) == 1})
    positions = [
        i
        for i in range(len(text) - 1)
        if plain[i] in candidates and plain[i + 1] in candidates and writing.follows(text[i])
    ]
    if not positions or len(candidates) < 5:
        return None
    position = rng.choice(positions)
    word, right = plain[position : position + 2]
    wrong = rng.sample([other for other in candidates if other not in (word, right)], 3)
    return multiple_choice(writing.join(text), QUESTIONS["lookup"].format(word=word), right, wrong, vocabulary, rng)


def genre(text: str, label: str) -> Question:
    """Return the genre of a passage, among six."""
    return Question(text, QUESTIONS["genre"], GENRES, GENRES.index(label), 0)


def topic_of(english: str) -> str | None:
    """Return the topic of which an English verse has keywords; None if there is none or more than one."""
    words = {word.lower() for word in map(strip_punctuation, english.split()) if word}
    topics = [topic for topic, keywords in TOPICS.items() if words & set(keywords.split())]
    return topics[0] if len(topics) == 1 else None


def about(text: str, topic: str) -> Question:
    """Ask for the topic of a verse.

    The correct answer comes from the English verse, whatever the language of the text.
    """
    labels = tuple(TOPICS)
    words = {word.lower() for word in map(strip_punctuation, text.split())}
    overlap = [number for number, label in enumerate(labels) if label in words]
    return Question(text, QUESTIONS["about"], labels, labels.index(topic), overlap[0] if overlap else 0)
