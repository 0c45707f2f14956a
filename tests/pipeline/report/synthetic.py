"""Folders of a run whose numbers are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval.harness import mean_records
from eval.metrics import ratio_interval, wilson
from pipeline import report
from pipeline.report import builtin_claims, merges
from pipeline.report.analysis import Analysis, Inputs, analyse
from pipeline.report.claims import Claims
from pipeline.report.records import Audit, Choice, Evaluation, ReportInfo, ReportPaths

N = 200


BUDGETS = (10_000, 100_000, 1_000_000)


INFO = ReportInfo(
    title="A <small> run & more",
    language="nya",
    language_name="Chichewa",
    configs={"nya 10k seed 0": {"name": "a <b>", "ct": {"tokens": 10_000}}},
)


GOOD = {"ties": (0.2, 0.1, 0.0), "ties_sv_1": (0.3, 0.2, 0.1)}


LOST = {"ties": (0.1, 0.2, 0.3), "ties_sv_1": (0.05, 0.1, 0.15)}


def score_record(
    task: str, family: str, language: str, metric: str, n: int, value: float, **more: Any
) -> dict[str, Any]:
    nothing = {"primary": False, "low": value, "high": value, "chance": None, "trivial": None, "predictions": None}
    head = {"task": task, "family": family, "language": language, "metric": metric, "n": n, "value": value}
    return head | nothing | more


def item_records(family: str, language: str, share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of N items, four a document, the given share is right: the same ones in every folder, as far as it goes.

    The right answer takes 4 - share bits in each of its 10 bytes.
    """
    task = f"{family}_{language}"
    scores = [float((item * 37) % N < round(share * N)) for item in range(N)]
    low, high = wilson(int(sum(scores)), N)
    accuracy = {"low": low, "high": high, "chance": 0.25, "trivial": 0.3}
    primary, beside = ("acc_calibrated", "acc") if family == "genre" else ("acc", "acc_norm")
    given = {"law": int(sum(scores)), "letter": N - int(sum(scores))} if family == "genre" else None
    value = sum(scores) / N
    records = [
        score_record(task, family, language, primary, N, value, primary=True, predictions=given, **accuracy),
        score_record(task, family, language, beside, N, value, predictions=given, **accuracy),
        score_record(task, family, language, "answer_bits_per_byte", N, 4 - share),
    ]
    samples: list[dict[str, Any]] = []
    for item, score in enumerate(scores):
        identity = {"task": task, "id": str(item), "document": f"chapter {item // 4}"}
        answer = {
            "prediction": 0,
            "target": 0,
            "answer_bits": 10 * (4 - share + 0.1 * (item % 3 - 1)),
            "answer_bytes": 10,
        }
        samples.append({**identity, "metric": primary, "score": score, **answer})
    return records, samples


def write_scores(folder: Path, right: dict[str, float], bits: float, target: str = "nya") -> Path:
    """A folder as eval.harness leaves it: `right` says the share of each family's items that is right."""
    folder.mkdir(parents=True)
    for name, content in scored(tuple(right.items()), bits, target).items():
        (folder / name).write_text(content)
    return folder


@cache
def scored(right: tuple[tuple[str, float], ...], bits: float, target: str) -> dict[str, str]:
    """What the files hold."""
    records: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for language in (target, "en"):
        for family, share in right:
            accuracies, answered = item_records(family, language, share)
            records += accuracies
            samples += answered
        sizes = [100 + item for item in range(30)]
        coded = [size * (bits + 0.1 * (item % 3 - 1)) for item, size in enumerate(sizes)]
        low, high = ratio_interval(coded, sizes)
        task, value = f"bits_per_byte_{language}", sum(coded) / sum(sizes)
        records.append(
            score_record(task, "text", language, "bits_per_byte", 30, value, primary=True, low=low, high=high)
        )
        samples += [
            {"task": task, "id": str(i), "document": str(i), "metric": "bits_per_byte", "bits": b, "bytes": s}
            for i, (b, s) in enumerate(zip(coded, sizes, strict=True))
        ]
    records += mean_records(records, samples)
    files = {"scores.jsonl": records, "samples.jsonl": samples}
    return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}


def write_audit(folder: Path, method: str, slack: float, lost: float, **settings: float) -> Path:
    """An audit and the recipe beside it, as the merge stage leaves them; `settings` are recipe keys."""
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
    models = {name: {"path": f"../{name}", "weight": 1.0, "density": 0.5} for name in ("ct", "sft")}
    recipe = {"method": method, "base": "../base", "models": models, "slack": slack, "protect": protect, **settings}
    (folder / "merge.yml").write_text(yaml.safe_dump(recipe))
    return folder


