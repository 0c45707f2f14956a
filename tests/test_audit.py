"""The look-up of known vulnerabilities, where its data can be reached and where not."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from tests import audit


def test_where_the_data_cannot_be_reached_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is asked"))
    assert audit.main() == 0
    assert capsys.readouterr().out == "pip-audit: left out, as https://api.osv.dev cannot be reached from here\n"


@pytest.mark.parametrize("code", [0, 1])
def test_else_the_lock_is_audited_and_what_is_found_fails(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(
        subprocess, "run", lambda words, **_: (asked.append(words), SimpleNamespace(returncode=code))[1]
    )
    assert audit.main() == code
    assert asked[0][-2:] == ["-r", "requirements.lock"] and audit.AUDIT in asked[0]
