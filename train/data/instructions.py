"""The items stage: English instructions for SFT, and evaluation items in both languages.

Instructions come from training text, items from held-out text.

Leaves `sft.jsonl` (`{"prompt", "output", "family"}`, and `more`: further questions on the same passage, with the same
columns, where `questions` is above 1; of a user's conversations `{"messages", "family"}`),
`tasks/<family>_<language>.<split>.jsonl` (rows of `common.items.Item`) and `counts.json`. Instructions in the language
itself, for the upper bound that English SFT is compared with, are a stage of their own, which leaves `sft.jsonl` and
`counts.json`; so are instructions from the Hub, which leaves `sft/00000.parquet` and so on, with the same columns, and
`counts.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import hub_data
from common.errors import BadInput, suggestion
from common.files import write_json, write_jsonl
from common.items import Item
from common.processes import Workers
from train.data.conversations import detect_format, family_of, hub_conversations, matching_formats, own_conversations
from train.data.corpus.hub import ReadPlan, RowReader, link_shard, read_shards, read_texts
from train.data.corpus.sources import check_fields, matching_files, numbered_rows
from train.data.questions import QUESTIONS, Question, QuestionSource, passage_examples, prompt_of
from train.settings import InstructionsInLanguageSettings, InstructionsSettings, ItemsSettings

PLAIN = {
    "dolly": ("instruction", "context", "response"),
    "aya": ("inputs", None, "targets"),
    "prompts": ("prompt", None, "completion"),
}  # formats that need no template: question, what it is about, answer
COUNTED = "conversations"  # in counts.json: rows that became no conversation, by reason, and those that were shortened
FEWEST_ITEMS = 20  # of a family, language and split: fewer cannot distinguish a model from chance
Row = dict[str, Any]  # prompt, output, family, more


def build(corpus_dir: Path, settings: ItemsSettings, out: Path, sft_path: str | None = None) -> None:
    """Write instructions and items to `out`.

    `sft_path`: a glob of JSONL files with the user's own instructions, or conversations if the settings say so.

    There are fewer of a family where the text gives no more. Families that need aligned verses are left out where the
    corpus has none. Raises BadInput for a family that there is not, and for instructions that cannot be read.
    """
    source = question_source(corpus_dir, settings.families, settings.seed)
    (out / "tasks").mkdir(parents=True)
    asked = ("en", settings.sft_items, settings.questions)
    left_out: Counter[str] = Counter()
    if sft_path and settings.conversations:
        instructions, left_out = own_conversations(sft_path, settings.format)
    elif sft_path:
        instructions = own_instructions(sft_path, settings.format)
    else:
        instructions = made_instructions(source, *asked)
    counts: dict[str, dict[str, int]] = {"sft": by_family(instructions), "tasks": {}}
    counts |= {COUNTED: dict(left_out)} if left_out else {}
    if instructions:
        write_jsonl(out / "sft.jsonl", instructions)
    for language in (settings.language, "en"):
        for split in ("dev", "test"):
            for family in source.families:
                name = f"{family}_{language}.{split}"
                items = made_items(source, family, language, split, settings.eval_items)
                if items:
                    write_jsonl(out / "tasks" / f"{name}.jsonl", (item.as_row() for item in items))
                    counts["tasks"][name] = len(items)
    refuse_scarce(counts["tasks"], source.families, (settings.language, "en"), settings.eval_items)
    write_json(out / "counts.json", counts)


def build_in_language(corpus_dir: Path, settings: InstructionsInLanguageSettings, out: Path) -> None:
    """Write instructions made of the language's own training text to `out`.

    Raises BadInput for a family that there is not, and where the text gives no instruction.
    """
    source = question_source(corpus_dir, settings.families, settings.seed)
    instructions = made_instructions(source, settings.language, settings.sft_items, settings.questions)
    if not instructions:
        raise BadInput(f"eval.families: the {settings.language} training text gives no instructions. Give more text.")
    write_jsonl(out / "sft.jsonl", instructions)
    write_json(out / "counts.json", {"sft": by_family(instructions)})


def question_source(corpus_dir: Path, names: Sequence[str], seed: int) -> QuestionSource:
    """Return the source of questions of these families. Raises BadInput for an unknown family."""
    unknown = set(names) - set(QUESTIONS)
    if unknown:
        raise BadInput(f"eval.families: no such family, got {min(unknown)!r}. {suggestion(min(unknown), QUESTIONS)}")
    return QuestionSource(corpus_dir, names, seed)


def by_family(instructions: Sequence[Row]) -> dict[str, int]:
    """Count the questions of each family."""
    return dict(Counter(turn["family"] for row in instructions for turn in (row, *row.get("more", ()))))


def refuse_scarce(counts: Mapping[str, int], names: Sequence[str], languages: Sequence[str], wanted: int) -> None:
    """Reject families with too few items to tell anything, before anything is trained. Raises BadInput.

    `counts`: items by `<family>_<language>.<split>`; `wanted`: items asked for of each.
    """
    fewest = min(FEWEST_ITEMS, (wanted + 1) // 2)  # labels are balanced: a few less than wanted is right
    for language in languages:
        items = {name: min(counts.get(f"{name}_{language}.{split}", 0) for split in ("dev", "test")) for name in names}
        scarce = [name for name in names if items[name] < fewest]
        if scarce:
            listed = ", ".join(f"{name} {items[name]}" for name in scarce)
            kept = ",".join(name for name in names if name not in scarce)
            raise BadInput(
                f"eval.families: the held-out {language} text gives too few items (at least {fewest} in dev and in"
                f" test): {listed}. Give more text, a larger corpus.dev and corpus.test, or set eval.families=[{kept}]."
            )


def made_instructions(source: QuestionSource, language: str, count: int, questions: int = 1) -> list[Row]:
    """Return up to `count` instructions of each family, from a language's training text; of up to so many questions
    each.
    """
    if questions == 1:
        return [
            turn(question.prompt, family, question)
            for family in source.families
            for question in source.questions(family, language, "train", count)
        ]
    rows = []
    for family in source.families:
        for example in passage_examples(source, family, language, count, questions):
            (first, lead), *further = example.questions.items()
            row = turn(lead.prompt, first, lead)
            more = [turn("\n" + prompt_of(asked.question, ""), name, asked) for name, asked in further]
            rows.append(row | ({"more": more} if more else {}))
    return rows


def turn(prompt: str, family: str, question: Question) -> Row:
    """Return a prompt and the right answer to it."""
    return {"prompt": prompt, "output": question.choices[question.answer], "family": family}


def made_items(source: QuestionSource, family: str, language: str, split: str, count: int) -> list[Item]:
    """Return up to `count` items of a family, from a split's text."""
    return [
        Item(
            f"{family}_{language}.{split}.{number}",
            question.prompt,
            question.choices,
            question.answer,
            question.trivial,
            family,
            language,
            question.document,
        )
        for number, question in enumerate(source.questions(family, language, split, count))
    ]


