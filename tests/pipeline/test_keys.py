"""The keys of the default experiments: whoever changes one makes everybody's finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.graph import Inputs
from pipeline.plan import merged, plan_cell

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (95, "17e9b6d5c4da75bd"),
    "experiment=test": (28, "fdf51a4b93cb96a8"),
    "experiment=smollm2-cpu": (27, "8e5d79aeac6d6f93"),
    "experiment=smollm2": (95, "faa2948492e49182"),
    "experiment=paper": (482, "728df430b4df595b"),
    "experiment=paper eval.dtype=float32": (482, "3df9849e23656d55"),
    "experiment=paper-published": (148, "37353632009aa989"),
    "experiment=tiny train=lora": (95, "654f464695030062"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "76ae4ccd6f6cdb3a"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "0c0dd9c76921dbb4"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]
