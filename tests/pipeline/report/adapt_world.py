"""Folders of an adaptation whose numbers are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.report.adapt import AdaptSources
from pipeline.report.records import ReportInfo
from tests.pipeline.report.synthetic import write_scores

INFO = ReportInfo(
    title="adapt <i>",
    language="tam",
    language_name="Tamil & more",
    configs={"tam 10k seed 0": {"name": "a <b>"}},
    command="slackmerge run experiment=adapt",
)
TAMIL = (
    "நேற்று இரவு முழுவதும் மழை பெய்தது. காலையில் சாலைகள் எல்லாம் ஈரமாக இருந்தன. குழந்தைகள் பள்ளிக்குச் சென்றார்கள். "
    "அவர்கள் வழியில் ஒரு பெரிய மரத்தின் கீழ் நின்றார்கள். மழை மீண்டும் பெய்தது. ஆசிரியர் அவர்களுக்கு ஒரு கதை சொன்னார். "
)
ENGLISH = (
    "The rain fell all through the night. In the morning the roads were wet. The children went to school and stood "
    "under a large tree on the way. Then the rain fell again. The teacher told them a story about the river. "
)
SHARES = {  # of right answers: in the language, in English
    "base": (0.30, 0.50),
    "sft": (0.35, 0.60),
    "ct": (0.50, 0.45),
    "sft_then_ct": (0.45, 0.50),
    "adapted": (0.55, 0.60),
}
TRIES: tuple[tuple[str, str, Mapping[str, Any], float, float], ...] = (  # name, method, settings, gain, keep
    ("sft", "sft", {}, 0.35, 0.60),
    ("ties_sv_1-try-0", "ties_sv_1", {"lambda": 0.75}, 0.50, 0.59),
    ("ties_sv_1-try-1", "ties_sv_1", {"lambda": 1.5}, 0.60, 0.50),
    ("chat_linear-try-0", "chat_linear", {"models.sft.weight": 0.5}, 0.40, 0.60),
)
ATTACK = "<script>alert('மழை')</script>\u202e\x00\x1b[31m"
QUESTIONS = ("மழை எப்போது பெய்தது?", "متى هطل المطر؟", ATTACK)
ANSWERS = {
    "base": ("The rain fell in the morning", "", "மழை"),
    "sft": ("It rained at night.", "هطل المطر في الليل.", "No."),
    "ct": ("மழை இரவு பெய்தது.", "மழை பெய்தது", "குழந்தைகள் பள்ளிக்குச்"),
    "adapted": ("நேற்று இரவு மழை பெய்தது.", "மழை இரவு பெய்தது", ATTACK),
}


def adaptation(
    root: Path,
    shares: Mapping[str, tuple[float, float]] = SHARES,
    tries: Sequence[tuple[str, str, Mapping[str, Any], float, float]] = TRIES,
    chosen: str = "ties_sv_1-try-0",
    info: ReportInfo = INFO,
    **choice: Any,
) -> AdaptSources:
    """An adaptation to Tamil; what has no share was not scored. choice: further keys of choice.yml."""
    least = tries[0][4] - 0.02
    rows = [
        {"candidate": name, "method": method, "settings": settings, "gain": gain, "keep": keep, "kept": keep >= least}
        for name, method, settings, gain, keep in tries
    ]
    (root / "choose").mkdir(parents=True)
    write_rows(root / "choose" / "candidates.jsonl", rows)
    picked = next(row for row in rows if row["candidate"] == chosen)
    content = {**{key: picked[key] for key in ("candidate", "method", "settings")}, "gain": "acc", "keep": "acc_en"}
    (root / "choose" / "choice.yml").write_text(yaml.safe_dump({**content, "tolerance": 0.02, **choice}))
    tests = {name: scores(root / f"eval-{name}", *pair) for name, pair in shares.items()}
    if chosen == "sft":
        tests["adapted"] = tests["sft"]
    answers = {}
    for name, said in ANSWERS.items():
        answers[name] = root / f"answers-{name}"
        answers[name].mkdir()
        given = [
            {"question": question, "answer": text, "tokens": len(text), "ended": name != "base"}
            for question, text in zip(QUESTIONS, said, strict=True)
        ]
        write_rows(answers[name] / "answers.jsonl", given)
    stages = [stage(root, "ct", 7200.0), stage(root, "eval", 30.0, "dev"), stage(root, "eval", 60.0, "test")]
    return AdaptSources(
        info=info,
        choice=root / "choose",
        tests=tests,
        answers=answers,
        corpus=corpus(root / "corpus"),
        stages=stages,
        ct_tokens=10_000,
    )


def scores(folder: Path, language: float, english: float) -> Path:
    """A folder as eval.harness leaves it: these shares of the items of one family are right."""
    own = write_scores(folder / "own", {"next": language}, 4.0 - language, target="tam")
    both = write_scores(folder / "both", {"next": english}, 2.0, target="tam")
    for name in ("scores.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (own / name).read_text().splitlines()]
        english_rows = [json.loads(line) for line in (both / name).read_text().splitlines()]
        kept = [row for row in rows if not row["task"].endswith("_en")]
        write_rows(folder / name, kept + [row for row in english_rows if row["task"].endswith("_en")])
    return folder


def corpus(folder: Path) -> Path:
    """A corpus in Tamil and English."""
    (folder / "text").mkdir(parents=True)
    for code, text in (("tam", TAMIL), ("en", ENGLISH)):
        for split in ("train", "dev"):
            write_rows(folder / "text" / f"{code}.{split}.jsonl", [{"id": split, "text": text * 3}])
    return folder


def stage(root: Path, kind: str, seconds: float, split: str | None = None) -> tuple[Path, int]:
    """The record of a stage."""
    path = root / f"stage-{kind}-{split}.json"
    about = {"kind": kind, "slug": "tam", "key": "0123456789ab", "seconds": seconds, "commit": "c0ffee" * 6}
    about |= {"finished": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.13.0"}}
    path.write_text(json.dumps({**about, "settings": {"split": split} if split else {}}))
    return path, 1


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
