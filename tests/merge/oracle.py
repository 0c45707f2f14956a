"""Real mergekit, for the tests that hold our merges against it.

It needs an environment of its own (tests/merge/requirements-oracle.txt): `.venv-oracle` in the repository, or the path
of a python in SLACKMERGE_ORACLE_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.engine.outputs import Output, Parent
from merge.engine.plan import Plan
from merge.engine.tensor_recipe import TensorRecipe
from merge.methods import VARIANCE

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SLACKMERGE_ORACLE_PYTHON", ROOT / ".venv-oracle/bin/python"))
needs_mergekit = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"mergekit is not installed: no {PYTHON} (see tests/merge/oracle.py)"
)
Tensors = dict[str, torch.Tensor]


def run_mergekit(jobs: Sequence[tuple[Path, Path]]) -> None:
    """Merge each (config, folder) with mergekit, all in one process."""
    listed = jobs[0][1].parent / "jobs.json"
    listed.write_text(json.dumps([{"config": str(config), "out": str(out)} for config, out in jobs]))
    script = Path(__file__).with_name("oracle_run.py")
    ran = subprocess.run([PYTHON, script, listed], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def load(folder: Path) -> Tensors:
    """All tensors of a checkpoint folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def at_threshold(recipe: merge.Recipe, plan: Plan, output: Output) -> torch.Tensor:
    """Elements whose magnitude, in some model, is exactly one at which that model is trimmed and which others share."""
    tensor = TensorRecipe.of(recipe, plan, output)
    explained = torch.zeros(output.shape, dtype=torch.bool)
    for term in tensor.terms:
        tau = stored(plan, term.parent, output).to(tensor.dtype) - stored(plan, output.leader, output).to(tensor.dtype)
        magnitude = tau.float().abs()
        for rank in term.ranks:
            edge = magnitude.flatten().sort(descending=True).values[max(rank, 1) - 1]
            at_edge = magnitude == edge
            if at_edge.sum() > 1:
                explained |= at_edge
    if recipe.spec.sparsify == VARIANCE and tensor.topk < 1:
        base = stored(plan, output.leader, output)
        taus = [stored(plan, term.parent, output).to(tensor.dtype) - base.to(tensor.dtype) for term in tensor.terms]
        variance = torch.stack(taus).var(dim=0, unbiased=False)
        kept = int(variance.count_nonzero() * tensor.topk)
        edge = variance.flatten().sort(descending=True).values[max(kept, 1) - 1]
        explained |= (variance == edge) & ((variance == edge).sum() > 1)
    return explained


def stored(plan: Plan, parent: Parent, output: Output) -> torch.Tensor:
    """A parent's tensor as it is stored."""
    return plan.parents[parent].read(output.sources[parent], 0, output.numel).view(output.shape)
