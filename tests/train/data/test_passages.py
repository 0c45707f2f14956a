"""Several questions on one passage: each true of the text as it stands when it is asked, and none asked too often."""

import random
from collections import Counter

import pytest

from common.files import write_jsonl
from tests.toy_text import WORDS
from train.data import instructions, questions
from train.data.questions import QuestionSource, chapter_of, topic_of

GENRES = {"1": "law", "6": "history", "40": "gospel", "18": "poetry", "23": "prophecy", "45": "letter"}
TOPICS = ["war", "water", "family", "food", "worship", "kings", "animals", "death"]  # each a keyword of its own topic
FAMILIES = ("next", "route", "lookup", "genre", "about")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> QuestionSource:
    """Chapters of six genres; every verse has a keyword of one topic."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    verses = []
    for book, genre in GENRES.items():
        for number in range(12):
            for verse in range(12):
                words = rng.choices(WORDS, k=rng.randint(9, 14))
                words.insert(rng.randrange(len(words)), rng.choice(TOPICS[: 4 + int(book) % 5]))
                text = " ".join(words)
                name = f"{book}.{number}.{verse}"
                verses.append({"id": name, "split": "train", "genre": genre, "xx": text[::-1], "en": text})
    write_jsonl(folder / "verses.jsonl", verses)
    for language in ("en", "xx"):
        documents: dict[str, list[str]] = {}
        for row in verses:
            documents.setdefault(chapter_of(row), []).append(row[language])
        rows = [{"id": name, "text": " ".join(texts)} for name, texts in documents.items()]
        (folder / "text").mkdir(exist_ok=True)
        write_jsonl(folder / "text" / f"{language}.train.jsonl", rows)
    return QuestionSource(folder, FAMILIES, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_true_of_the_text_that_stands_before_it(source: QuestionSource, family: str) -> None:
    documents = {name: " ".join(words) for name, words in source.texts["en", "train"]}
    made = questions.passage_examples(source, family, "en", 24, 4)
    assert made and all(family in example.questions and len(example.questions) <= 4 for example in made)
    for example in made:
        names, lead = list(example.questions), example.questions[family]
        assert "next" not in names[1:]  # its text stands last: nothing could come before
        seen, document = lead.text, documents[lead.document]
        for name, question in example.questions.items():
            answer = question.choices[question.answer]
            assert question.text == lead.text
            if name in ("next", "route"):
                seen += f" {answer}"
                assert seen in document
            elif name == "lookup":
                asked = question.question.removeprefix("Which word comes after ").removesuffix("?")
                assert f"{asked} {answer}" in lead.text
            elif name == "genre":
                assert answer == GENRES[lead.document.partition(".")[0]]
            else:
                assert answer == topic_of(lead.text)


def test_further_labels_are_balanced_and_most_examples_have_what_was_asked_for(source: QuestionSource) -> None:
    made = questions.passage_examples(source, "next", "en", 60, 4)
    sizes = Counter(len(example.questions) for example in made)
    assert len(made) == 60 and sizes[4] > 30
    rng = random.Random(0)
    pool = [
        questions.PassageExample("next", {"genre": question, "next": question})
        for question in source.questions("genre", "en", "train", 60)[:37]
    ]
    labels = Counter(
        questions.right_answer(example.questions["genre"])
        for example in questions.balance_labels(pool, rng)
        if "genre" in example.questions
    )
    assert len(labels) == 6 and len(set(labels.values())) == 1


def test_in_another_language_only_aligned_verses_tell_the_topic(source: QuestionSource) -> None:
    made = [example for name in FAMILIES for example in questions.passage_examples(source, name, "xx", 12, 4)]
    assert made and all("about" not in example.questions or example.lead == "about" for example in made)


def test_one_question_a_passage_is_what_it_was(source: QuestionSource) -> None:
    rows = instructions.made_instructions(source, "en", 10, 1)
    assert not any("more" in row for row in rows)
    single = [question.prompt for name in FAMILIES for question in source.questions(name, "en", "train", 10)]
    assert [row["prompt"] for row in rows] == single


def test_rows_hold_the_further_questions_with_their_answers(source: QuestionSource) -> None:
    rows = instructions.made_instructions(source, "en", 10, 3)
    several = [row for row in rows if "more" in row]
    assert several and instructions.by_family(rows)["route"] > 10
    for row in several:
        for turn in row["more"]:
            assert turn["prompt"].startswith("\n") and turn["prompt"].endswith("?\nAnswer:") and turn["output"]
