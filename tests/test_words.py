"""The rules of CONTRIBUTING.md for texts, as far as a machine can check them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from common.errors import MOST_LISTED, listed, suggestion
from tests import commits, plain_words
from tests.markdown import ROOT
from tests.messages import stored

SINCE = "1c3adeef19"  # subjects of earlier commits are as they are


@pytest.mark.parametrize("texts", [plain_words.of_pages, plain_words.of_code, plain_words.of_configs])
def test_words_that_we_do_not_use(texts: plain_words.Texts) -> None:
    lines = list(texts())
    assert len(lines) > 200
    assert found(lines) == []


def test_the_test_finds_such_words() -> None:
    assert found([("here", "A stage is made anew."), ("there", "# Refuses it; a renewed one")]) == [
        "here: anew",
        "there: Refuses",
    ]


def found(lines: Iterable[plain_words.Line]) -> list[str]:
    return [
        f"{place}: {match[0]}"
        for place, line in lines
        for match in plain_words.PATTERN.finditer(re.sub(r"`[^`]*`", "", line))
    ]


def test_lines_of_conf_are_short() -> None:
    assert [
        f"{path.relative_to(ROOT)}:{number}"
        for path in plain_words.tracked("conf/*.yaml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 100
    ] == []


def test_every_key_of_conf_has_a_comment_where_it_is_defined() -> None:
    """Beside the key or above it. Groups whose keys several files share are explained in one of them."""
    bare = []
    for name in ("ct/tiny", "sft/tiny", "eval/tiny", "merge/tiny", "compute/cpu", "model/tiny", "site/slurm", "config"):
        lines = (ROOT / "conf" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            key = re.match(r"(\w+):", line)
            is_section = key is not None and key[1] in ("defaults", "methods", "chat")
            if key and not is_section and "# " not in line and not before.startswith("#"):
                bare.append(f"{name}.yaml: {key[1]}")
    assert bare == []


def test_stored_messages_keep_the_form() -> None:
    """One line that begins with a key or file, ends as a sentence, and lists at most ten names."""
    messages = stored()
    assert len(messages) > 200
    for case, line in messages.items():
        assert "\n" not in line, case
        if case not in OF_LIBRARIES:
            assert re.match(r"\S.*?: \S", line) and line.endswith((".", "?")), case
        assert not re.search(r"\bsay \w+=|; got | an? \w+\.\.", line), case
        assert line.count(", ") <= MOST_LISTED + 6, case
    assert found(messages.items()) == []


OF_LIBRARIES = {
    f"worst input: {given}" for given in ("eval.include_path=TMP/broken_yaml", "ct=null", "=5", "store=${nothing}")
}


def test_at_most_ten_choices_are_listed() -> None:
    names = [f"name_{letter}" for letter in "abcdefghijkl"]
    assert suggestion("zzz", names) == f"Choose one of {', '.join(names[:10])} and 2 more."
    assert suggestion("zzz", names[:10]) == f"Choose one of {', '.join(names[:10])}."
    assert suggestion("nam_c", names) == "Did you mean name_c?"
    assert suggestion("ཀ", ["ཀཁ", "b"]) == "Did you mean ཀཁ?"
    assert suggestion("x", []) == "None is known here." and listed([]) == ""


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [
        ("Reject a density above 1", None),
        ("Read ངག text", None),
        ("Rejected a density above 1", "must begin with an imperative"),
        ("A density above 1 is rejected", "must begin with an imperative"),
        ("docs: reject a density", "must begin with an imperative"),
        ("Reject a density above 1.", "must not end with a full stop"),
        (f"Reject {'x' * 70}", "must have at most 72 characters, got 77"),
    ],
)
def test_subjects_of_commits(subject: str, wrong: str | None, tmp_path: Path) -> None:
    fault = commits.fault(subject)
    assert fault is None if wrong is None else fault is not None and fault.startswith(wrong)
    (tmp_path / "message").write_text(f"{subject}\n\nThe reason.\n", encoding="utf-8")
    assert commits.main([str(tmp_path / "message")]) == (wrong is not None)


def test_subjects_of_the_commits_of_this_branch() -> None:
    """Those of main, or of a branch that is tested; a shallow clone or an archive has no history to test."""
    command = ["git", "log", "--first-parent", "--format=%s", f"{SINCE}..HEAD"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git history")
    wrong = {line: commits.fault(line) for line in done.stdout.splitlines() if not line.startswith("Merge ")}
    assert {line: fault for line, fault in wrong.items() if fault} == {}


def test_configurations_are_the_values_of_their_files() -> None:
    """A comment above a key must not become part of a block of text."""
    for path in plain_words.tracked("conf/*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
