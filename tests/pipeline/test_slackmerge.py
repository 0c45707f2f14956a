"""The installed command: quick to answer, and the same code behind as the module forms."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from pipeline import slackmerge
from pipeline.report.records import Subject
from pipeline.report.report_sources import Sources

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pipeline.slackmerge", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def completed(words: list[str], incomplete: str) -> list[str]:
    shell = ShellComplete(slackmerge.slackmerge, {}, "slackmerge", "_SLACKMERGE_COMPLETE")
    return [item.value for item in shell.get_completions(words, incomplete)]


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["slackmerge"].partition(":")
    assert getattr(import_module(module), function) is slackmerge.main


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.slackmerge import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'hydra', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in slackmerge.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_each_command_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert slackmerge.main(["run", "--help"]) == 0
    assert capsys.readouterr().out.startswith("slackmerge [run|plan|")
    assert "usage: slackmerge merge " in run("merge", "--help").stdout
    assert "usage: slackmerge eval " in run("eval", "-h").stdout


def test_version_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert slackmerge.main(["--version"]) == 0
    assert metadata.version("slackmerge") in capsys.readouterr().out
    assert slackmerge.main(["mrege"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert slackmerge.main(["run", "experiment=tini"]) == 2
    assert capsys.readouterr().err == "experiment=tini: no such choice; experiment has " + ", ".join(
        sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
    ) + "\n"  # fmt: skip


def test_a_merge_s_exit_code_is_the_command_s(tmp_path: Path) -> None:
    done = run("merge", str(tmp_path / "missing.yml"), str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "missing.yml" in done.stderr


def test_the_shell_completes_commands_groups_and_choices() -> None:
    assert completed([], "re") == ["report"]
    assert "experiment=" in completed(["run", "-m"], "exp")
    assert completed(["run", "-m"], "experiment=te") == ["experiment=test"]
    assert completed(["plan", "-m", "experiment", "="], "te") == ["test"], "bash splits at the equals sign"
    assert "test" in completed(["plan", "-m", "experiment"], "=")
    assert completed(["merge"], "reci") == ["reci"], "a file's name is the shell's to complete"


def test_what_is_no_report_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slackmerge.main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path}: sources.json cannot be read" in capsys.readouterr().err
    gone = [(tmp_path / "store" / kind / "gone" / "stage.json", 1) for kind in ("eval", "ct")]
    Sources(Subject("tiny", "nya", "Chichewa", {}), [], stages=gone).save(tmp_path)
    assert slackmerge.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "store/eval/gone is not there, and 1 entries more" in error
