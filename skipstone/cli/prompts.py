"""Prompts as a command gets them: refused where a model cannot draw them, warned of where Pebble cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..bench.subject import Subject


def check_prompts(prompts: Sequence[str], subject: Subject, console: Console) -> None:
    """Raise PromptError for prompts that the model cannot draw; warn of words that Pebble was not trained on."""
    subject.check(prompts)
    from .. import pebble

    if subject.name not in pebble.SHIPPED:
        return

    unknown = sorted({word for prompt in prompts for word in pebble.unknown_words(prompt)})
    if unknown:
        known = (f"{kind}: {', '.join(words)}" for kind, words in pebble.VOCABULARY.items())
        console.print(
            f"Pebble does not know {', '.join(map(repr, unknown))} and will draw something else. It knows",
            *known,
            sep="\n",
            style="yellow",
            markup=False,
            highlight=False,
        )
