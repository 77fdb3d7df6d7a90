"""A small Hugging Face hub on this machine: the endpoints by which `huggingface_hub` makes, fills and reads models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_stand_in"
OWNER = "me"  # the only name that the token may write to


@dataclass
class Repository:
    """Commits of a repository, and where its branches are."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = before | files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, or one by its own name."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class StandIn:
    """The hub: its repositories by name, its address, and each request that it was sent."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    address: str = ""
    requests: list[str] = field(default_factory=list)


class Refused(Exception):
    """An answer other than 200: a status, and a word by which the client knows the reason, or what is meant."""


def create(hub: StandIn, name: str, body: dict[str, Any]) -> dict[str, Any]:
    if name in hub.repositories:
        raise Refused(409, name)  # the client reads its address
    if not name.startswith(f"{OWNER}/"):
        raise Refused(403, "")
    made = hub.repositories[name] = Repository(body.get("private") is True or body.get("visibility") == "private")
    made.commit("main", {".gitattributes": b""})
    return {"url": f"{hub.address}/{name}", "name": name}


def commit(hub: StandIn, name: str, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    sha = hub.repositories[name].commit(branch, files)
    return {"success": True, "commitOid": sha, "commitUrl": f"{hub.address}/{name}/commit/{sha}", "hookOutput": ""}


def preupload(body: dict[str, Any]) -> dict[str, Any]:
    files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in body["files"]]
    return {"files": files}


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    hub: StandIn

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            found = self._file(path) or self._api(path, body)
        except Refused as e:
            status, code = e.args
            said = {"error": "refused", "url": f"{self.hub.address}/{code}"}
            self._send(status, json.dumps(said).encode(), {"X-Error-Code": code} if code else {})
            return
        data, headers = found
        self._send(200, data, headers)

    def _file(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        if (match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) is None:
            return None
        repository = self._repository(match[1])
        if (sha := repository.find(match[2])) is None:
            raise Refused(404, "RevisionNotFound")
        if (data := repository.commits[sha].get(match[3])) is None:
            raise Refused(404, "EntryNotFound")
        return data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha}

    def _api(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        name, action, branch = (*path.removeprefix("/api/models/").rsplit("/", 2), "", "")[:3]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "")
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or OWNER
            answer = create(self.hub, f"{owner}/{asked['name'].rpartition('/')[2]}", asked)
        elif path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif action == "preupload":
            answer = preupload(json.loads(body))
        elif action == "commit":
            answer = commit(self.hub, name, branch, [json.loads(line) for line in body.splitlines()])
        elif action == "branch":
            repository = self._repository(name)
            repository.branches.setdefault(branch, repository.branches["main"])
            answer = {}
        elif action == "revision":
            answer = {"id": name, "sha": self._repository(name).find(branch), "siblings": []}
        else:
            raise Refused(404, "")
        return json.dumps(answer).encode(), {"Content-Type": "application/json"}

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Refused(401, "RepoNotFound")
        return found

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[StandIn]:
    """A hub that answers until the end of the block."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def visit(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` use the hub at an address, as HF_ENDPOINT does when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before the client tries again
