"""Checkpoints of the hub, by the hub's own library over a cache that is laid out as it lays it out; there is no
network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import hub
from common.errors import BadInput
from pipeline import inputs, sweep
from pipeline.stages.cell import plan_cell

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny-base"
COMMIT, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds me/tiny, its branch main at COMMIT."""
    from huggingface_hub import constants

    folder = tmp_path / "hf" / "hub"
    snapshot(folder, "me/tiny", COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.commit.cache_clear()
    return folder


def snapshot(cache: Path, repo: str, commit: str) -> Path:
    model = cache / f"models--{repo.replace('/', '--')}"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(TINY, model / "snapshots" / commit, ignore=shutil.ignore_patterns("log.jsonl", "README.md"))
    return model / "snapshots" / commit


def planned(*overrides: str) -> tuple[str, ...]:
    config = sweep.expand(("experiment=test", "model=folder", *overrides), multirun=False).configs[0]
    return tuple(stage.key for stage in plan_cell(config, inputs.inputs(config)).stages)


def test_a_snapshot_in_the_cache_is_the_folder(cache: Path) -> None:
    for path in ("hub:me/tiny", "hub:me/tiny@main", f"hub:me/tiny@{COMMIT}"):
        assert hub.fetch(path) == cache / "models--me--tiny" / "snapshots" / COMMIT
    assert hub.fetch("models/x") == Path("models/x")


def test_keys_are_made_from_the_commit_and_not_from_the_files(cache: Path) -> None:
    keys = planned("model.path=hub:me/tiny")
    assert keys == planned(f"model.path=hub:me/tiny@{COMMIT}")
    (
        cache / "models--me--tiny" / "snapshots" / COMMIT / "model.safetensors"
    ).unlink()  # gigabytes are not read to know a key
    assert keys == planned("model.path=hub:me/tiny")
    snapshot(cache, "me/tiny", OTHER)
    hub.commit.cache_clear()
    assert keys != planned("model.path=hub:me/tiny")


def test_the_commit_of_the_key_is_what_is_fetched(cache: Path) -> None:
    config = sweep.expand(("experiment=test", "model=folder", "model.path=hub:me/tiny"), multirun=False).configs[0]
    models = [stage for stage in plan_cell(config, inputs.inputs(config)).stages for stage in stage.parents.values()]
    places = {stage.options.path for stage in models if stage.kind == "model"}
    snapshot(cache, "me/tiny", OTHER)  # the branch goes on
    assert [hub.fetch(place).name for place in places] == [COMMIT]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hub:me/none", "the Hub is unreachable and the cache .* does not contain the model"),
        ("hub:me/tiny@v2", "the Hub is unreachable"),
        ("hub:tiny", "not a model of the Hub"),
        ("hub:me/tiny@", "not a model of the Hub"),
        ("hub:me/tiny@/bin/ls", "not a model of the Hub"),
        ("hub:me/tiny@a/../../b", "not a model of the Hub"),
    ],
)
def test_what_is_not_at_hand_is_refused_in_one_line(cache: Path, path: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        hub.commit(hub.parse(path, "ct.source") or pytest.fail(path), "ct.source", network=True)
        hub.fetch(path, "ct.source")
    assert str(refusal.value).startswith(f"ct.source={path}") and "\n" not in str(refusal.value)


def test_a_download_that_was_cut_off_is_not_taken_for_a_model(cache: Path) -> None:
    folder = cache / "models--me--tiny" / "snapshots" / COMMIT
    assert hub.is_complete(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": shard.name, "b": "model-00002-of-00002.safetensors"}})
    )
    assert not hub.is_complete(folder)
    with pytest.raises(BadInput, match="does not contain the model"):
        hub.fetch("hub:me/tiny")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], "*.safetensors"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "*.safetensors"),
        (["pytorch_model.bin", "adapter_model.safetensors"], "pytorch_model*"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pytorch_model*"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter_model.safetensors"),
        (["adapter_config.json", "adapter_model.bin"], "adapter_model.bin"),
    ],
)
def test_one_format_of_the_weights_is_fetched(names: list[str], pattern: str) -> None:
    assert hub.weight_pattern(names) == pattern


def test_an_adapter_in_the_older_format_is_whole(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    assert not hub.is_complete(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    assert hub.is_complete(tmp_path)


@pytest.mark.parametrize("answer", ["GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"])
def test_what_the_hub_refuses_says_what_to_do(answer: str) -> None:
    import httpx
    from huggingface_hub import errors

    error = getattr(errors, answer)(
        "no", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    )
    said = str(hub.hub_error(hub.HubModel("me/tiny", "main"), "model.path", error))
    does = {
        "GatedRepoError": "Accept its licence at https://huggingface.co/me/tiny",
        "RepositoryNotFoundError": "Check the name",
    }
    assert does.get(answer, "has no revision main") in said


def test_a_published_ct_and_sft_are_merged_and_scored_without_training(tmp_path: Path) -> None:
    """The merging half alone: θ0 and CT from the hub's cache, SFT from a folder."""
    import torch
    from safetensors.torch import load_file, save_file

    cache = tmp_path / "hf" / "hub"
    snapshot(cache, "me/tiny", COMMIT)
    for place in (snapshot(cache, "me/tiny-ny", OTHER), tmp_path / "sft"):
        if not place.exists():
            shutil.copytree(TINY, place)
        weights = load_file(place / "model.safetensors")
        torch.manual_seed(len(place.name))
        save_file(
            {name: value + 1e-3 * torch.randn_like(value) for name, value in weights.items()},
            place / "model.safetensors",
            {"format": "pt"},
        )
    arguments = [
        "run",
        "experiment=test",
        "model=folder",
        f"model.path=hub:me/tiny@{COMMIT}",
        'ct.source="hub:me/tiny-{lang}"',
        f"sft.source={tmp_path}/sft",
    ]
    arguments += [
        "eval.baselines=[base,sft,ct]",
        f"store={tmp_path}/store",
        f"outputs={tmp_path}/outputs",
        "compute.threads=1",
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,  # of a hang, not of slowness
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert {folder.name for folder in (tmp_path / "store").iterdir() if not folder.name.startswith(".")} == {
        "corpus",
        "items",
        "tune",
        "merge",
        "eval",
    }
    summary = json.loads(run.stdout.splitlines()[-1])
    methods = {line.split(",")[3] for line in Path(summary["results"]).read_text().splitlines()[1:]}
    assert methods == {"base", "sft", "ct", "task_arithmetic", "ties_sv_1"}
