"""How much a prompt asks for: a number to order prompts by, for curricula and for whether calls follow it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skipstone.evaluation.models import model_packages

FACTS_UNIT, WORDS_UNIT = "facts of Pebble's grammar", "content words"
# English words that name nothing to be drawn; relations ("above", "left") are not among them.
STOP = """
a an the and or but nor of to in on at by for from with without as into onto over is are was were be been being am it
its it's this that these those there here his her their our your my he she they we you i who whom whose which what when
where while so than then too very just some any each every both all no not has have had having do does did can could
will would should may might must also such only own same
"""
_STOP = frozenset(STOP.split())


@dataclass(frozen=True)
class Complexity:
    """Complexities of prompts, in one unit for all of them.

    Args:
        values: One for each prompt, >= 0.
        unit: FACTS or WORDS.
    """

    values: tuple[float, ...]
    unit: str


def prompt_complexities(prompts: Sequence[str]) -> Complexity:
    """How much each prompt asks for.

    Where every prompt is a sentence of Pebble's grammar, the facts that it states: each object, the relation, the
    ground, and a size other than the usual, one each: 1 for "a cat" to 4 for "a cat above a bus on a red background".
    Otherwise the number of content words: distinct words that are not among `STOP`. Both say how much has to be drawn,
    and nothing of how hard each thing is to draw.
    """
    known = [count_facts(prompt) for prompt in prompts]
    counted = [fact for fact in known if fact is not None]
    if len(counted) == len(known):
        return Complexity(tuple(map(float, counted)), FACTS_UNIT)
    return Complexity(tuple(float(count_content_words(prompt)) for prompt in prompts), WORDS_UNIT)


def count_facts(prompt: str) -> int | None:
    """Facts that a sentence of an installed model's grammar states; None of any other text."""
    for package in model_packages():
        if (found := package.facts(prompt)) is not None:
            return found
    return None


def count_content_words(text: str) -> int:
    """Distinct words that are not among `STOP`; of "a red cat and a red dog" 3."""
    return len({word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower()) if word not in _STOP})
