"""The keys of the shipped experiments: whoever changes one makes finished stages anew, and changes it here."""

from __future__ import annotations

import hashlib

import pytest

from pipeline import sweep
from pipeline.graph import Inputs
from pipeline.plan import merged, plan_cell

INPUTS = Inputs("model", "ct", "sft", ("text", "en"), ("instructions",), ("tasks",))
KEYS = {  # overrides: (stages, a digest of kinds, slugs, keys and trajectories in the plan's order)
    "experiment=tiny": (91, "8856bff34dd16feb"),
    "experiment=test": (28, "0cbfe420c614afdd"),
    "experiment=smollm2-cpu": (55, "77d3f99bedb7692e"),
    "experiment=smollm2": (119, "9a2574e20fc129e4"),
    "experiment=paper": (482, "32206deca4f31458"),
    "experiment=paper eval.dtype=float32": (482, "3829fea0a595954f"),
    "experiment=paper-published": (148, "6cf081efaf4710d0"),
    "experiment=tiny train=lora": (91, "b139ccf99ec31b28"),
    "experiment=test merge.write=true eval.leaks=true compute.precision=bf16": (33, "3f2f5260396563e3"),
    "experiment=test model.path=a ct.source=b sft.source=c ct.tokens=2048": (14, "2e49e66994c3e5a2"),
}


def digest(*overrides: str) -> tuple[int, str]:
    multirun = "hydra.sweeper.params={}" not in overrides
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=multirun).configs]
    lines = [f"{stage.kind} {stage.slug} {stage.key} {stage.trajectory}" for stage in merged(cells)]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("overrides", KEYS)
def test_keys_stay(overrides: str) -> None:
    assert digest(*overrides.split()) == KEYS[overrides]
