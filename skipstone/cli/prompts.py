"""Prompts as a command gets them: refused when empty, warned about when Pebble does not know their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import PromptError

if TYPE_CHECKING:
    from rich.console import Console


def check_prompts(prompts: Sequence[str], model: str, console: Console) -> None:
    """Raise PromptError on an empty prompt; warn of words that Pebble was not trained on."""
    for prompt in prompts:
        if not prompt.strip():
            raise PromptError('The prompt is empty. Say what to draw: "a red apple on a blue background".')
    if model != "pebble":
        return
    from .. import pebble

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
