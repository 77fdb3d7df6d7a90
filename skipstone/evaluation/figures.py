"""Colours that all plots share, and figures as PNG files and as SVG elements of a page."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, INK, QUIET, RULE = "#fcfcfa", "#1c1e22", "#6c7078", "#dedfe2"
CSS_VARIABLES = {PAPER: "var(--paper)", INK: "var(--ink)", QUIET: "var(--quiet)", RULE: "var(--rule)"}
OURS = ("#0a6ebd", "#0f9d77", "#7b4fc9", "#c2378f", "#1aa3b8")
PEERS = ("#d95f02", "#c79a00", "#b4483a", "#8a6d3b", "#e07b91", "#9a7d0a", "#b5651d")


def figure_to_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def figure_to_svg(figure: Figure, name: str) -> str:
    """An SVG element to stand inside a page: in the page's own colours and font, its ids its own, no namespaces."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text).replace("xlink:href", "href")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("*{", f"#{name} *{{").replace("<svg", f'<svg id="{name}"', 1)
    text = re.sub(r" font-family: [^;\"]*;?|font: (?=[\d.]+px)", "", text)
    text = re.sub(r'id="((?:band|low|line|row)-[\d-]+)"', r'data-mark="\1"', text)
    text = re.sub(r' id="(?!' + name + r'"|[a-z]+[0-9a-f]{10}")[^"]*"', "", text)  # two figures must not share ids
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    return text
