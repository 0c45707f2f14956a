"""The keys of the shipped experiments: whoever changes one makes finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.graph import Inputs
from pipeline.plan import merged, plan_cell

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (149, "04ac92c701f01d6f"),
    "experiment=test": (28, "2fbbc5e1aa436715"),
    "experiment=smollm2-cpu": (55, "bba53d3d9e8104be"),
    "experiment=smollm2": (107, "febfeaf0f504dc70"),
    "experiment=paper": (482, "9141d698d4de97b3"),
    "experiment=paper eval.dtype=float32": (482, "8d2196fda0a32b09"),
    "experiment=paper-published": (148, "67b1af9a66264cd1"),
    "experiment=tiny train=lora": (149, "be37b30908fa9301"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "3b5cd00a26dbd949"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "3b868520fda56e9a"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]
