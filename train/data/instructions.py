"""The items stage: English instructions for SFT from training text, and evaluation items in both languages from held-out text.

Leaves `sft.jsonl` (`{"prompt", "output", "family"}`), `tasks/<family>_<language>.<split>.jsonl`
(`{"id", "prompt", "choices", "answer", "trivial", "family", "language"}`) and `counts.json`. Instructions from the hub are a stage of their own, which
leaves `sft/00000.parquet` and so on, with the same columns, and `counts.json`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import hub_data as hub
from common.errors import BadInput
from train.data import families
from train.data.corpus import text_files as files
from train.data.corpus.build import files_of, read_jsonl, read_rows, write_jsonl
from train.data.corpus.shards import Reading, link, take
from train.data.families import Item, Vocabulary
from train.data.processes import Workers

PASSAGE = 24  # words of a passage whose genre is asked for
FEWEST_ITEMS = 20  # of a family, language and split: fewer cannot tell a model from chance
LONGEST_VERSE = (
    32  # English words of a verse whose topic is asked for: short items are quick to learn from and to score
)


def build(corpus_dir: Path, settings: dict[str, Any], out: Path) -> None:
    """Writes instructions and items to `out`.

    Settings: language, families (names), sft_items and eval_items (how many a family; fewer where the text gives no more), sft_path (a JSONL of
    instructions to use in place of ours, or null), seed. Families that need aligned verses are left out where the corpus has none.
    """
    unknown = set(settings["families"]) - set(families.QUESTIONS)
    if unknown:
        raise BadInput(f"eval.families: {min(unknown)!r} is unknown; choose from {', '.join(families.QUESTIONS)}")
    source = Source(corpus_dir, settings)
    (out / "tasks").mkdir(parents=True)
    counts: dict[str, dict[str, int]] = {"sft": {}, "tasks": {}}
    instructions: list[dict[str, str]] = []
    if settings["sft_path"]:
        instructions = own_instructions(settings["sft_path"])
    else:
        for family in source.families:
            for item in source.items(family, "en", "train", settings["sft_items"]):
                instructions.append({"prompt": item.prompt, "output": item.choices[item.answer], "family": family})
    for row in instructions:
        counts["sft"][row["family"]] = counts["sft"].get(row["family"], 0) + 1
    if instructions:
        write_jsonl(out / "sft.jsonl", instructions)
    for language in (settings["language"], "en"):
        for split in ("dev", "test"):
            for family in source.families:
                name = f"{family}_{language}.{split}"
                rows = [
                    as_row(item, f"{name}.{i}", family, language)
                    for i, item in enumerate(source.items(family, language, split, settings["eval_items"]))
                ]
                if rows:
                    write_jsonl(out / "tasks" / f"{name}.jsonl", rows)
                    counts["tasks"][name] = len(rows)
    refuse_scarce(counts["tasks"], source.families, (settings["language"], "en"), settings["eval_items"])
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def refuse_scarce(counts: Mapping[str, int], names: Sequence[str], languages: Sequence[str], wanted: int) -> None:
    """Refuses families with too few items to tell anything, before anything is trained. Raises BadInput with the counts.

    `counts`: items by `<family>_<language>.<split>`; `wanted`: items asked for of each.
    """
    fewest = min(FEWEST_ITEMS, (wanted + 1) // 2)  # labels are balanced: a few less than wanted is right
    for language in languages:
        held = {name: min(counts.get(f"{name}_{language}.{split}", 0) for split in ("dev", "test")) for name in names}
        scarce = {name: count for name, count in held.items() if count < fewest}
        if scarce:
            listed = ", ".join(f"{name} {count}" for name, count in scarce.items())
            kept = ",".join(name for name in names if name not in scarce)
            raise BadInput(
                f"eval.families: the held-out {language} text gives too few items (at least {fewest} in dev and in test):"
                f" {listed}; give more text, a larger corpus.dev and corpus.test, or say eval.families=[{kept}]"
            )


def own_instructions(pattern: str) -> list[dict[str, str]]:
    """A user's instructions, rendered: JSONL rows with `instruction`, `input` (may be empty) and `output`."""
    rows = []
    for path in files.matching(pattern, "sft.path"):
        if path.suffix != ".jsonl":
            raise BadInput(f"sft.path: {path} is not .jsonl; a line is {{'instruction', 'input', 'output'}}")
        for row in files.jsonl(path, ("instruction", "input", "output"), "sft.path"):
            rows.append(
                {
                    "prompt": families.prompt(row["instruction"], row["input"]),
                    "output": row["output"],
                    "family": row.get("family", "own"),
                }
            )
    return rows


def hub_instruction(prompt: str, answer: str) -> tuple[str, dict[str, str]] | None:
    """A row of instructions from the hub, as it is; None where it asks or answers nothing."""
    prompt, answer = prompt.strip(), answer.strip()
    return ("train", {"prompt": prompt, "output": answer, "family": "hub"}) if prompt and answer else None