@dataclass
class Run:
    """A run of synthetic results.

    gains: by method and budget, how much higher than CT-then-SFT's 0.4 each accuracy is.
    lost: by method and budget, the share of SFT's top 5 % lost in sign conflicts.
    wobble: what seeds do: added to gains and shares, more at later budgets and twice as much with slack.
    lambdas: chosen by a method, 1.5 where it is not named.
    without_ct: how much higher half the base with half of SFT is, which no budget changes.
    """

    root: Path
    gains: Mapping[str, tuple[float, ...]]
    lost: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...] = (0, 1)
    wobble: tuple[float, ...] = (0.0,) * 9
    lambdas: Mapping[str, float] = field(default_factory=dict)
    without_ct: float = 0.0
    sampler: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for method, share in (("base", 0.26), ("sft", 0.3)):
                folder = write_scores(self.root / f"{method}-{seed}", {"genre": share, "blank": share}, 5.0)
                self.evaluations += [Evaluation(method, budget, seed, folder) for budget in BUDGETS]
            self.add_scores("average_of_base_and_sft", 0, seed, self.without_ct, 5.0)
            unmerged = {"ct": (-0.1,) * 3, "ct_then_sft": (0.0,) * 3, "average_of_ct_then_sft_and_ct": (0.0,) * 3}
            for method, gains in {**unmerged, **self.gains}.items():
                for place, (budget, gain) in enumerate(zip(BUDGETS, gains, strict=True)):
                    gain += self.noise(method, place, seed) if method in self.gains else 0.0
                    self.add_scores(method, budget, seed, gain, 4.0 - gain - place / 2)
            for method, shares in self.lost.items():
                for place, (budget, share) in enumerate(zip(BUDGETS, shares, strict=True)):
                    folder, slack = self.root / f"audit-{method}-{budget}-{seed}", "sv" in method
                    lost = share + self.noise(method, place, seed)
                    for name, norm in (("", {}), ("_at_norm", {"norm": 1.0})):
                        path, recipe = folder.with_name(folder.name + name), "ties_sv" if slack else "ties"
                        scale = self.lambdas.get(method + name, 1.5)
                        write_audit(path, recipe, float(slack), lost, **{"lambda": scale, **norm})
                        self.audits.append(Audit(method + name, budget, seed, path))
            for method, gains in self.gains.items():
                for budget, gain in zip(BUDGETS, gains, strict=True):
                    self.add_choice(method, budget, seed, 0.4 + gain)
                    self.add_at_norm(method, budget, seed)
        self.add_stage()

    def noise(self, method: str, place: int, seed: int) -> float:
        return self.wobble[seed] * (1 + place) * (2 if "sv" in method else 1)

    def add_scores(self, method: str, budget: int, seed: int, gain: float, bits: float) -> None:
        share = 0.4 + gain + 0.1 * seed
        folder = self.root / f"{method}-{budget}-{seed}"
        self.evaluations.append(
            Evaluation(method, budget, seed, write_scores(folder, {"genre": share, "blank": share}, bits))
        )

    def add_at_norm(self, method: str, budget: int, seed: int) -> None:
        """The same scores once more, of a merge whose step was given a norm: a control, stated and not tuned."""
        name = f"{method}_at_norm"
        self.evaluations.append(Evaluation(name, budget, seed, self.root / f"{method}-{budget}-{seed}"))

    def add_choice(self, method: str, budget: int, seed: int, score: float) -> None:
        folder = self.root / f"tune-{method}-{budget}-{seed}"
        folder.mkdir()
        slack = {"slack": 1.0, "protect": ["sft"]} if "sv" in method else {}
        settings = {"method": method, **slack, "lambda": self.lambdas.get(method, 1.5)}
        tries = [
            {"settings": {**settings, "lambda": 1.0}, "metric": "acc", "score": 0.1},
            {"settings": settings, "metric": "acc", "score": score},
        ]
        (folder / "tries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tries))
        (folder / "choice.yml").write_text(yaml.safe_dump(settings))
        self.choices.append(Choice(method, budget, seed, folder, sampler=self.sampler))

    def add_stage(self) -> None:
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

    def claims(self) -> Claims:
        return builtin_claims.answer_all(
            self.evaluations, merges.read_audits(self.audits), merges.read_choices(self.choices), "nya"
        )

    @property
    def untuned(self) -> list[Evaluation]:
        """Tuned methods by their first try: here, as CT scores."""
        folders = {(row.ct_tokens, row.seed): row.folder for row in self.evaluations if row.method == "ct"}
        return [
            Evaluation(one.method, one.ct_tokens, one.seed, folders[one.ct_tokens, one.seed]) for one in self.choices
        ]

    @property
    def inputs(self) -> Inputs:
        """What a report is made from."""
        return Inputs(
            info=INFO, evaluations=self.evaluations, audits=self.audits, choices=self.choices, stages=self.stages
        )

    def analysis(self, **more: Any) -> Analysis:
        """Return what its report shows; more: other inputs."""
        return analyse(replace(self.inputs, **more))

    def render(self, out: Path, **more: Any) -> ReportPaths:
        """Write the report; more: other inputs."""
        return report.render(replace(self.inputs, **more), out)
