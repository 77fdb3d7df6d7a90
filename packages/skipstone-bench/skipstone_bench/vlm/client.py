"""One request to an endpoint that speaks OpenAI's chat completions, and what may go wrong with it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import httpx

from skipstone.errors import BenchError, SkipstoneError, SpecError

COMPLETIONS_PATH = "/chat/completions"
MAX_REPLY_BYTES = 1 << 20  # longest answer that is read
MAX_ERROR_BYTES = 4096  # of the body of an HTTP error that are read
MAX_MESSAGE_CHARS = 200  # of a server's error message that are shown
RETRY_STATUSES = (408, 409, 425, 429)  # beside all from 500 on
FATAL_STATUSES = (401, 403, 404, 405)  # what no other question of this judge will change
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
MAX_RETRY_AFTER = 60.0  # seconds that a server may ask for at most


class RequestError(SkipstoneError):
    """A request without an answer.

    Args:
        kind: What to do: send it `again`, leave out this `question`, or ask this `judge` nothing more.
        message: For people.
        wait: Seconds to wait before the next try, as the server asked.
    """

    def __init__(self, kind: Literal["again", "question", "judge"], message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait = wait


class JudgeReply(NamedTuple):
    """What came back; tokens are None where the server did not count them."""

    text: str | None
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class JudgeEndpoint:
    """A model behind an endpoint.

    Args:
        model: Its name there.
        url: Of the endpoint, up to and without /chat/completions.
        secret: Name of the environment variable with the key; empty sends none. The key itself is read when it is
            sent, and is neither stored nor shown.
    """

    model: str
    url: str
    secret: str = ""

    @classmethod
    def parse(cls, spec: str) -> JudgeEndpoint:
        """The judge of `MODEL@URL` or `MODEL@URL#VARIABLE`. Raises SpecError."""
        at = max(spec.rfind("@http://"), spec.rfind("@https://"))
        if at < 1:
            raise SpecError(
                "Expected a judge as MODEL@URL#VARIABLE, e.g. 'gpt-4o@https://api.openai.com/v1#OPENAI_API_KEY' (the "
                f"variable that holds the key; leave it out where none is needed), got {spec.partition('#')[0]!r}."
            )
        url, _, secret = spec[at + 1 :].partition("#")
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.query or "@" in parts.netloc or not _is_valid(url):
            raise SpecError("Expected an endpoint such as http://localhost:8000/v1, without password, query or key.")
        if secret and not VARIABLE.fullmatch(secret):  # which no key looks like, so that none is ever shown or stored
            raise SpecError("Expected an environment variable's name in capitals after the #, never the key itself.")
        return cls(spec[:at].strip(), url.rstrip("/").removesuffix(COMPLETIONS_PATH), secret)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.model}@{urllib.parse.urlsplit(self.url).netloc}"

    def key(self) -> str:
        """The key, empty where none is needed.

        Raises:
            SpecError: the variable is not set, holds what no header can, or the key would travel in the clear.
        """
        if not self.secret:
            return ""
        key = os.environ.get(self.secret, "").strip()
        if not key:
            raise SpecError(f"{self.name} needs its key in ${self.secret}, which is not set: export it first.")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SpecError(f"${self.secret} holds no key: expected one word of printable ASCII.")
        if self.url.startswith("http://") and not _is_private_host(urllib.parse.urlsplit(self.url).hostname or ""):
            raise SpecError(f"The key in ${self.secret} would travel to {self.name} in the clear: use https.")
        return key


def post_request(judge: JudgeEndpoint, body: Mapping[str, Any], timeout: float) -> JudgeReply:
    """Send one request, once.

    Args:
        judge: Whom to ask.
        body: The request.
        timeout: Seconds of silence until it counts as unanswered.

    Raises:
        RequestError: no answer; the server's message is cut short, and the key is removed from it.
        SpecError: no key.
    """
    key = judge.key()
    # No compression: the limits on bytes are then limits on memory, too.
    headers = {"Content-Type": "application/json", "User-Agent": "skipstone", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        # Redirects are not followed: they would send the key and the pictures to an address that nobody chose.
        # A new client for each request: a connection that was kept open may be closed by the server before the next
        # request arrives, and a request that fails may be charged.
        with (
            httpx.Client(timeout=timeout, follow_redirects=False, verify=_tls_context()) as client,
            client.stream(
                "POST", judge.url + COMPLETIONS_PATH, content=json.dumps(body).encode(), headers=headers
            ) as response,
        ):
            if not response.is_success:
                raise _to_request_error(judge, response, key)
            raw = _read(response, MAX_REPLY_BYTES + 1)
    except httpx.HTTPError as e:
        what = f"no answer in {timeout:g} s" if isinstance(e, httpx.TimeoutException) else str(e) or type(e).__name__
        raise RequestError("again", f"{judge.name} does not answer: {what}. Is {judge.url} right?") from None
    if len(raw) > MAX_REPLY_BYTES:
        raise RequestError("question", f"{judge.name} answered with more than {MAX_REPLY_BYTES} bytes.")
    return _parse_reply(judge, raw)


@cache
def _tls_context() -> ssl.SSLContext:
    """The certificates of this system, not those that come with httpx: a company's proxy has one of its own."""
    return ssl.create_default_context()


