"""The installed command: quick to answer, and the same code behind as the module forms."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from common import project as version_module
from common.command_line import parse_command_line
from common.project import describe_version, version
from eval import __main__ as eval_options
from merge import cli as merge_options
from pipeline import cli
from pipeline.cli import VERBS
from pipeline.report.sources import Sources
from tests.pipeline.report.synthetic import INFO

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def completed(words: list[str], incomplete: str) -> list[str]:
    shell = ShellComplete(cli.slackmerge, {}, "slackmerge", "_SLACKMERGE_COMPLETE")
    return [item.value for item in shell.get_completions(words, incomplete)]


def test_the_entry_point_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")  # restored afterwards: the entry point sets it
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["slackmerge"].partition(":")
    assert getattr(import_module(module), function)(["--version"]) == 0
    assert capsys.readouterr().out == f"slackmerge {describe_version()}\n"


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'hydra', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_each_command_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for name, verb in VERBS.items():
        assert cli.main([name, "--help"]) == 0
        texts[name] = capsys.readouterr().out
        assert texts[name].startswith(f"Usage: slackmerge {name} ")
        words = " ".join(texts[name].split())
        assert verb.summary in words and verb.text in words
        assert all(f"  slackmerge {name} {example}".rstrip() + "\n" in texts[name] for example in verb.examples)
    assert len(set(texts.values())) == len(VERBS)
    assert "--multirun" in texts["plan"] and "--multirun" not in texts["watch"]
    for name, command in (("merge", merge_options.COMMAND), ("eval", eval_options.COMMAND)):
        shown = run(name, "-h").stdout
        assert shown.startswith(f"Usage: slackmerge {name} [OPTIONS] ") and command.summary in shown
        assert all(f"  slackmerge {name} {example}\n" in shown for example in command.examples)
        options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
        assert all(option.opts[0] in shown and option.help for option in options)
        assert "[default: cpu]" in " ".join(shown.split())


def test_version_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert shown == f"slackmerge {describe_version()}\n" and version() in shown
    assert cli.main(["mrege"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["run", "experiment=tini"]) == 2
    assert capsys.readouterr().err == "experiment=tini: no such choice. Did you mean tiny?\n"


def test_the_version_names_the_commit_of_a_clone_of_ours_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for folder in (tmp_path, tmp_path / "venv" / "slackmerge"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "first"], cwd=tmp_path, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    seen = {}
    for folder, changed in ((tmp_path, False), (tmp_path / "venv" / "slackmerge", False), (tmp_path, True)):
        if changed:
            (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.9.0"\n')
        monkeypatch.setattr(version_module, "ROOT", folder.resolve())
        version_module.commit.cache_clear()
        seen[folder.name, changed] = describe_version()
    version_module.commit.cache_clear()
    assert seen[tmp_path.name, False] == f"7.8.9 (commit {head[:7]})"
    assert seen["slackmerge", False] == "7.8.9", "the commit of a repository that merely holds us"
    assert seen[tmp_path.name, True] == f"7.9.0 (commit {head[:7]}+)"


def test_own_configuration_files_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\ndefaults:\n  - test\nname: ours\nct:\n  tokens: 2048\n"
    (tmp_path / "experiment" / "ours.yaml").write_text(own)
    settings = ["experiment=ours", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]
    assert cli.main(["plan", "--config-dir", str(tmp_path), *settings]) == 0
    planned = capsys.readouterr().out
    assert "nya-2048-s0" in planned and "\n1 cell, " in planned
    assert cli.main(["plan", "-m", f"--config-dir={tmp_path}", *settings, "ct.tokens=2048", "seed=0,1"]) == 0
    assert "2 cells" in capsys.readouterr().out
    assert cli.main(["plan", *settings]) == 2
    assert capsys.readouterr().err.startswith("experiment=ours: no such choice")
    assert cli.main(["plan", f"--config-dir={tmp_path}/none", *settings]) == 2
    assert capsys.readouterr().err.startswith("--config-dir: no such folder, got ")


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
    assert completed(["push", "ct"], "--pri") == completed(["merge", "a.yml"], "--pri") == ["--private"]
    assert completed(["eval", "merged", "--split"], "d") == ["dev"]
    assert completed(["make"], "sf") == ["sft_blocks", "sft", "sf"], "a kind; of push, it may be a folder"
    assert completed(["make", "ct", "nya", "-m"], "experiment=te") == ["experiment=test"]


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command, with the option's name and where its help is."""
    for name in cli.COMMANDS:
        done = run(name, "--nope")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, name
        assert "--nope" in done.stderr and f"See slackmerge {name} --help." in done.stderr
    wrong_split = run("eval", "model", "--out", "out", "--split", "train")
    assert wrong_split.returncode == 2 and "'train' is not one of 'dev', 'test'" in wrong_split.stderr
    assert run("eval").stderr == "slackmerge eval: Missing argument 'MODEL'. See slackmerge eval --help.\n"


def test_several_values_of_an_option_follow_it_or_repeat_it() -> None:
    def grid(*words: str) -> tuple[str, ...]:
        given = parse_command_line(merge_options.COMMAND, words, "merge")
        assert not isinstance(given, int)
        assert (given.recipe, given.out_dir) == ("merge.yml", "grid")
        return tuple(given.grid)

    for words in (
        "merge.yml grid --grid a=1,2 b=3",
        "--grid a=1,2 b=3 merge.yml grid",
        "merge.yml --grid a=1,2 --grid b=3 --quiet grid",
        "merge.yml --grid=a=1,2 --grid b=3 grid",
    ):
        assert grid(*words.split()) == ("a=1,2", "b=3"), words
    scored = parse_command_line(
        eval_options.COMMAND, ["m", "--out", "o", "--tasks", "next_nya", "ߒߞߏ", "--limit", "3"], "eval"
    )
    assert not isinstance(scored, int) and scored.tasks == ("next_nya", "ߒߞߏ") and scored.limit == 3


def test_what_is_no_report_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path}: sources.json cannot be read" in capsys.readouterr().err
    gone = [(tmp_path / "store" / kind / "gone" / "stage.json", 1) for kind in ("eval", "ct")]
    Sources(info=INFO, evaluations=[], stages=gone).save(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "store/eval/gone is missing, and 1 entries more" in error
