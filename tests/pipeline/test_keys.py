"""The keys of the shipped experiments: whoever changes one makes finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.graph import Inputs
from pipeline.plan import merged, plan_cell

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (91, "f8a903b835ba95d8"),
    "experiment=test": (28, "507d662d421f8a62"),
    "experiment=smollm2-cpu": (55, "0c8d0e577b5cf140"),
    "experiment=smollm2": (119, "5bf9cd6819feb092"),
    "experiment=paper": (482, "753ea9c47a8d342d"),
    "experiment=paper eval.dtype=float32": (482, "11e9f9fe9507a3b8"),
    "experiment=paper-published": (148, "9c0f8d16c39fa531"),
    "experiment=tiny train=lora": (91, "9c66b6cf978cad0b"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "6e281a7a9ffa96b2"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "358d884d2837b405"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]
