"""Audits as shares discarded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import merge
from pipeline.report import merges
from pipeline.report.records import Audit
from tests.merge.conftest import recipe, save
from tests.pipeline.report.synthetic import write_audit


def test_a_merge_without_task_vectors_discards_nothing(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"method": "linear", "slack": 0.0, "protect": [], "models": {}}))
    assert merges.read_audits([Audit("linear", 10_000, 0, tmp_path)]) == []


def test_discarded_shares_are_means_over_seeds(tmp_path: Path) -> None:
    audits = [
        Audit("ties", 10_000, seed, write_audit(tmp_path / str(seed), "ties", 0.0, lost))
        for seed, lost in enumerate((0.1, 0.3))
    ]
    (one,) = merges.read_audits(audits)
    assert one.whole.lost_top == pytest.approx(0.2) and one.whole.lost == pytest.approx(0.1) and one.is_plain_ties


def test_a_control_whose_signs_are_drawn_is_not_ties(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "drawn", "ties", 0.0, 0.3)
    recipe = folder / "merge.yml"
    recipe.write_text(recipe.read_text().replace("density: 0.5", "density: 0.5\n    random_signs: true", 1))
    (drawn,) = merges.read_audits([Audit("random_signs", 10_000, 0, folder)])
    assert next(iter(drawn.settings_except_slack.values()))["models"]["ct"]["random_signs"] and not drawn.is_plain_ties


def test_task_vectors_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    """Norms, cosine and conflicts of real merges against the same numbers from the tensors."""
    chance, name = torch.Generator().manual_seed(0), "model.layers.0.mlp.up_proj.weight"
    base = torch.randn(64, 64, generator=chance)
    taus = {"ct": torch.randn(64, 64, generator=chance)}
    taus["sft"] = 0.3 * taus["ct"] + torch.randn(64, 64, generator=chance)
    folders = {"base": save(tmp_path / "base", {name: base})}
    folders |= {label: save(tmp_path / label, {name: base + tau}) for label, tau in taus.items()}
    weights = {"ct": {"weight": 0.5}, "sft": {"weight": 1.5}}
    recipes = {
        "wsd/ties": recipe(folders, "ties", {"ct": {}, "sft": {}}),
        "wsd/task_arithmetic": recipe(folders, "task_arithmetic", weights, **{"lambda": 0.8}),
        "wsd/trimmed": recipe(folders, "ties", {"ct": {"density": 0.5}, "sft": {}}),
        "cosine/ties": recipe(folders, "ties", {"ct": {}, "sft": {}}),
    }
    audits = []
    for method, one in recipes.items():
        folder = tmp_path / method
        folder.mkdir(parents=True)
        (folder / "audit.json").write_text(json.dumps(merge.audit(one)))
        (folder / "merge.yml").write_text(yaml.safe_dump(one.to_dict()))
        audits += [Audit(method, 50_000, 3, folder), Audit(method, 0, 3, folder)]
    cosine, annealed = merges.task_vectors(audits)
    ct, sft = taus["ct"].flatten().double(), taus["sft"].flatten().double()
    assert (annealed.regime, annealed.ct_tokens, annealed.seed) == ("wsd", 50_000, 3)
    assert annealed.ct_norm == pytest.approx(float(ct.norm()), rel=1e-6)
    assert annealed.norm_ratio == pytest.approx(float(ct.norm() / sft.norm()), rel=1e-6)
    assert annealed.cosine == pytest.approx(float(ct @ sft / ct.norm() / sft.norm()), rel=1e-5)
    assert annealed.in_conflict == pytest.approx(float((ct * sft < 0).double().mean()))
    assert cosine.regime == "cosine" and cosine.cosine is None
    broken = json.loads((tmp_path / "cosine/ties/audit.json").read_text())
    for norm in (0.0, None):  # SFT that changed nothing, and a norm that JSON cannot hold
        broken["models"]["sft"]["norm"] = norm
        (tmp_path / "cosine/ties/audit.json").write_text(json.dumps(broken))
        assert merges.task_vectors(audits) == [annealed]
    (_, budget, spreads), _ = merges.task_vectors_over_seeds([annealed, cosine])
    spread = spreads["ct_norm"]
    assert budget == 50_000 and spread and spread.low == spread.mean == spread.high == annealed.ct_norm
    assert merges.task_vectors_table([annealed]).columns[:3].tolist() == ["regime", "ct_tokens", "seed"]
