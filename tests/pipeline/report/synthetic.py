"""Folders of a run whose numbers are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eval.harness import mean_records
from eval.stats import ratio_interval, wilson
from pipeline import report
from pipeline.report import choices, claims, discards
from pipeline.report.records import Audit, Choice, Evaluation, Subject

N = 200


BUDGETS = (10_000, 100_000, 1_000_000)


SUBJECT = Subject(
    "A <small> run & more", "nya", "Chichewa", {"nya 10k seed 0": {"name": "a <b>", "ct": {"tokens": 10_000}}}
)


GOOD = {"ties": (0.2, 0.1, 0.0), "ties_sv_1": (0.3, 0.2, 0.1)}


LOST = {"ties": (0.1, 0.2, 0.3), "ties_sv_1": (0.05, 0.1, 0.15)}


def write_scores(folder: Path, right: dict[str, float], bits: float, target: str = "nya") -> Path:
    """A folder as eval.harness leaves it: of each family's N items the given share is right.

    The same items are right in every folder, as far as it goes.
    """
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for language in (target, "en"):
        for family, share in right.items():
            head = {
                "task": f"{family}_{language}",
                "family": family,
                "language": language,
                "metric": "acc",
                "primary": True,
            }
            scores = [float((item * 37) % N < round(share * N)) for item in range(N)]
            low, high = wilson(sum(scores), N)
            records.append(
                {**head, "value": sum(scores) / N, "low": low, "high": high, "n": N, "chance": 0.25, "trivial": 0.3}
            )
            records.append({**records[-1], "metric": "acc_norm", "primary": False})
            samples += [
                {"task": head["task"], "id": str(item), "metric": "acc", "score": score, "prediction": 0, "target": 0}
                for item, score in enumerate(scores)
            ]
        sizes = [100 + item for item in range(30)]
        coded = [size * (bits + 0.1 * (item % 3 - 1)) for item, size in enumerate(sizes)]
        low, high = ratio_interval(coded, sizes)
        head = {
            "task": f"bits_per_byte_{language}",
            "family": "text",
            "language": language,
            "metric": "bits_per_byte",
            "primary": True,
        }
        records.append(
            {
                **head,
                "value": sum(coded) / sum(sizes),
                "low": low,
                "high": high,
                "n": 30,
                "chance": None,
                "trivial": None,
            }
        )
        samples += [
            {"task": head["task"], "id": str(item), "metric": "bits_per_byte", "bits": b, "bytes": s}
            for item, (b, s) in enumerate(zip(coded, sizes, strict=True))
        ]
    records += mean_records(records, samples)
    for name, lines in (("scores", records), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_audit(folder: Path, method: str, slack: float, lost: float) -> Path:
    shares = {"share_trimmed": 0.2, "share_in_conflict": 0.4, "share_lost_in_conflict": lost / 2}
    top = {
        level: {"share_of_parameters": 0.05, **shares, "share_lost_in_conflict": lost} for level in ("1%", "5%", "10%")
    }
    model = {
        "parameters": 100,
        **shares,
        "norm": 1.0,
        "norm_lost": 0.1,
        "slack_regained": 0.0,
        "slack_given_up": 0.0,
        "top": top,
    }
    folder.mkdir(parents=True)
    protect = ["sft"] if slack else []
    (folder / "audit.json").write_text(
        json.dumps({"method": method, "slack": slack, "protect": protect, "models": {"sft": model, "ct": model}})
    )
    return folder


@dataclass
class Run:
    """A run in which `gains` says, by method and budget, how much higher than CT-then-SFT's 0.4 each accuracy is."""

    root: Path
    gains: Mapping[str, tuple[float, ...]]
    lost: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...] = (0,)
    evaluations: list[Evaluation] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for method, share in (("base", 0.26), ("sft", 0.3)):
                folder = write_scores(self.root / f"{method}-{seed}", {"genre": share, "blank": share}, 5.0)
                self.evaluations += [Evaluation(method, budget, seed, folder) for budget in BUDGETS]
            for method, gains in {"ct": (-0.1,) * 3, "ct_then_sft": (0.0,) * 3, **self.gains}.items():
                for place, (budget, gain) in enumerate(zip(BUDGETS, gains, strict=True)):
                    share = 0.4 + gain + 0.1 * seed
                    folder = write_scores(
                        self.root / f"{method}-{budget}-{seed}",
                        {"genre": share, "blank": share},
                        4.0 - gain - place / 2,
                    )
                    self.evaluations.append(Evaluation(method, budget, seed, folder))
            for method, shares in self.lost.items():
                recipe = "ties_sv" if "sv" in method else "ties"
                for budget, share in zip(BUDGETS, shares, strict=True):
                    folder = write_audit(
                        self.root / f"audit-{method}-{budget}-{seed}", recipe, float("sv" in method), share
                    )
                    self.audits.append(Audit(method, budget, seed, folder))
            for method, gains in self.gains.items():
                for budget, gain in zip(BUDGETS, gains, strict=True):
                    folder = self.root / f"tune-{method}-{budget}-{seed}"
                    folder.mkdir()
                    settings = {"method": method, "lambda": 1.5}
                    tries = [
                        {"settings": {**settings, "lambda": 1.0}, "metric": "acc", "score": 0.1},
                        {"settings": settings, "metric": "acc", "score": 0.4 + gain},
                    ]
                    (folder / "tries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tries))
                    (folder / "choice.yml").write_text(yaml.safe_dump(settings))
                    self.choices.append(Choice(method, budget, seed, folder))
        record = {
            "kind": "ct",
            "slug": "nya-10k-s0",
            "key": "0123456789ab",
            "seconds": 61.5,
            "finished": "2026-01-02T03:04:05+00:00",
        }
        self.stages.append({**record, "commit": "c0ffee" * 6 + "+", "versions": {"torch": "2.13.0"}})

    def verdicts(self) -> list[str]:
        return [answer.verdict for answer in self.claims().answers]

    def claims(self) -> claims.Claims:
        return claims.claims(self.evaluations, discards.read(self.audits), choices.read(self.choices), "nya")

    def render(self, out: Path) -> report.ReportPaths:
        return report.render(self.evaluations, self.audits, self.choices, self.stages, out, SUBJECT)
