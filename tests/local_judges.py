"""Judges of known bias behind an endpoint of this machine, and pictures for them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageStat

from skipstone_bench.vlm.client import JudgeEndpoint


@dataclass(frozen=True)
class JudgeRequest:
    """A request as a judge sees it."""

    body: dict[str, Any]
    number: int  # of the request, from 1

    @property
    def prompt_text(self) -> str:
        return "\n".join(p["text"] for p in self.body["messages"][0]["content"] if p["type"] == "text")

    @property
    def images(self) -> list[Image.Image]:
        """What is on the left and on the right."""
        uris = [p["image_url"]["url"] for p in self.body["messages"][0]["content"] if p["type"] == "image_url"]
        images = [Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]
        if len(images) == 2:
            return images
        (both,) = images
        middle = both.width // 2
        return [both.crop((0, 0, middle - 16, both.height)), both.crop((middle + 16, 0, both.width, both.height))]

    @property
    def brightness(self) -> list[float]:
        """Brightness of either side."""
        return [ImageStat.Stat(side.convert("L")).mean[0] for side in self.images]


@dataclass(frozen=True)
class HttpReply:
    """An HTTP answer that is no chat completion."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


JudgeBehaviour = Callable[[JudgeRequest], "str | HttpReply"]


def verdict_json(winner: str, reason: str = "because") -> str:
    return json.dumps({"winner": winner, "reason": reason})


def always_left(_: JudgeRequest) -> str:
    return verdict_json("left")


def always_tie(_: JudgeRequest) -> str:
    return verdict_json("tie")


def prefer_brighter(asked: JudgeRequest) -> str:
    """Knows what it likes, wherever it is."""
    left, right = asked.brightness
    return verdict_json("tie" if abs(left - right) < 1 else "left" if left > right else "right")


def prefer_darker(asked: JudgeRequest) -> str:
    left, right = asked.brightness
    return verdict_json("tie" if abs(left - right) < 1 else "left" if left < right else "right")


def hash_coin(asked: JudgeRequest) -> str:
    """Depends on everything that is shown, and on nothing that is in it."""
    raw = json.dumps(asked.body["messages"]).encode()
    return verdict_json("left" if hashlib.sha256(raw).digest()[0] % 2 else "right")


class LocalJudge:
    """A server in a thread: `with LocalJudge(brighter) as judge: ... judge.judge ...`."""

    def __init__(self, mind: JudgeBehaviour, usage: tuple[int, int] | None = (1000, 20)) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                if not self.path.endswith("/v1/chat/completions"):
                    return outer._send(self, HttpReply(404, b"no such path"))
                reply = mind(JudgeRequest(body, number))
                if isinstance(reply, str):
                    completion: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                    if usage:
                        completion["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
                    reply = HttpReply(200, json.dumps(completion).encode())
                return outer._send(self, reply)

            do_GET = do_POST  # noqa: N815 - the name is the library's

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, sent: HttpReply) -> None:
        try:
            handler.send_response(sent.status)
            for name, value in {**sent.headers, "Content-Length": str(len(sent.body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(sent.body)
        except OSError:  # the other side has hung up
            pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def judge(self) -> JudgeEndpoint:
        return JudgeEndpoint("mock", self.url)

    def __enter__(self) -> LocalJudge:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def picture(path: Path, light: int, mark: int = 0) -> None:
    """A grey square with a mark that makes it one of its own."""
    page = Image.new("RGB", (16, 16), (light, light, light))
    page.putpixel((mark % 16, mark // 16), (255, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def folders(root: Path, lights: dict[str, int], count: int) -> tuple[list[Path], Path]:
    """A folder of pictures for each row, all of one brightness, and the file of their prompts."""
    for row, light in lights.items():
        for k in range(count):
            picture(root / row / f"{k:03d}.png", light, k)
    prompts = root / "prompts.csv"
    lines = [f'{k:03d},"thing {k}, please",{"ab"[k % 2]}' for k in range(count)]
    prompts.write_text("\n".join(["name,prompt,category", *lines]))
    return [root / row for row in lights], prompts
