"""Several questions on one passage: SFT learns more of a text than the question that selected it.

Most tokens of an instruction are its text, which carries no loss. With more questions per passage, more of the trained
tokens are answers. An example reads

Most tokens of an instruction are its text, which carries no loss. With more questions a passage, more of the tokens
that are trained on are answers. An example reads

    Which word comes next?        where `next` is among the questions, the text stands last and the answer continues it
    <text> <answer>
    Which kind of book is this from?
    Answer: <answer>
    What is this about?
    Answer: <answer>

Pure but for the generator that is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.data.families import QUESTIONS, Question, Vocabulary, about, genre, lookup_in, topic_of
from train.data.questions import QuestionSource, balanced
from train.data.writing import ends_sentence, strip_punctuation

LABELLED = (
    "genre",
    "about",
)  # families with the same choices throughout: as often each, among the further questions too
POOL = 4  # passages that are looked at for each one that is kept: those that give most questions are


@dataclass(frozen=True)
class Example:
    """Questions on one passage by their families; `lead` is the family that it was chosen for."""

    lead: str
    questions: dict[str, Question]


def examples(source: QuestionSource, family: str, language: str, count: int, most: int) -> list[Example]:
    """Return up to `count` examples from training text, of up to `most` questions each, one of them of `family`."""
    rng = random.Random(f"{source.seed}:passages:{family}:{language}")
    vocabulary = source.vocabulary[language]
    leads = source.questions(family, language, "train", POOL * count)
    made = []
    for lead in leads:
        topic = topic_of(lead.text) if language == "en" else None  # of English text only its keywords tell the topic
        known = {"genre": source.genre_of(lead.document), "about": topic}
        further = further_questions(family, lead, known, source.families, vocabulary, rng)
        made.append(Example(family, {family: lead} | further))
    kept = [trim(example, most, rng) for example in balance_labels(made, rng)]
    by_label: dict[str, list[Example]] = {}
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
    words = vocabulary.writing.split(lead.text)
    after = [strip_punctuation(word) for word in lead.after]
    first = bool(after) and vocabulary.askable(after[0]) and not ends_sentence(words[-1])
    second = first and len(after) > 1 and vocabulary.askable(after[1]) and not ends_sentence(lead.after[0])
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


def balance_labels(made: Sequence[Example], rng: random.Random) -> list[Example]:
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


def trim(example: Example, most: int, rng: random.Random) -> Example:
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
