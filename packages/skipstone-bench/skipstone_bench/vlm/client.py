"""One request to an endpoint that speaks OpenAI's chat completions, and what may go wrong with it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from skipstone.errors import BenchError, SkipstoneError, SpecError

COMPLETIONS_PATH = "/chat/completions"
MAX_REPLY_BYTES = 1 << 20  # bytes of an answer that are read
MAX_MESSAGE_CHARS = 200  # characters of a server's complaint that are passed on
RETRY_STATUSES = (408, 409, 425, 429)  # beside all from 500 on
FATAL_STATUSES = (401, 403, 404, 405)  # what no other question of this judge will change
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
MAX_RETRY_AFTER = 60.0  # seconds that a server may ask for at most


class RequestError(SkipstoneError):
    """A request without an answer. `kind`: what it is about: try `again`, this `question`, or the whole `judge`."""

    def __init__(self, kind: Literal["again", "question", "judge"], message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait = wait  # seconds that the server asked for


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
            sent, and is neither kept nor shown.
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
        if not parts.hostname or parts.query or "@" in parts.netloc:
            raise SpecError("Expected an endpoint such as http://localhost:8000/v1, without password, query or key.")
        if secret and not VARIABLE.fullmatch(secret):  # which no key looks like, so that none is ever shown or kept
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
        Trouble: no answer; what the server says of it is cut short and freed of the key.
        SpecError: no key.
    """
    key = judge.key()
    headers = {"Content-Type": "application/json", "User-Agent": "skipstone"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(judge.url + COMPLETIONS_PATH, json.dumps(body).encode(), headers, method="POST")
    try:
        # Redirects are not followed: they would take the key and the pictures to where nobody sent them.
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
            raw = answer.read(MAX_REPLY_BYTES + 1)
    except urllib.error.HTTPError as e:
        raise _to_request_error(judge, e, key) from None
    except (OSError, http.client.HTTPException) as e:  # URLError and timeouts are OSErrors
        reason = getattr(e, "reason", None) or e
        said = f"no answer in {timeout:g} s" if isinstance(reason, TimeoutError) else str(reason) or type(e).__name__
        raise RequestError("again", f"{judge.name} does not answer: {said}. Is {judge.url} right?") from None
    if len(raw) > MAX_REPLY_BYTES:
        raise RequestError("question", f"{judge.name} answered with more than {MAX_REPLY_BYTES} bytes.")
    return _parse_reply(judge, raw)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """No redirect: the server's answer comes back as the error that it is."""


def _to_request_error(judge: JudgeEndpoint, e: urllib.error.HTTPError, key: str) -> RequestError:
    try:
        said = e.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        said = ""
    try:
        found = json.loads(said)["error"]
        said = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        pass
    if key:
        said = said.replace(key, "***")
    said = " ".join(said.split())[:MAX_MESSAGE_CHARS]
    hint = " Name the variable that holds its key: MODEL@URL#VARIABLE." if e.code == 401 and not judge.secret else ""
    end = "" if said.endswith((".", "!", "?")) else "."
    message = f"{judge.name} refused with HTTP {e.code}{': ' + said if said else ''}{end}{hint}"
    if e.code in RETRY_STATUSES or e.code >= 500:
        return RequestError("again", message, _parse_retry_after(e.headers.get("Retry-After")))
    return RequestError("judge" if e.code in FATAL_STATUSES or e.code < 400 else "question", message)


def _parse_retry_after(said: str | None) -> float:
    try:
        return min(MAX_RETRY_AFTER, max(0.0, float(said or 0)))
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
    """Whether a host is this machine or in a private network, as far as its name tells."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return address.is_loopback or address.is_private


def check_distinct(judges: list[JudgeEndpoint]) -> list[JudgeEndpoint]:
    """The judges, each once. Raises BenchError where two share a name, which tables could not tell apart."""
    found = list(dict.fromkeys(judges))
    names = [j.name for j in found]
    if doubled := next((n for n in names if names.count(n) > 1), None):
        raise BenchError(f"Two judges are called {doubled}: expected each model of an endpoint once.")
    return found