def _is_valid(url: str) -> bool:
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return True


def _read(response: httpx.Response, limit: int) -> bytes:
    """The first `limit` bytes of a body."""
    raw = bytearray()
    for part in response.iter_bytes():
        raw += part
        if len(raw) >= limit:
            break
    return bytes(raw[:limit])


def _to_request_error(judge: JudgeEndpoint, response: httpx.Response, key: str) -> RequestError:
    try:
        text = _read(response, MAX_ERROR_BYTES).decode("utf-8", "replace")
    except httpx.HTTPError:
        text = ""
    try:
        found = json.loads(text)["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        pass
    if key:
        text = text.replace(key, "***")
    text = " ".join(text.split())[:MAX_MESSAGE_CHARS]
    code = response.status_code
    hint = " Name the variable that holds its key: MODEL@URL#VARIABLE." if code == 401 and not judge.secret else ""
    end = "" if text.endswith((".", "!", "?")) else "."
    message = f"{judge.name} refused with HTTP {code}{': ' + text if text else ''}{end}{hint}"
    if code in RETRY_STATUSES or code >= 500:
        return RequestError("again", message, _parse_retry_after(response.headers.get("Retry-After")))
    return RequestError("judge" if code in FATAL_STATUSES or code < 400 else "question", message)


def _parse_retry_after(header: str | None) -> float:
    try:
        return min(MAX_RETRY_AFTER, max(0.0, float(header or 0)))
    except ValueError:  # a date: our own pauses will do
        return 0.0


def _parse_reply(judge: JudgeEndpoint, raw: bytes) -> JudgeReply:
    try:
        found = json.loads(raw)
        text = found["choices"][0]["message"].get("content")
        usage = found.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise RequestError("question", f"{judge.name} answered something else than a chat completion.") from None
    tokens = [c if isinstance(c, int) and not isinstance(c, bool) and c >= 0 else None for c in counts]
    return JudgeReply(text if isinstance(text, str) else None, *tokens)


def _is_private_host(host: str) -> bool:
    """Whether a host is this machine or in a private network, as far as its name shows."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return address.is_loopback or address.is_private


def check_distinct(judges: list[JudgeEndpoint]) -> list[JudgeEndpoint]:
    """The judges, each once. Raises BenchError where two share a name, which would be one in tables."""
    found = list(dict.fromkeys(judges))
    names = [j.name for j in found]
    if doubled := next((n for n in names if names.count(n) > 1), None):
        raise BenchError(f"Two judges are called {doubled}: expected each model of an endpoint once.")
    return found
