"""Weights & Biases, faked: which mode a run has, and that no network costs neither records nor minutes."""

from __future__ import annotations

import os
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import sweep, tracking
from pipeline.config import Config
from pipeline.execute import Job
from tests.pipeline.toy_stage import toy_stage


class Run:
    """What `wandb.init` gives."""

    def __init__(self, mode: str) -> None:
        self.mode, self.records, self.summary = mode, [], {}  # type: ignore[var-annotated]

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def finish(self, exit_code: int = 0) -> None:
        self.records.append("finished")


class Wandb(types.ModuleType):
    """The module, as far as we call it. refuses: a server that opens connections and then does not answer."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__("wandb")
        self.refuses, self.tried, self.runs = refuses, [], []  # type: ignore[var-annotated]

    def Settings(self, **given: Any) -> dict[str, Any]:  # wandb's name
        return given

    def init(self, mode: str, settings: dict[str, Any], **about: Any) -> Run:
        self.tried.append(mode)
        assert settings["init_timeout"] <= 30
        if mode == "online" and self.refuses:
            raise TimeoutError("run initialization has timed out")
        self.runs.append(Run(mode))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Wandb:
    """The faked module, with a key and without anything of this machine's."""
    for name in [*(name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(tracking.MODE, "")  # restored afterwards
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "none"))
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracking.is_reachable.cache_clear()
    return module


@pytest.fixture
def address() -> Iterator[tuple[str, socket.socket]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", listening


def config(wanted: str = "auto") -> Config:
    return sweep.expand(("experiment=test", f"tracking.wandb='{wanted}'"), multirun=False).configs[0]


def two_stages(given: Config, folder: Path) -> None:
    """Two stages that log a line each, as two processes of a run would track them."""
    for number in range(2):
        job = Job(toy_stage("ct", f"toy-{number}", {"tokens": 2048}), folder, folder, {})
        with tracking.tracker(given, folder)(job):
            job.emit("log", loss=number)


def test_a_server_that_cannot_be_reached_is_asked_once_and_no_record_is_lost(
    wandb: Wandb, address: tuple[str, socket.socket], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracking.SERVER, address[0])  # bound, and nobody listens
    asked: list[Any] = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *where: (asked.append(where), connect(*where))[1])
    two_stages(config(), tmp_path)
    assert len(asked) == 1 and wandb.tried == ["offline", "offline"]
    assert [run.records for run in wandb.runs] == [[{"loss": 0}, "finished"], [{"loss": 1}, "finished"]]
    assert capsys.readouterr().out == (
        f"tracking: {address[0]} cannot be reached, so wandb's runs are offline; `wandb sync` sends them later\n"
    )
    assert os.environ[tracking.MODE] == "offline"  # for the processes that this one starts


def test_a_server_that_is_reached_and_does_not_answer_is_tried_once(
    wandb: Wandb, address: tuple[str, socket.socket], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address[1].listen()
    monkeypatch.setenv(tracking.SERVER, address[0])
    wandb.refuses = True
    two_stages(config(), tmp_path)
    assert wandb.tried == ["online", "offline", "offline"]
    assert [run.records for run in wandb.runs] == [[{"loss": 0}, "finished"], [{"loss": 1}, "finished"]]
    assert capsys.readouterr().out.count("\n") == 1


def test_a_server_that_answers_is_used(
    wandb: Wandb, address: tuple[str, socket.socket], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address[1].listen()
    monkeypatch.setenv(tracking.SERVER, address[0])
    two_stages(config(), tmp_path)
    assert wandb.tried == ["online", "online"] and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "wanted", "mode"),
    [
        ("offline", "auto", "offline"),
        ("offline", "online", "offline"),
        ("dryrun", "auto", "offline"),
        ("disabled", "auto", "off"),
        ("disabled", "online", "off"),
        ("online", "offline", "online"),
        ("online", "off", "off"),
        ("", "auto", "online"),
        ("", "offline", "offline"),
    ],
)
def test_wandb_s_own_variable_is_obeyed(
    wandb: Wandb, variable: str, wanted: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracking.MODE, variable)
    assert tracking.mode(config(wanted)) == mode


def test_a_proxy_is_asked_in_place_of_the_server(
    wandb: Wandb, address: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address[1].listen()
    monkeypatch.setenv("https_proxy", address[0])
    assert tracking.is_reachable("https://nowhere.invalid")


def test_the_server_of_a_login_is_known(wandb: Wandb, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert tracking.server() == "https://wandb.example.org"
