"""Questions with choices on passages of a corpus: task families, their sources, and several questions per passage.

The same functions make the English instructions for SFT and the items for evaluation in both languages: the templates
are shared, the passages differ. The only randomness is the generator that they are given.

family   question                                      what it needs
next     which word comes next; the text comes last    to predict the language
route    the same; the text first, then the question   the same, and to follow the instruction
blank    which word fills the blank                    the same, and to carry it to the answer
lookup   which word comes after a given word           to find and copy, in any language
genre    which kind of book a passage is from          to know the subject of passages
about    the subject of a verse, in English words      the words of the language

The trivial baseline takes the choice that is most frequent in training text; for genre the first label; for about the
label that is in the text, else the first.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from common.files import read_jsonl
from train.data.corpus.documents import read_rows, training_files
from train.data.corpus.sources import GENRES
from train.data.segmentation import Segmenter, detect_segmenter, ends_sentence, strip_punctuation

QUESTIONS = {  # the question of each family; `word_family` adds those of running text
    "genre": "Which kind of book is this from?",
    "about": "What is this about?",
}
BLANK = "_"
COMMONEST = 25  # words of a language that no question is about: articles, conjunctions, pronouns
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
    document: str = ""  # id of the document that the text is from; `QuestionSource` sets it
    text_last: bool = False  # so that the answer continues the text; else the question is next to the answer
    after: tuple[str, ...] = ()  # the next words of the document, up to two, if they are known

    @property
    def prompt(self) -> str:
        """Return the model's input; the answer follows after a space."""
        return f"{self.question}\n{self.text}" if self.text_last else prompt_of(self.question, self.text)


def prompt_of(instruction: str, text: str) -> str:
    """Return an instruction and its text, up to the answer. The text comes first, so the question is next to it."""
    return "\n".join(part for part in (text, instruction, "Answer:") if part)


class Vocabulary:
    """The words of a language's training text by frequency: the source of distractors."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        self.segmenter = detect_segmenter(texts)
        split = self.segmenter.split
        self.counts = Counter(clean for text in texts for word in split(text) if (clean := strip_punctuation(word)))
        self.ranked = [word for word, count in self.counts.most_common() if count >= 3]
        self.rank = {word: rank for rank, word in enumerate(self.ranked)}
        self._content_words = {word for word in self.ranked[COMMONEST:] if self.segmenter.is_content_word(word)}

    def is_content_word(self, word: str) -> bool:
        """Return whether a question may be about a word: a known content word, and not one of the commonest."""
        return word in self._content_words

    def distractors(self, word: str, avoid: set[str], rng: random.Random, count: int = 3) -> list[str] | None:
        """Draw distractors of about the frequency of `word`, from neighbouring ranks; None if there are too few."""
        rank = self.rank[word]
        reach = max(30, rank // 4)
        near = [
            other
            for other in self.ranked[max(COMMONEST, rank - reach) : rank + reach]
            if other in self._content_words and other not in avoid and other != word
        ]
        return rng.sample(near, count) if len(near) >= count else None

    def most_frequent(self, choices: list[str]) -> int:
        """Return the number of the choice that is most frequent in training text."""
        return max(range(len(choices)), key=lambda number: self.counts[choices[number]])


WordFamily = Callable[[list[str], Vocabulary, random.Random], Question | None]
WORD_FAMILIES: dict[str, WordFamily] = {}  # by name: words of a document -> a question, or None for these words


def word_family(name: str, question: str) -> Callable[[WordFamily], WordFamily]:
    """Register a function as a family. question: the text of its questions."""

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
    return Question(text, question, tuple(choices), choices.index(right), vocabulary.most_frequent(choices))


def random_window(words: list[str], shortest: int, longest: int, segmenter: Segmenter, rng: random.Random) -> list[str]:
    """Return `shortest` to `longest` words in a row, anywhere; none if there are fewer than `longest`."""
    shortest, longest = shortest * segmenter.units, longest * segmenter.units
    if len(words) < longest:
        return []
    length = rng.randint(shortest, longest)
    start = rng.randrange(len(words) - length + 1)
    return words[start : start + length]


@word_family("next", "Which word comes next?")
def next_word(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for the last of 9 to 15 words. The text comes last, so a model that continues the text answers it."""
    question = continuation(words, vocabulary, rng)
    return question and replace(question, text_last=True)


