"""The keys of the shipped experiments: whoever changes one makes finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.stages.cell import merged, plan_cell
from pipeline.stages.stage import Inputs

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (102, "4f1df51e16fb321f"),
    "experiment=frontier": (743, "e056295e28ad52ae"),
    "experiment=cosine": (149, "80ed6c59486b6f18"),
    "experiment=test": (28, "c2214de7d32ba8ae"),
    "experiment=smollm2-cpu": (55, "a7916f260038dea0"),
    "experiment=smollm2": (107, "b2cc56d88cb1e464"),
    "experiment=paper": (482, "1d238a628f9bd2c7"),
    "experiment=paper eval.dtype=float32": (482, "ab654b27015e1229"),
    "experiment=paper-published": (148, "c889dea669faf94e"),
    "experiment=cosine train=lora": (149, "6342612955c210c9"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "7eb866703967d3df"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "6a54e979ad261e3d"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]


@pytest.mark.parametrize(
    ("overrides", "mark"),
    [
        ("experiment=test language=mine language.code=xyz corpus.path=a.txt", "kept"),
        ("experiment=tiny", None),
        ("experiment=paper", None),
    ],
)
def test_only_corpora_of_own_files_are_marked(overrides: str, mark: str | None) -> None:
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides.split(), multirun=True).configs]
    assert {stage.key_content.get("lines") for stage in merged(cells) if stage.kind == "corpus"} == {mark}


def test_notes_are_in_no_key() -> None:
    def notes(*overrides: str) -> tuple[str, ...]:
        return sweep.expand(overrides, multirun=True).configs[0].notes

    assert len(notes("experiment=cosine")) == 2 and notes("experiment=evidence") == notes("experiment=cosine")
    assert notes("experiment=test") == () and notes("experiment=gates") == ()
    assert digest("experiment=cosine", "notes=[Another.]") == KEYS["experiment=cosine"]
