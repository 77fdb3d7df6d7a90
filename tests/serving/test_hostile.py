"""Hostile requests: whatever is sent, the answer is a picture or a typed 4xx, and no file of the server is opened."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from analytic import served
from hypothesis import given, settings
from hypothesis import strategies as st
from live import live

from skipstone.errors import PromptError, SkipstoneError
from skipstone.serving import Engine, Limits
from skipstone.serving.refusals import RequestRefused
from skipstone.serving.settings import Choices

FIELDS = ("prompt", "policy", "quality", "model", "size", "user")
TEXTS = [
    "\x00",
    "a\x00b",
    "\ud800",  # half of a pair, which JSON can spell
    "\udfff\ud800",
    "\u202eevil",
    "a" + "\u0301" * 500,
    "\U0001f438" * 200,
    "İ" * 500,  # longer in lower case
    "\ufeff",
    "\u2028\u2029",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{7*7}}${7*7}#{7*7}",
    "'; DROP TABLE pictures; --",
    "%s%n%x",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "$(touch owned)",
    "`id`",
    "\r\nSet-Cookie: a=b",
]
SPECS = [
    "fixed @ " + "9" * 400,
    "fixed @ -1",
    "fixed @ 0",
    "fixed @ 1e3",
    "fixed @ ddim / trailing / 6 / 7",
    "fixed | " * 900 + "fixed",
    "stride(tol=" + "9" * 300 + ")",
    "stride(tol=" + "(" * 400 + ")" * 400 + ")",
    "stride(tol=1e400)",
    "stride(tol=-1e400)",
    "stride(tol=float('nan'))",
    "stride(tol=10**10**10)",
    "stride(tol=[x for x in ()])",
    "stride(tol=lambda: 0)",
    "stride(tol=__import__('os'))",
    "stride(**{})",
    "stride(tol=0.1, tol=0.2)",
    "stride.__class__()",
    "(lambda: fixed)()",
    "student(path='/etc/passwd')",
    "student(path='../../x') @ 4",
    "fixed | student(path='mine')",
    "agent(path='/etc/passwd')",
    "auto(certificate='/etc')",
    "replay(path='/etc/passwd')",
    "./mine.py:Mine",
    "/etc/passwd",
    "org/name",
    "hub:org/name",
    "fixed @ ddim / times(path='/etc/passwd') / 6",
    "fixed @ /etc/passwd",
    "fewer @ ddim",
    "deepcache(interval=3)",
    "addiffusion",
    "\uff46\uff49\uff58\uff45\uff44",  # full-width: Python's own grammar reads it as `fixed`
    "fixed\x00",
    "fixed #",
    "fixed\n@ 6",
    "yield",
    "await fixed",
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Engine({"analytic": served()}, Limits(steps=50)) as engine, live(engine) as found:
        yield found


def post(address: str, body: Any, path: str = "/v1/images/generations") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(address + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)


def check(answer: httpx.Response, accepted: bool = True) -> None:
    """A picture, or a typed error of 4xx in one short sentence."""
    assert answer.status_code in (200, 400, 404, 413) if accepted else answer.status_code in (400, 404, 413), (
        answer.text
    )
    assert "set-cookie" not in answer.headers
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 1000
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_every_kind(address: str, field: str, text: str) -> None:
    body = {"prompt": "a", "policy": "fixed @ 1", field: text}
    if field == "quality":
        del body["policy"]
    check(post(address, body))


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_specs_of_every_kind(address: str, spec: str) -> None:
    check(post(address, {"prompt": "a", "policy": spec}))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened or looked for from now on, by Python."""
    seen: list[str] = []

    def note(function: Any) -> Any:
        def noted(path: Any, *args: Any, **more: Any) -> Any:
            seen.append(os.fspath(path) if isinstance(path, str | bytes | os.PathLike) else repr(path))
            return function(path, *args, **more)

        return noted

    for place, name in ((builtins, "open"), (io, "open"), (os, "stat"), (os, "open"), (os, "scandir")):
        monkeypatch.setattr(place, name, note(getattr(place, name)))
    return seen