def own_instructions(pattern: str, wanted: str = "auto") -> list[Row]:
    """Return a user's instructions, rendered: JSONL rows with `instruction`, `input` (may be empty) and `output`.

    Rows of other formats of one question and one answer are known by their columns, or by the format that is `wanted`.
    """
    rows = []
    for path in matching_files(pattern, "sft.path"):
        if path.suffix != ".jsonl":
            raise BadInput(
                f"sft.path: expected a .jsonl file with the fields instruction, input and output, got {path}."
            )
        for number, row in numbered_rows(path, (), "sft.path"):
            where = f"sft.path: {path} line {number}"
            question, more, answer = plain_columns(row, wanted, where)
            check_fields(row, (question, *((more,) if more else ()), answer), where)
            empty = [field for field in (question, answer) if not row[field].strip()]
            if empty:
                raise BadInput(f"{where}: the field {empty[0]!r} is empty. Fill it, or leave the line out.")
            prompt = row[question] if question == "prompt" else prompt_of(row[question], row[more] if more else "")
            rows.append({"prompt": prompt, "output": row[answer], "family": family_of(row, where)})
    return rows


def plain_columns(row: Mapping[str, Any], wanted: str, where: str) -> tuple[str, str | None, str]:
    """Return the columns of a question, of what it is about, and of its answer, where no template is set.

    Raises BadInput for conversations, which need one.
    """
    fit = matching_formats(row) if wanted == "auto" else [detect_format(row, wanted, where)]
    if len(fit) == 1 and (columns := PLAIN.get(fit[0])):
        question, more, answer = columns
        return question, more if more in row else None, answer
    if fit and "alpaca" not in fit:
        raise BadInput(
            f"{where}: contains a conversation ({fit[0].removesuffix('_tree')}), which needs a chat template."
            " Set sft.template to tokenizer, chatml or a .jinja file."
        )
    return "instruction", "input", "output"


def hub_instruction(prompt: str, answer: str) -> tuple[str, Row] | None:
    """Return a row of instructions from the Hub, as it is; None if it asks or answers nothing."""
    prompt, answer = prompt.strip(), answer.strip()
    return ("train", {"prompt": prompt, "output": answer, "family": "hub"}) if prompt and answer else None


def from_hub(
    settings: InstructionsSettings, out: Path, work: Path, folder: str | None = None, workers: int = 1
) -> None:
    """Write instructions from the Hub as Parquet files, up to a number of bytes.

    It resumes in `work` if an earlier call was killed.

    `folder`: where a local data set lies. `workers`: processes; the files do not depend on it.
    """
    source = settings.hub.located(folder)
    commit = hub_data.commit_of(source, "sft.hub")
    pinned = replace(source, revision=commit or source.revision)
    plan = ReadPlan(pinned, "sft.hub", row_reader(settings), settings.hub.bytes)
    counts: dict[str, Any] = {"commit": commit, "sft": {"hub": 0}, "bytes": 0}
    counted: Counter[str] = Counter()
    with Workers(workers) as pool:
        number = 0
        for shard in read_shards(plan, work, pool, settings.seed):
            counted.update(shard.counted)
            if not shard.rows:
                continue
            link_shard(shard, out / "sft" / f"{number:05d}.parquet")
            counts["sft"]["hub"] += shard.rows
            counts["bytes"] += shard.bytes
            number += 1
    if not counts["bytes"]:
        raise BadInput(f"sft.hub.dataset={source.dataset}: has no instruction with an answer. Choose another data set.")
    write_json(out / "counts.json", counts | ({COUNTED: dict(counted)} if counted else {}))


def row_reader(settings: InstructionsSettings) -> RowReader:
    """Return the reader of a data set: of two text columns, or of conversations, which may be two columns as well."""
    prompt, answer = settings.hub.prompt, settings.hub.answer
    if prompt is not None and answer is not None:
        return partial(read_texts, columns=(prompt, answer), parse=hub_instruction)
    return partial(hub_conversations, wanted=settings.format)


def instruction_files(folder: Path) -> list[Path]:
    """Return the files of instructions that a stage left: one JSONL, or Parquet files of those from the Hub."""
    single = folder / "sft.jsonl"
    return [single] if single.exists() else sorted((folder / "sft").glob("*.parquet"))
