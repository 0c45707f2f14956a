"""Merges of checkpoints from outside (merge.checkpoints): the plan, what is rejected, and a run in Tamil."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import BadInput
from pipeline import inputs, sweep
from pipeline.config import Config
from pipeline.run.run import check_configs
from pipeline.stages.cell import Cell, plan_cell
from pipeline.stages.stage import Inputs
from tests import toy_text
from tests.messages import assert_one_line, assert_wording
from tests.pipeline.tiny_pair import make_pair, shifted, tamil

ROOT = Path(__file__).parents[2]
SUM = "+merge.methods.sum={of:[ct,sft,tutor],recipe:{method:task_arithmetic,lambda:0.5,models.tutor.weight:2.0}}"


def expand(*overrides: str) -> Config:
    return sweep.expand(["experiment=test", "model=tiny", *overrides], multirun=False).configs[0]


def planned(*overrides: str, known: str = "t") -> Cell:
    return plan_cell(expand(*overrides), Inputs("m", corpus=("text",), checkpoints={"tutor": known}))


def test_a_further_checkpoint_is_a_parent_where_it_is_named_and_changes_no_other_key() -> None:
    plain, cell = planned(), planned("merge.checkpoints={tutor:a}", SUM)
    merge = cell.merges["sum"]
    assert list(merge.parents) == ["model", "ct", "sft", "tutor"]
    assert merge.parents["tutor"].given and merge.parents["tutor"].options.path == "a"
    assert cell.evals["sum"].parents["tutor"].key == merge.parents["tutor"].key
    assert {stage.key for stage in plain.stages} < {stage.key for stage in cell.stages}
    moved, other = (planned(f"merge.checkpoints={{tutor:{place}}}", SUM, known=known) for place, known in ("bt", "au"))
    assert moved.merges["sum"].key == merge.key != other.merges["sum"].key


def test_task_vectors_may_start_from_a_further_checkpoint() -> None:
    start = "+merge.methods.back={of:[ct],from:tutor,recipe:{method:linear}}"
    merge = planned("merge.checkpoints={tutor:a}", start).merges["back"]
    assert merge.parents["model"].options.path == "a" and list(merge.parents) == ["model", "ct"]


def test_without_ct_a_merge_has_no_budget() -> None:
    cell = planned("merge.checkpoints={tutor:a}", "+merge.methods.sum={of:[sft,tutor],recipe:{method:linear}}")
    assert cell.budget_of("sum") == 0 and cell.budget_of("task_arithmetic") == cell.ct_tokens
    assert cell.merges["sum"].slug == "nya-sum-s0"


@pytest.mark.parametrize(
    ("case", "key", "overrides"),
    [
        ("unknown parent", "merge.methods.sum.of.2=tutor: ", ["merge.checkpoints={tutr:a}", SUM]),
        ("no checkpoints", "merge.methods.sum.of.2=tutor: ", [SUM]),
        ("not used", "merge.checkpoints.b", ["merge.checkpoints={tutor:a,b:c}", SUM]),
        ("name of ours", "merge.checkpoints.items", ["merge.checkpoints={items:a}"]),
        ("name of a baseline", "merge.checkpoints.ct", ["merge.checkpoints={ct:a}"]),
        ("old name", "merge.checkpoints.ceiling", ["merge.checkpoints={ceiling:a}"]),
        ("name with a dash", "merge.checkpoints.my-model", ["merge.checkpoints={my-model:a}"]),
        ("no path", "merge.checkpoints.tutor", ["merge.checkpoints={tutor:null}", SUM]),
        ("unknown start", "merge.methods.ties_sv_1.from=bas", ["+merge.methods.ties_sv_1.from=bas"]),
        ("role in capitals", "merge.methods.ties_sv_1.of.0=CT", ["+merge.methods.ties_sv_1.of=[CT,sft]"]),
    ],
)
def test_names_that_cannot_be(case: str, key: str, overrides: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        expand(*overrides)
    assert_one_line(caught.value, key)
    assert_wording(f"further checkpoints: {case}", caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three models made from it, and Tamil text."""
    folder = tmp_path_factory.mktemp("made")
    base, _ = make_pair(folder)
    for seed, name in enumerate(("ct", "sft", "tutor"), start=5):
        shifted(base, folder / name, seed)
    tamil(folder, 60)
    (folder / "english.txt").write_text("\n\n".join(toy_text.sentences(0, 60)))
    return folder