@pytest.fixture(scope="module")
def choices() -> Choices:
    found: Choices = served().choices
    for spec in SPECS:  # what is imported by the first one is imported now
        with suppress(SkipstoneError):
            found.choose(spec, "")
    return found


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_no_spec_opens_or_looks_for_a_file(choices: Choices, opened: list[str], spec: str) -> None:
    opened.clear()
    with suppress(SkipstoneError):
        choices.choose(spec, "")
    seen = list(opened)  # pytest itself looks for files when it shows a failure
    assert seen == []


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_network_is_asked_texts_of_every_kind(pebble: Engine, text: str) -> None:
    """Its tokenizer takes them, or the request is refused in a sentence; the engine goes on."""
    for fields in ({"request": text}, {"request": "a cat", "negative_prompt": text}):
        with suppress(PromptError, RequestRefused):
            assert pebble.submit(**fields, policy="fixed @ 1").result(60).pixels.shape == (64, 64, 3)
    assert pebble.is_ready


WORDS = "fixed stride student agent auto ( ) path= tol= '/etc/passwd' '..' | @ / , ddim trailing 6 0.1 - 1e9 [ ] { }"
PIECES = st.sampled_from([*WORDS.split(" "), " ", "lambda", ":", "*", "**", "\x00", "é", "\n"])


@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40))
@settings(max_examples=60)
def test_pieces_of_specs_in_any_order(address: str, spec: str) -> None:
    check(post(address, {"prompt": "a", "policy": spec}))


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "seed": NaN}',
        b'{"prompt": "a", "guidance": 1e400}',
        b'{"prompt": "a", "guidance": -Infinity}',
        b'{"prompt": "a", "seed": ' + b"9" * 50_000 + b"}",
        b'{"prompt": "a", "n": 1e9}',
        b'{"prompt": "a", "n": -9223372036854775809}',
        b'{"prompt": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"prompt": "a"' + b"".join(b', "x%d": 1' % k for k in range(5000)) + b"}",
        b'{"prompt": "a", "' + b"k" * 60_000 + b'": 1}',
        b'{"prompt": "\\ud800"}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"null",
        b'"prompt"',
        b"1" * 60_000,
        b'{"prompt": "a", "size": "' + b"9" * 30_000 + b"x" + b"9" * 30_000 + b'"}',
        b'{"prompt": "' + b"a" * 10_000_000 + b'"}',
    ],
    ids=range(18),
)
def test_bodies_of_every_kind(address: str, body: bytes) -> None:
    check(post(address, body), accepted=False)


@pytest.mark.parametrize(
    "size", ["0x0", "-1x-1", "1e9x1e9", "64x64x64", "x", "99999999999999999999x1", "４x４", "4x4\n"]
)
def test_sizes_that_are_not_drawn(address: str, size: str) -> None:
    check(post(address, {"prompt": "a", "size": size}), accepted=False)


@pytest.mark.parametrize(
    "path",
    [
        "/pictures/..%2f..%2fetc%2fpasswd",
        "/pictures/%00",
        "/pictures/" + "a" * 5000,
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%ff",
        "/v1/models/<script>",
        "/..%2fpage.js",
        "/page.css%00",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page/../../../etc/passwd",
    ],
)
def test_paths_of_every_kind(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert answer.headers["content-type"] == "application/json"  # no browser takes it for a page
    assert len(answer.text) < 1000


def send(address: str, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60) as caller:
        caller.sendall(data)
        try:
            return caller.recv(65536)
        except ConnectionResetError:
            return b"reset"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99999999999999999999\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x00: a\r\n\r\n",
    ],
    ids=range(6),
)
def test_heads_of_every_kind_leave_the_server_as_it_was(address: str, head: bytes) -> None:
    request = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head
    if b"9999" in head:  # it waits for the rest
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60) as caller:
            caller.sendall(request)
    else:
        assert send(address, request).startswith((b"HTTP/1.1 4", b"reset", b""))
    assert post(address, {"prompt": "a", "policy": "fixed @ 1"}).status_code == 200


def test_a_body_without_end_is_not_gathered(address: str) -> None:
    """Chunks are refused at the limit, while the client still sends."""

    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(1000):
            yield b"a" * 10_000

    try:
        answer = httpx.post(
            f"{address}/v1/images/generations",
            content=chunks(),
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass  # it was hung up on
    assert post(address, {"prompt": "a", "policy": "fixed @ 1"}).status_code == 200


def test_nothing_that_a_server_reads_or_sends_is_pickled() -> None:
    """Ray pickles between its own processes; no module of ours does."""
    import skipstone.serving

    folder = Path(skipstone.serving.__file__).parent
    for file in folder.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in ("import pickle", "cloudpickle", "torch.load(")), file
        assert not re.search(r"(?<![\w.])(eval|exec)\(", text), file  # mx.eval computes an array
