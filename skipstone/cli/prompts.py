"""Prompts of a command: refused where a model cannot draw them, warned of where it was not trained for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import PromptError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.subject import Subject


def check_samples_option(subject: Subject, prompts: str | None, samples: int | None) -> bool:
    """Whether seeds take the place of prompts: for a model that takes none.

    Raises:
        PromptError: no --prompts for a model that takes them.
        SpecError: --samples beside --prompts.
    """
    from ..evaluation.subject import draws_without_prompt

    if prompts is not None:
        if samples is not None:
            raise SpecError("--samples is for models that take no prompts: leave it out, or --prompts.")
        return False
    if not draws_without_prompt(subject):
        raise PromptError(f"Missing option '--prompts': {subject.name} takes prompts. Give a file, or a set.")
    return True


def load_texts(source: str, limit: int, prompt_format: str | None) -> list[str]:
    """The texts of a file or a set in its order; where there are more than `limit`, a choice of them; 0 takes all.

    Raises:
        PromptError: no such file or set, or no prompts in it.
    """
    from ..evaluation.prompts import load_prompts, sample_prompts

    found = load_prompts(source, prompt_format=prompt_format)
    chosen = sample_prompts(found, limit, seed=0) if 0 < limit < len(found) else found
    return [prompt.text for prompt in chosen]


def check_prompts(prompts: Sequence[str], subject: Subject, console: Console) -> None:
    """Raise PromptError for prompts that the model cannot draw; warn of those that it was not trained for."""
    subject.check(prompts)
    from ..evaluation.models import model_packages

    for package in model_packages():
        if subject.name in package.names and (warning := package.warning(subject.name, prompts)):
            console.print(warning, style="yellow", markup=False, highlight=False)
