"""The wheel, installed outside the clone: it merges, plans and runs, and it installs one name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from common.project import version
from tests.merge.conftest import save, shapes

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "train", "merge", "eval", "pipeline", "conf", "slackmerge", "models/tiny-base")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, source / file)
    stale = source / "build" / "lib" / "slackmerge" / "pipeline" / "gone.py"  # of an earlier build
    stale.parent.mkdir(parents=True)
    stale.touch()
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(source.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it. It sees the packages of this one, but not its link to the clone."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib*/python*/site-packages"))
    # A path in a .pth file is searched, but .pth files within it, such as those of editable installs, are not read.
    (packages / "other_packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    return folder


def run(environment: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(environment / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, check=False)


def test_a_wheel_installs_one_name_with_all_that_it_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"slackmerge", f"slackmerge-{version()}.dist-info"}
    assert f"slackmerge-{version()}.dist-info/licenses/LICENSE" in names
    assert "slackmerge/pipeline/gone.py" not in names
    inside = {name.removeprefix("slackmerge/") for name in names}
    for folder in PACKAGES[:-2]:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert str(file.relative_to(ROOT)) in inside
    assert "models/tiny-base/model.safetensors" in inside


def test_nothing_of_the_clone_is_imported(environment: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys\n"
        "names = ('common', 'train', 'merge', 'eval', 'pipeline', 'conf', 'models')\n"
        "assert not any(map(u.find_spec, names)), 'the wheel adds these names to every program'\n"
        "import slackmerge, merge, pipeline.sweep\n"
        "print(merge.__file__, pipeline.sweep.CONF, sep='\\n')\n"
    )
    done = run(environment, tmp_path, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(environment) for line in done.stdout.splitlines())


def test_it_merges(environment: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("base", "first", "second")):
        torch.manual_seed(number)
        save(tmp_path / name, {key: torch.randn(shape) for key, shape in shapes().items()})
    recipe = {"method": "ties", "base": "base", "models": {"first": {"path": "first"}, "second": {"path": "second"}}}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = run(environment, tmp_path, "slackmerge", "merge", "recipe.yml", "merged")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert run(environment, tmp_path, "slackmerge", "--version").stdout == f"slackmerge {version()}\n"


def test_it_plans_and_runs_with_configuration_of_ones_own(environment: Path, tmp_path: Path) -> None:
    planned = run(environment, tmp_path, "slackmerge", "plan", "experiment=tiny")
    assert planned.returncode == 0, planned.stderr
    assert "tiny-base" in planned.stdout and "to run" in planned.stdout
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "smallest.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - test\n  - override /model: tiny\n  - override /merge: none\n"
        "name: smallest\n"
        f"ct: {{tokens: 2048, source: {ROOT}/models/tiny-base}}\n"
        "sft: {items: 10, tokens: 2048, batch_tokens: 1024}\n"
        "eval: {items: 4, limit: 2, families: [next], max_chars: 40}\n"
    )
    done = run(environment, tmp_path, "slackmerge", "run", "--config-dir", "own", "experiment=smallest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs" / "smallest" / "report.html").exists()
    assert list((tmp_path / "store" / "sft").iterdir()), "nothing was trained"
