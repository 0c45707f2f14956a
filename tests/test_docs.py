"""What README and docs show does what they say: commands run, or can be composed; the notebook runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from common.command_line import parse_command_line
from merge.cli import main as merge_command
from pipeline import sweep
from pipeline.cli import COMMANDS, VERBS, parse
from pipeline.run.make import find_planned
from pipeline.stages import STAGE_TYPES
from tests.markdown import BLOCKS, ROOT, Block, blocks
from tests.merge.conftest import LAYERS, save, shapes

SHOWN = [b for b in BLOCKS if b.page == ROOT / "README.md" or b.page.parent.name in ("tutorials", "how-to")]
COMMAND_BLOCKS = [b for b in SHOWN if b.language == "bash" and not b.exempt]


@cache
def compose(*settings: str) -> None:
    """Compose and validate one run of a sweep: of an axis `key=a,b` its first value. Raises BadInput."""
    assert sweep.expand([re.sub(r"^([\w.]+=[^\[{'*,]+),.*", r"\1", one) for one in settings], multirun=False).configs


@pytest.mark.parametrize("block", COMMAND_BLOCKS, ids=str)
def test_commands_are_known_and_composed(block: Block) -> None:
    """Every command of tutorials and guides exists; a sweep's settings compose; options are ones that --help lists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in block.commands:
        if words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), words
            for setting in words[2:]:
                assert re.search(rf"\b{setting.partition('=')[0]}\b", makefile), setting
        elif words[0] == "slackmerge":
            verb, given = words[1], words[2:]
            assert verb in COMMANDS, words
            if verb in ("run", "plan", "check"):
                compose(*(word for word in given if not re.match(r"-m$|(cluster|mfu|site|launcher)=", word)))
            elif verb in ("make", "push"):
                typed = parse(verb, given, "slackmerge")  # raises for an unknown option
                names = [word for word in typed.words if "=" not in word]
                if names[0] in STAGE_TYPES:
                    find_planned(names[0], names[1], [word for word in typed.words if "=" in word], typed.multirun)
            elif verb in ("merge", "eval"):
                command = import_module(COMMANDS[verb][1].partition(":")[0]).COMMAND
                assert not isinstance(parse_command_line(command, given, verb), int), words
        else:
            assert words[0] in ("ls", "head", "grep", "git", "source", "sudo"), words


@pytest.mark.parametrize("words", [(name, words) for name in ("make", "push") for words in VERBS[name].examples])
def test_stages_in_examples_of_the_help_are_planned(words: tuple[str, str]) -> None:
    typed = parse(words[0], words[1].split(), "slackmerge")
    names = [word for word in typed.words if "=" not in word]
    if names[0] in STAGE_TYPES:
        _, _, stage = find_planned(names[0], names[1], [word for word in typed.words if "=" in word], typed.multirun)
        assert stage.kind == names[0]


def test_merges_of_the_guides_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's recipe and every merge command of the guides, on tiny checkpoints."""
    import torch

    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in shapes().items()}
    for number, model in enumerate(("base", "ct", "sft", "a", "b")):
        noisy = {name: tensor + 0.1 * number * torch.randn_like(tensor) for name, tensor in base.items()}
        save(tmp_path / "path/to" / model, noisy)
    monkeypatch.chdir(tmp_path)
    guide = ROOT / "docs/how-to/merge-two-checkpoints.md"
    recipes = [block for block in BLOCKS if block.language == "yaml" and "base: path/to/base" in block.text]
    ours = [block for block in recipes if block.page in (ROOT / "README.md", guide, ROOT / "docs/explanation/slack.md")]
    assert len(ours) == 3
    for number, recipe in enumerate(ours):
        Path("merge.yml").write_text(recipe.text, encoding="utf-8")
        assert merge_command(["merge.yml", f"merged_{number}", "--quiet"]) == 0
        assert json.loads(Path(f"merged_{number}/audit.json").read_text())["models"]
    done = 0
    Path("merge.yml").write_text(next(block for block in ours if block.page == guide).text, encoding="utf-8")
    for block in COMMAND_BLOCKS:
        for words in block.commands:
            if words[:2] == ["slackmerge", "merge"]:
                for folder in ("merged", "grid"):
                    shutil.rmtree(folder, ignore_errors=True)
                assert merge_command(words[2:]) == 0, words
                done += 1
                named = [
                    word for word in block.page.read_text().split() if word.startswith("grid/") and word != "grid/"
                ]
                assert "--grid" not in words or all(Path(name).is_dir() for name in named), named
    assert done >= 5


def test_cheap_commands_run(tmp_path: Path) -> None:
    """The first plan of a tutorial, as a reader types it, gives the line that the tutorial shows."""
    page = ROOT / "docs/tutorials/your-language.md"
    plan = next(words for block in blocks(page) for words in block.commands if words[:2] == ["slackmerge", "plan"])
    shown = re.search(r"^\d+ cells, \d+ stages: 0 done, \d+ to run$", page.read_text(), re.MULTILINE)
    program = [sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run(
        [*program, *plan[1:], f"store={tmp_path}"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shown and shown[0] in done.stdout


def test_the_notebook_merges_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in shapes().items()}
    for number, model in enumerate(("base", "ct", "sft")):
        save(
            tmp_path / model, {name: tensor + 0.1 * number * torch.randn_like(tensor) for name, tensor in base.items()}
        )
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/tutorials/merge-and-audit.ipynb").read_text())["cells"]
    scope: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)  # noqa: S102, our own cells
    audits: dict[float, Any] = scope["audits"]
    lost = [audit["models"]["sft"]["share_lost_in_conflict"] for audit in audits.values()]
    assert lost == sorted(lost, reverse=True) and lost[0] > lost[-1]  # slack keeps SFT's
    assert str(scope["svg"]).count('aria-roledescription="rect mark"') == (LAYERS + 1) * 4
    assert (tmp_path / "merged" / "model.safetensors").exists()
