"""A hub on this machine: the endpoints of the Hugging Face hub that an upload uses, over HTTP, for its own client.

All files are kept as git blobs (`regular`): the storage of large files speaks a protocol of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

WRITER, READER = "hf_writer", "hf_reader"  # tokens of the account `me`, of the organisation `team`


@dataclass
class Repository:
    """A repository: its files by branch."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.bin lfs"}})


@dataclass
class FakeHub:
    """The files of the hub, and the requests that it got. broken: a part of paths that answer with an error."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    broken: str | None = None
    refuses_creation: bool = False

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch, but for the one that the hub makes."""
        held = self.repositories[repository].branches[branch]
        return {name: content for name, content in held.items() if name != ".gitattributes"}

    def changes(self) -> list[str]:
        """The requests that change something."""
        changing = ("/api/repos/create", "/commit/", "/branch/")
        return [line for line in self.asked if line.startswith("POST") and any(part in line for part in changing)]


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: Any, code: str | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(body)

    def serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{method} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.broken and self.hub.broken in path:
            return self.answer(507, {"error": "No storage left"})  # one that the client does not repeat
        if token not in (WRITER, READER):
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            role = "write" if token == WRITER else "read"
            account = {
                "type": "user",
                "name": "me",
                "orgs": [{"name": "team"}],
                "auth": {"accessToken": {"role": role}},
            }
            return self.answer(200, account)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        return self.of_repository(path.split("/")[3:], body)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        address = f"https://huggingface.co/{name}"
        if self.hub.refuses_creation:
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": address})
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        return self.answer(200, {"url": address})

    def of_repository(self, parts: list[str], body: bytes) -> None:
        """Of /api/models/OWNER/NAME/..."""
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, "RepoNotFound")
        action, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        if action == "branch":
            repository.branches[revision] = dict(repository.branches["main"])
            return self.answer(200, {})
        if revision not in repository.branches:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
        files = repository.branches[revision]
        if action == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
                for path, content in files.items()
            ]
            return self.answer(200, listed)
        if action == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "regular",
                    "shouldIgnore": False,
                    "oid": oid(files[file["path"]]) if file["path"] in files else None,
                }
                for file in asked
            ]
            return self.answer(200, {"files": modes})
        if action == "commit":
            return self.commit(files, [json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            200, {"_id": "1", "id": name, "private": repository.private, "sha": "1" * 40, "siblings": siblings}
        )

    def commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.answer(200, {"success": True, "commitOid": "2" * 40, "commitUrl": "https://huggingface.co/me/x/commit/2"})


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that the client of this process talks to, with the token of an account that may write."""
    from huggingface_hub import constants

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
