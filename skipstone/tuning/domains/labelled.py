"""Prompts with the domain of each: a file whose category is the domain, or a folder of a file for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import PromptError
from ...evaluation.prompt import Prompt
from ...evaluation.prompts import load_prompts, sample_prompts
from ...policies.domains.classifier import MAX_DOMAINS

LEAST = 10  # prompts of a domain: folds, temperature and limits are nothing with fewer


class LabelledPrompts(NamedTuple):
    """Prompts of several domains.

    Args:
        prompts: Each text once; the domain is its category.
        dropped: Texts that stood under several domains, and belong to none.
    """

    prompts: tuple[Prompt, ...]
    dropped: int

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(sorted({prompt.category for prompt in self.prompts}))

    def of(self, domain: str) -> list[Prompt]:
        """The prompts of one domain."""
        return [prompt for prompt in self.prompts if prompt.category == domain]


def read_labelled(source: str | Path, prompt_format: str | None = None, most: int | None = None) -> LabelledPrompts:
    """Read prompts whose categories are domains.

    Args:
        source: A folder of NAME.txt files, a table or JSON Lines with a field category, label or domain, or a set.
        prompt_format: Of a file, as of `load_prompts`.
        most: Prompts of each domain at most, drawn with a fixed seed; None takes all.

    Raises:
        PromptError: no such file, prompts without a domain, fewer than two domains, or fewer than 10 prompts of one.
    """
    return check_labelled(load_prompts(source, prompt_format=prompt_format), str(source), most)


def check_labelled(prompts: Sequence[Prompt], source: str, most: int | None = None) -> LabelledPrompts:
    """As `read_labelled`, of prompts that are read already."""
    bare = next((prompt for prompt in prompts if not prompt.category), None)
    if bare is not None:
        raise PromptError(
            f"{source}: expected a domain for each prompt, got none for {bare.text[:60]!r}. Make a folder with a file "
            f"NAME.txt for each domain, or a column `domain`."
        )
    labels: dict[str, set[str]] = {}
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        key = " ".join(prompt.text.lower().split())
        labels.setdefault(key, set()).add(prompt.category)
        first.setdefault(key, prompt)
    kept = [first[key] for key, found in labels.items() if len(found) == 1]
    counts = Counter(prompt.category for prompt in kept)
    names = sorted({prompt.category for prompt in prompts})
    if not 2 <= len(names) <= MAX_DOMAINS:
        raise PromptError(f"{source}: expected 2 to {MAX_DOMAINS} domains, got {len(names)}: {', '.join(names)[:200]}.")
    if few := [name for name in names if counts[name] < LEAST]:
        raise PromptError(
            f"{source}: expected at least {LEAST} different prompts of each domain, got {counts[few[0]]} of {few[0]!r}."
        )
    if most is not None:
        kept = [p for name in names for p in sample_prompts([q for q in kept if q.category == name], most, 0)]
    return LabelledPrompts(tuple(kept), sum(len(found) > 1 for found in labels.values()))