@word_family("route", QUESTIONS["next"])
def route(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask the same with the question after the text. A model that only continues the text does not answer it."""
    return continuation(words, vocabulary, rng)


def continuation(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for the word after 8 to 14 words, within the sentence."""
    segmenter = vocabulary.segmenter
    if len(words) < 15 * segmenter.units:
        return None
    length = rng.randint(8 * segmenter.units, 14 * segmenter.units)
    start = rng.randrange(len(words) - length)
    right = strip_punctuation(words[start + length])
    if not vocabulary.is_content_word(right) or ends_sentence(words[start + length - 1]):
        return None
    text, after = words[start : start + length], tuple(words[start + length : start + length + 2])
    wrong = vocabulary.distractors(right, {strip_punctuation(word) for word in text}, rng)
    question = wrong and multiple_choice(segmenter.join(text), QUESTIONS["next"], right, wrong, vocabulary, rng)
    return replace(question, after=after) if question else None


@word_family("blank", "Which word fills the blank?")
def blank(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask for a blank in the second half of 9 to 14 words."""
    text = random_window(words, 9, 14, vocabulary.segmenter, rng)
    if not text:
        return None
    position = rng.randrange(len(text) // 2, len(text) - 2)
    right = strip_punctuation(text[position])
    if not vocabulary.is_content_word(right):
        return None
    wrong = vocabulary.distractors(right, {strip_punctuation(word) for word in text}, rng)
    text = [*text[:position], BLANK, *text[position + 1 :]]
    return (
        multiple_choice(vocabulary.segmenter.join(text), QUESTIONS["blank"], right, wrong, vocabulary, rng)
        if wrong
        else None
    )


@word_family("lookup", "Which word comes after {word}?")
def lookup(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask which word of the text comes after another; the wrong choices are in the same text."""
    return lookup_in(random_window(words, 10, 16, vocabulary.segmenter, rng), vocabulary, rng)


def lookup_in(text: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
    """Ask `lookup` about the words of a given text."""
    segmenter = vocabulary.segmenter
    plain = [strip_punctuation(word) for word in text]
    candidates = sorted({word for word in plain if vocabulary.is_content_word(word) and plain.count(word) == 1})
    positions = [
        i
        for i in range(len(text) - 1)
        if plain[i] in candidates and plain[i + 1] in candidates and segmenter.continues_phrase(text[i])
    ]
    if not positions or len(candidates) < 5:
        return None
    position = rng.choice(positions)
    word, right = plain[position : position + 2]
    wrong = rng.sample([other for other in candidates if other not in (word, right)], 3)
    return multiple_choice(segmenter.join(text), QUESTIONS["lookup"].format(word=word), right, wrong, vocabulary, rng)


def genre(text: str, label: str) -> Question:
    """Ask for the genre of a passage, among six."""
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


# --- The questions of a corpus: seeded, balanced choices of passages ---

T = TypeVar("T")
DocumentWords = tuple[str, list[str]]  # a document's id and its words
PASSAGE = 24  # words of a passage in a question for its genre
LONGEST_VERSE = 32  # English words of a verse in a question for its topic: short ones are quick to learn and to score


class QuestionSource:
    """The sources of questions: running text for the word families, aligned verses for genre and topic."""

    def __init__(self, corpus_dir: Path, families: Sequence[str], seed: int) -> None:
        self.seed = seed
        texts: dict[tuple[str, str], list[dict[str, Any]]] = {}  # by language and split
        for path in sorted((corpus_dir / "text").glob("*.jsonl")):
            language, split, _ = path.name.split(".")
            texts[language, split] = read_jsonl(path)
        if families:
            # of a corpus from the Hub, words and passages come from its first file: a sample that fits in memory
            for folder in sorted((corpus_dir / "text").glob("*.train")):
                first = training_files(corpus_dir, folder.stem)[0]
                texts[folder.stem, "train"] = read_rows(first)
        self.vocabulary = {
            language: Vocabulary(document["text"] for document in documents)
            for (language, split), documents in texts.items()
            if split == "train"
        }
        self.texts = {  # by language and split
            (language, split): split_texts(documents, self.vocabulary[language].segmenter)
            for (language, split), documents in texts.items()
        }
        verses = corpus_dir / "verses.jsonl"
        self.verses = read_jsonl(verses) if verses.exists() else []
        self._genres = {chapter_of(verse): str(verse["genre"]) for verse in self.verses}
        self.families = [name for name in families if name in WORD_FAMILIES or self.verses]

    def questions(self, family: str, language: str, split: str, count: int) -> list[Question]:
        """Return up to `count` questions, the same for the same seed; the labels of genre and topic are balanced."""
        rng = random.Random(f"{self.seed}:{family}:{language}:{split}")
        make = {"genre": self._genre, "about": self._about}.get(family)
        return list(make(language, split, count, rng) if make else self._words(family, language, split, count, rng))

    def _words(self, family: str, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        documents, vocabulary = self.texts[language, split], self.vocabulary[language]
        weights = [len(words) for _, words in documents]
        seen: set[tuple[str, str]] = set()
        for document, words in rng.choices(documents, weights, k=20 * count):
            question = WORD_FAMILIES[family](words, vocabulary, rng)
            if question and (question.text, question.question) not in seen:
                seen.add((question.text, question.question))
                yield replace(question, document=document)
            if len(seen) == count:
                return

    def _genre(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        by_label: dict[str, list[Question]] = {}
        for first, second in itertools.pairwise(self.verses):
            if is_in_split(first, language, split) and chapter_of(first) == chapter_of(second):
                words = f"{first[language]} {second[language]}".split()
                text, after = " ".join(words[:PASSAGE]), tuple(words[PASSAGE : PASSAGE + 2])
                asked = replace(genre(text, first["genre"]), document=chapter_of(first), after=after)
                by_label.setdefault(first["genre"], []).append(asked)
        yield from balanced(by_label, count, rng)

    def _about(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        by_label: dict[str, list[Question]] = {}
        for verse, following in itertools.zip_longest(self.verses, self.verses[1:], fillvalue={"id": ""}):
            topic = topic_of(verse["en"])
            if is_in_split(verse, language, split) and topic and len(verse["en"].split()) <= LONGEST_VERSE:
                after = following[language].split()[:2] if chapter_of(following) == chapter_of(verse) else ()
                asked = replace(about(verse[language], topic), document=chapter_of(verse), after=tuple(after))
                by_label.setdefault(topic, []).append(asked)
        yield from balanced(by_label, count, rng)

    def genre_of(self, document: str) -> str | None:
        """Return the genre of a document, where its verses are aligned."""
        return self._genres.get(document)


def split_texts(rows: Iterable[Mapping[str, Any]], segmenter: Segmenter) -> list[DocumentWords]:
    """Return documents with their ids, in words."""
    return [(str(row["id"]), segmenter.split(row["text"])) for row in rows]


def is_in_split(verse: Mapping[str, Any], language: str, split: str) -> bool:
    """Return whether a verse is in this split of this language's text."""
    return verse["split"] == split and verse.get("only", language) == language


def chapter_of(verse: Mapping[str, Any]) -> str:
    """Return the id of the document that a verse (`book.chapter.verse`) is from."""
    return str(verse["id"]).rpartition(".")[0]


def balanced(by_label: Mapping[str, Sequence[T]], count: int, rng: random.Random) -> list[T]:
    """Return as many questions of each label, up to `count` in all, in a random order."""
    if not by_label:
        return []
    each = min(count // len(by_label), *(len(questions) for questions in by_label.values()))
    chosen = [question for questions in by_label.values() for question in rng.sample(questions, each)]
    rng.shuffle(chosen)
    return chosen


# --- Several questions on one passage ---
#
# Most tokens of an instruction are its text, which carries no loss. With more questions per passage, more of the
# trained tokens are answers. An example reads
#
#     Which word comes next?     if `next` is among the questions, the text comes last and the answer continues it
#     <text> <answer>
#     Which kind of book is this from?
#     Answer: <answer>
#     What is this about?
#     Answer: <answer>

LABELLED = (
    "genre",
    "about",
)  # families with the same choices throughout: as often each, among the further questions too
POOL = 4  # passages that are looked at for each one that is kept: those that give most questions are


@dataclass(frozen=True)
class PassageExample:
    """Questions on one passage by their families; `lead` is the family that it was chosen for."""

    lead: str
    questions: dict[str, Question]


def passage_examples(source: QuestionSource, family: str, language: str, count: int, most: int) -> list[PassageExample]:
    """Return up to `count` examples from training text, of up to `most` questions each, one of them of `family`."""
    rng = random.Random(f"{source.seed}:passages:{family}:{language}")
    vocabulary = source.vocabulary[language]
    leads = source.questions(family, language, "train", POOL * count)
    made = []
    for lead in leads:
        topic = topic_of(lead.text) if language == "en" else None  # of English text only its keywords tell the topic
        known = {"genre": source.genre_of(lead.document), "about": topic}
        further = further_questions(family, lead, known, source.families, vocabulary, rng)
        made.append(PassageExample(family, {family: lead} | further))
    kept = [trim(example, most, rng) for example in balance_labels(made, rng)]
    by_label: dict[str, list[PassageExample]] = {}
    for example in sorted(kept, key=lambda example: -len(example.questions)):
        by_label.setdefault(right_answer(example.questions[family]) if family in LABELLED else "", []).append(example)
    return [example for alike in by_label.values() for example in alike[: count // len(by_label)]]


def further_questions(
    family: str,
    lead: Question,
    known: dict[str, str | None],
    names: Sequence[str],
    vocabulary: Vocabulary,
    rng: random.Random,
) -> dict[str, Question]:
    """Return further questions about the text of a question of `family`, by family.

    `known`: the labels of the text. Where both `next` and `route` are asked, `next` asks for the word after the text
    and `route`, which comes later, for the one after that.
    """
    further: dict[str, Question] = {}
    words = vocabulary.segmenter.split(lead.text)
    after = [strip_punctuation(word) for word in lead.after]
    first = bool(after) and vocabulary.is_content_word(after[0]) and not ends_sentence(words[-1])
    second = first and len(after) > 1 and vocabulary.is_content_word(after[1]) and not ends_sentence(lead.after[0])
    asks_next = family == "next" or ("next" in names and first and (family != "route" or second))
    if asks_next and family != "next":
        further["next"] = replace(answered(lead, QUESTIONS["next"], after[0]), text_last=True)
    if "route" in names and (second if asks_next else first):
        further["route"] = answered(lead, QUESTIONS["next"], after[1 if asks_next else 0])
    if "lookup" in names and family != "lookup" and (found := lookup_in(words, vocabulary, rng)):
        further["lookup"] = found
    for name, make in (("genre", genre), ("about", about)):
        if name in names and name != family and (truth := known[name]):
            further[name] = make(lead.text, truth)
    return further


def answered(lead: Question, question: str, answer: str) -> Question:
    """Return a question on the text of another, with its right answer alone: SFT reads no other choice."""
    return replace(lead, question=question, choices=(answer,), answer=0, trivial=0, text_last=False)


def right_answer(question: Question) -> str:
    """Return the right answer."""
    return question.choices[question.answer]


def balance_labels(made: Sequence[PassageExample], rng: random.Random) -> list[PassageExample]:
    """Return the examples without the labelled questions, other than their leads, of which some answers would be
    commoner.
    """
    dropped = set()
    for family in LABELLED:
        by_label: dict[str, list[int]] = {}
        for number, example in enumerate(made):
            if family in example.questions and family != example.lead:
                by_label.setdefault(right_answer(example.questions[family]), []).append(number)
        kept = set(balanced(by_label, len(made), rng))
        dropped |= {(number, family) for numbers in by_label.values() for number in numbers if number not in kept}
    return [
        replace(example, questions={name: q for name, q in example.questions.items() if (number, name) not in dropped})
        for number, example in enumerate(made)
    ]


def trim(example: PassageExample, most: int, rng: random.Random) -> PassageExample:
    """At most so many questions, the lead among them: `next` first, the others in a random order.

    Where `next` is left out, `route` asks for the word after the text.
    """
    others = [name for name in example.questions if name != example.lead]
    chosen = [example.lead, *rng.sample(others, min(most - 1, len(others)))]
    rng.shuffle(chosen)
    chosen.sort(key=lambda name: name != "next")
    questions = {name: example.questions[name] for name in chosen}
    if "route" in questions and "next" not in questions:
        asked = questions["route"]
        questions["route"] = answered(asked, asked.question, strip_punctuation(asked.after[0]))
    return replace(example, questions=questions)
