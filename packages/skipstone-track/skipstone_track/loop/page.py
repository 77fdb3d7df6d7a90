"""The page of a loop: every round, what each step did, pictures of what the model draws, and the plots."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from skipstone.evaluation.files import write_file
from skipstone.evaluation.pages import picture_uri, render_template

from ..connection import display_uri
from .records import RoundRecord, StepRecord, read_rounds, read_step
from .settings import LoopSettings

PAGE = "index.html"
TEMPLATES = Path(__file__).with_name("templates")


def write_page(settings: LoopSettings) -> Path:
    """Write the page into the loop's folder; returns its path."""
    rounds = [_describe_round(settings.place, record) for record in read_rounds(settings.place)]
    text = render_template(
        "loop.html.j2",
        TEMPLATES,
        settings=settings,
        tracker=display_uri(settings.tracker),
        rounds=rounds,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return write_file(settings.place / PAGE, text.encode())


def _describe_round(place: Path, record: RoundRecord) -> dict[str, Any]:
    steps = []
    for entry in record.steps:
        folder = place / entry.folder
        found = read_step(folder)
        steps.append({"record": found, "new": entry.new, "pictures": _pictures(folder, found) if entry.new else []})
    return {"record": record, "steps": steps}


def _pictures(folder: Path, record: StepRecord) -> list[dict[str, Any]]:
    """Pictures that a step has drawn, with their prompts, and its plots."""
    from PIL import Image

    found = []
    for k, text in enumerate(record.details.get("pictures", ())):
        if (file := folder / f"picture-{k}.png").is_file():
            with Image.open(file) as picture:
                found.append({"uri": picture_uri(picture), "text": str(text), "plot": False})
    if record.step in ("calibrate", "tune"):
        for file in sorted(folder.glob("**/*.png")):
            with Image.open(file) as picture:
                text = f"{record.step} {file.parent.name}"
                found.append({"uri": picture_uri(picture.convert("RGB")), "text": text, "plot": True})
    return found
