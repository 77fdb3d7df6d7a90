"""One prompt of a set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set.

    Args:
        id: Of its own in its set: what the file calls it, or its place there with a hash of the text, so that a
            file that was edited meanwhile is noticed.
        text: Of the prompt.
        category: What the set files it under; empty where it does not.
    """

    id: str
    text: str
    category: str = ""
