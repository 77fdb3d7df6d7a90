"""A page as a browser leaves it, for tests; skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=20000"
)


TRIES = 4  # virtual time does not wait for the decoding of pictures, which may take long on a busy machine


def read_in_browser(page: str, script: str, folder: Path, until: str = "") -> str:
    """The document after its scripts, and one more at its end, have run.

    Args:
        page: The text of the page.
        script: Clicks and the like.
        folder: Where the page and the browser's profile may be written.
        until: What the document says when its pictures are decoded; it is read again where it does not say so.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: the page is looked at where there is one (apt-get install chromium)")
    looked_at = folder / "page.html"
    looked_at.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [chromium, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", looked_at.as_uri()]
    for _ in range(TRIES):
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        if until in seen:
            break
    return seen
