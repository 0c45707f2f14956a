"""The keys of the shipped experiments: whoever changes one makes finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.graph import Inputs
from pipeline.plan import merged, plan_cell

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (91, "37ea600fa6f19c29"),
    "experiment=test": (28, "9c4c6ea8c4b728f5"),
    "experiment=smollm2-cpu": (27, "6852bc4722a84b19"),
    "experiment=smollm2": (119, "a815de83aafce108"),
    "experiment=paper": (482, "16b07f327eb91ef1"),
    "experiment=paper eval.dtype=float32": (482, "ee39f296b5e0894f"),
    "experiment=paper-published": (148, "22a58ab7a9167e53"),
    "experiment=tiny train=lora": (91, "54e2b717801f885d"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "bf266a47962438f9"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "119e7bcc6c523984"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]