def from_hub(settings: dict[str, Any], out: Path, work: Path) -> None:
    """Instructions from the hub as Parquet files, up to a number of bytes; goes on in `work` where an earlier call was killed.

    Settings: hub (a source with the columns `prompt` and `answer`, and `bytes` of UTF-8 text to take, or null), seed, workers (1).
    """
    source = settings["hub"]
    commit = hub.commit_of(source, "sft.hub")
    pinned = {**source, "revision": commit or source["revision"]}
    reading = Reading(
        pinned, (source["prompt"], source["answer"]), "sft.hub", hub_instruction, most_bytes=source["bytes"]
    )
    counts: dict[str, Any] = {"commit": commit, "sft": {"hub": 0}, "bytes": 0}
    with Workers(settings.get("workers", 1)) as workers:
        for number, part in enumerate(part for part in take(reading, work, workers, settings["seed"]) if part.rows):
            link(part, out / "sft" / f"{number:05d}.parquet")
            counts["sft"]["hub"] += part.rows
            counts["bytes"] += part.bytes
    if not counts["bytes"]:
        raise BadInput(f"sft.hub.dataset={source['dataset']}: holds no instruction with an answer")
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def instruction_files(folder: Path) -> list[Path]:
    """The files of instructions that a stage left: one JSONL, or Parquet files of those from the hub."""
    single = folder / "sft.jsonl"
    return [single] if single.exists() else sorted((folder / "sft").glob("*.parquet"))


def as_row(item: Item, name: str, family: str, language: str) -> dict[str, Any]:
    """An item in the record format that the evaluation reads."""
    return {
        "id": name,
        "prompt": item.prompt,
        "choices": list(item.choices),
        "answer": item.answer,
        "trivial": item.trivial,
        "family": family,
        "language": language,
    }


class Source:
    """Where items come from: running text for the word families, aligned verses for genre and topic."""

    def __init__(self, corpus_dir: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        texts: dict[tuple[str, str], list[str]] = {}
        for path in sorted((corpus_dir / "text").glob("*.jsonl")):
            language, split, _ = path.name.split(".")
            texts[language, split] = [row["text"] for row in read_jsonl(path)]
        if settings[
            "families"
        ]:  # of a corpus from the hub, words and passages come from its first file: a sample that fits in memory
            for folder in sorted((corpus_dir / "text").glob("*.train")):
                first = files_of(corpus_dir, folder.stem)[0]
                texts[folder.stem, "train"] = [row["text"] for row in read_rows(first)]
        self.vocabulary = {lang: Vocabulary(docs) for (lang, split), docs in texts.items() if split == "train"}
        self.texts = {
            (lang, split): [self.vocabulary[lang].writing.split(text) for text in docs]
            for (lang, split), docs in texts.items()
        }
        verses = corpus_dir / "verses.jsonl"
        self.verses = read_jsonl(verses) if verses.exists() else []
        self.families = [name for name in settings["families"] if name in families.WORD_FAMILIES or self.verses]

    def items(self, family: str, language: str, split: str, count: int) -> list[Item]:
        """Up to `count` items, the same for the same seed; the labels of genre and topic are balanced."""
        rng = random.Random(f"{self.settings['seed']}:{family}:{language}:{split}")
        make = {"genre": self._genre, "about": self._about}.get(family)
        return list(make(language, split, count, rng) if make else self._words(family, language, split, count, rng))

    def _words(self, family: str, language: str, split: str, count: int, rng: random.Random) -> Iterator[Item]:
        documents, vocabulary = self.texts[language, split], self.vocabulary[language]
        weights = [len(words) for words in documents]
        seen: set[tuple[str, str]] = set()
        for words in rng.choices(documents, weights, k=20 * count):
            item = families.WORD_FAMILIES[family](words, vocabulary, rng)
            if item and (item.text, item.question) not in seen:
                seen.add((item.text, item.question))
                yield item
            if len(seen) == count:
                return

    def _genre(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Item]:
        by_label: dict[str, list[Item]] = {}
        for first, second in zip(self.verses, self.verses[1:], strict=False):
            same_chapter = first["id"].rpartition(".")[0] == second["id"].rpartition(".")[0]
            if first["split"] == split and same_chapter:
                text = " ".join(f"{first[language]} {second[language]}".split()[:PASSAGE])
                by_label.setdefault(first["genre"], []).append(families.genre(text, first["genre"]))
        yield from balanced(by_label, count, rng)

    def _about(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Item]:
        by_label: dict[str, list[Item]] = {}
        for verse in self.verses:
            topic = families.topic_of(verse["en"])
            if verse["split"] == split and topic and len(verse["en"].split()) <= LONGEST_VERSE:
                by_label.setdefault(topic, []).append(families.about(verse[language], topic))
        yield from balanced(by_label, count, rng)


def balanced(by_label: dict[str, list[Item]], count: int, rng: random.Random) -> list[Item]:
    """As many items of each label, up to `count` in all, in a random order."""
    if not by_label:
        return []
    each = min(count // len(by_label), *(len(items) for items in by_label.values()))
    chosen = [item for items in by_label.values() for item in rng.sample(items, each)]
    rng.shuffle(chosen)
    return chosen