def words(made: Path, out: Path, *more: str) -> list[str]:
    return [
        "experiment=test", "language.code=tam", "language.name=Tamil", "corpus=files", f"corpus.path={made}/tamil.txt",
        f"corpus.english_path={made}/english.txt", "model=folder", f"model.path={made}/base", f"ct.source={made}/ct",
        f"sft.source={made}/sft", "eval.families=[]", "eval.baselines=[base]", "eval.limit=4", "merge=none",
        "merge.metric=bits_per_byte", f"merge.checkpoints={{tutor:{made}/tutor}}", f"store={out}/store",
        f"outputs={out}/out", *more,
    ]  # fmt: skip


def failures(made: Path, out: Path, *more: str) -> list[str]:
    (config,) = sweep.expand(words(made, out, SUM, *more), multirun=False).configs
    return [finding.text for finding in check_configs([config])[1] if finding.fails]


def test_a_model_that_cannot_be_merged_is_one_line_before_anything_runs(made: Path, tmp_path: Path) -> None:
    def changed(name: str, file: str, change: str, to: str) -> str:
        copy = Path(shutil.copytree(made / "tutor", tmp_path / name))
        (copy / file).write_text((copy / file).read_text().replace(change, to))
        return f"merge.checkpoints.tutor={copy}"

    wide = changed("wide", "config.json", '"intermediate_size": 32', '"intermediate_size": 64')
    other = changed("other", "tokenizer.json", '"<|im_start|>"', '"<|im_begin|>"')
    fewer = Path(shutil.copytree(made / "tutor", tmp_path / "fewer"))
    weights = load_file(fewer / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, fewer / "model.safetensors", metadata={"format": "pt"})
    assert not failures(made, tmp_path)
    for case, override in (("sizes", wide), ("tokens", other)):
        (line,) = failures(made, tmp_path, override)
        assert_wording(f"further checkpoints: other {case}", line, FOLDER=tmp_path, MADE=made)
    (line,) = failures(made, tmp_path, f"merge.checkpoints.tutor={fewer}")
    assert_one_line(line, f"merge.checkpoints.tutor: {fewer}: tensor model.layers.1.mlp.up_proj.weight is missing")
    (line,) = failures(made, tmp_path, "merge.checkpoints.tutor=nowhere")
    assert_one_line(line, "merge.checkpoints.tutor=nowhere: no such folder")
    by_token = SUM.replace("recipe:{", "recipe:{tokenizer:union,")
    (config,) = sweep.expand(words(made, tmp_path, by_token, other), multirun=False).configs
    assert not [finding for finding in check_configs([config])[1] if finding.fails]


def test_a_run_merges_a_further_checkpoint_as_arithmetic_does(made: Path, tmp_path: Path) -> None:
    back = "+merge.methods.back={of:[tutor],from:sft,recipe:{method:task_arithmetic,lambda:0.25}}"
    overrides = words(made, tmp_path, SUM, back, "merge.write=true")
    command = [sys.executable, "-m", "slackmerge", "run", *overrides]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    rows = Path(summary["results"]).read_text().splitlines()[1:]
    assert {line.split(",")[3] for line in rows} == {"base", "sum", "back"}
    base, ct, sft, tutor = (load_file(made / name / "model.safetensors") for name in ("base", "ct", "sft", "tutor"))
    for method, expected in {
        "sum": {n: t + 0.5 * ((ct[n] - t) + (sft[n] - t) + 2 * (tutor[n] - t)) for n, t in base.items()},
        "back": {n: t + 0.25 * (tutor[n] - t) for n, t in sft.items()},
    }.items():
        (folder,) = (tmp_path / "store" / "weights").glob(f"tam-{method}-*")
        found = load_file(folder / "model" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    key = inputs.inputs(sweep.expand(overrides, multirun=False).configs[0]).checkpoints["tutor"]
    assert key and len(key) > 20
