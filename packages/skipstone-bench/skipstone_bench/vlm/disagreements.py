"""A sheet of what judges disagree on, with each other or with themselves: both pictures, and the answers on them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from skipstone.evaluation.contact_sheet import INK, PAPER, QUIET, RULE, load_font, wrap_text

from .images import prepare_image
from .outcomes import Outcome
from .protocol import Answer

MAX_GROUPS = 12
TILE, GAP, MARGIN, WORDS, TOP, LINE = 200, 16, 40, 560, 44, 18  # pixels
RED = (176, 42, 42)


def find_disagreements(found: Sequence[Outcome], most: int = MAX_GROUPS) -> list[list[Outcome]]:
    """Outcomes of all judges on the pairs worth a look: opposite rows first, then other differences, then flips."""
    groups: dict[tuple[tuple[str, str], str], list[Outcome]] = {}
    for o in found:
        if o.category is not None and not o.identical:
            groups.setdefault((o.pair, o.sample.id), []).append(o)
    ranked = [(_rank(group), k, group) for k, group in enumerate(groups.values())]
    return [group for rank, _, group in sorted(ranked, key=lambda r: r[:2]) if rank < 3][:most]


def _rank(group: Sequence[Outcome]) -> int:
    kinds = {o.kind for o in group}
    if {"first", "second"} <= kinds:
        return 0
    if len({o.category for o in group}) > 1:
        return 1
    return 2 if kinds & {"flip", "unsure"} else 3


def render_disagreements(found: Sequence[Outcome], side: int) -> bytes | None:
    """The sheet as a PNG file's bytes; None where all agree.

    Args:
        found: Outcomes of all judges.
        side: Of the protocol.
    """
    from PIL import Image, ImageDraw

    groups = find_disagreements(found)
    if not groups:
        return None
    bands = [max(TOP + TILE, TOP + _height(group)) + 28 for group in groups]
    width = 2 * MARGIN + 2 * (TILE + GAP) + WORDS
    page = Image.new("RGB", (width, 2 * MARGIN + 40 + sum(bands)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 10), "What judges disagree on", INK, load_font(18, bold=True))
    top = MARGIN + 40
    for group, band in zip(groups, bands, strict=True):
        _band(page, draw, group, top, side)
        top += band
    buffer = BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _height(group: Sequence[Outcome]) -> int:
    return sum(LINE * (1 + len(_lines(o))) + 8 for o in group)


def _lines(o: Outcome) -> list[str]:
    """The answers of one judge in both orders, in lines of the sheet."""
    return [line for text in _row_lines(o) for line in wrap_text(text, load_font(12), WORDS - 12, 3)]


def _row_lines(o: Outcome) -> list[str]:
    """Which row each answer means: A is the first one, which the sheet shows on the left."""
    return [
        f"A on the {side}: {_describe_answer(a, side)}"
        for side, a in (("left", o.first_left), ("right", o.second_left))
    ]


def _describe_answer(answer: Answer | None, a_side: str) -> str:
    if answer is None:
        return "no readable answer"
    meant = "tie" if answer.winner == "tie" else "A" if answer.winner == a_side else "B"
    return f"{meant} ({answer.winner}). " + " ".join(answer.reason.split())


def _band(page: Any, draw: Any, group: Sequence[Outcome], top: int, side: int) -> None:
    one = group[0]
    draw.line((MARGIN, top - 10, page.width - MARGIN, top - 10), RULE, 1)
    prompt = wrap_text(one.sample.prompt or one.sample.id, load_font(14, bold=True), page.width - 2 * MARGIN, 1)[0]
    draw.text((MARGIN, top), prompt, INK, load_font(14, bold=True))
    for k, row in enumerate(one.pair):
        left = MARGIN + k * (TILE + GAP)
        draw.text((left, top + 22), wrap_text(f"{'AB'[k]}  {row}", load_font(12), TILE, 1)[0], QUIET, load_font(12))
        picture = prepare_image(one.sample.pictures[row], side).copy()
        picture.thumbnail((TILE, TILE))
        page.paste(picture, (left, top + TOP))
        draw.rectangle((left, top + TOP, left + TILE - 1, top + TOP + TILE - 1), outline=RULE)
    x, y = MARGIN + 2 * (TILE + GAP), top + TOP
    for o in group:
        meant = {"first": "A", "second": "B", "flip": "flips with the order", "unsure": "A row once, a tie once"}
        verdict = meant.get(o.kind, o.kind)
        draw.text((x, y), f"{o.judge}: {verdict}", RED if o.kind == "flip" else INK, load_font(13, bold=True))
        y += LINE
        for line in _lines(o):
            draw.text((x + 12, y), line, INK, load_font(12))
            y += LINE
        y += 8
