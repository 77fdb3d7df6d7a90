"""The page in a browser: it draws, shows what was decided, and takes nothing for HTML that is text."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from live import live

from skipstone.serving import Engine

PAGE = files("skipstone.serving") / "page"
HOSTILE = "<img src=x onerror=document.title='run'>"
# Draws twice, as a user does; the page counts as loaded once the picture at /held has come.
SCRIPT = """<img src="held" alt=""><script>
const until = (test) => new Promise((done) => { const look = () => test() ? done() : setTimeout(look, 50); look(); });
(async () => {
  await until(() => models.size > 0);
  for (const [prompt, quality] of [["a red apple on a blue background", "low"], [HOSTILE, "auto"]]) {
    at("prompt").value = prompt; at("quality").value = quality; at("seed").value = 3;
    const before = gallery.length;
    at("form").requestSubmit();
    await until(() => !running && gallery.length > before);
  }
  await fetch("released", { method: "POST" });
})();
</script></body>"""


def add_look(app: FastAPI) -> None:
    """Routes for a browser: the page with a script, and a picture that comes when the script is done."""
    released = asyncio.Event()
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    script = SCRIPT.replace("HOSTILE", json.dumps(HOSTILE))

    @app.get("/look")
    async def look() -> Response:
        return HTMLResponse(text.replace("</body>", script))

    @app.get("/held")
    async def hold() -> Response:
        await released.wait()
        return Response(status_code=204)

    @app.post("/released")
    async def release() -> dict[str, Any]:
        released.set()
        return {}


def look(address: str, folder: Path, *flags: str) -> str:
    """The document once the script is done."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: the page is looked at where there is one (apt-get install chromium)")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    command = [chromium, *fixed, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{address}/look"]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


def test_the_page_draws_and_shows_what_was_decided(pebble: Engine, tmp_path: Path) -> None:
    with live(pebble, add_look) as address:
        document = look(address, tmp_path)
    told = re.search(r"(\d+) of 50 calls, \d+ % saved", document)
    assert told is not None
    assert document.count('<span class="call"') == int(told[1])
    assert "Drawn in" in document
    assert len(re.findall(r'<button type="button"[^>]*><img src="data:image/png;base64,', document)) == 2  # the gallery
    assert "<title>Skipstone</title>" in document  # the prompt was shown, and not run
    assert "&lt;img src=x" in document
    assert "<img src=x" not in document.partition('<script src="page.js">')[0]


def test_the_page_fetches_nothing_from_elsewhere(pebble: Engine) -> None:
    with live(pebble) as address:
        for name in ("", "page.css", "page.js"):
            answer = httpx.get(f"{address}/{name}")
            assert answer.status_code == 200
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert not re.findall(r"https?://", answer.text)
            assert "innerHTML" not in answer.text


def test_every_field_has_a_label() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    fields = re.findall(r"<(?:input|select) id=\"(\w+)\"", text)
    assert set(fields) == set(re.findall(r"<label[^>]* for=\"(\w+)\"", text))
