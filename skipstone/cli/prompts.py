"""Prompts of a command: refused where a model cannot draw them, warned of where it was not trained for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.subject import Subject


def check_prompts(prompts: Sequence[str], subject: Subject, console: Console) -> None:
    """Raise PromptError for prompts that the model cannot draw; warn of those that it was not trained for."""
    subject.check(prompts)
    from ..evaluation.models import model_packages

    for package in model_packages():
        if subject.name in package.names and (warning := package.warning(subject.name, prompts)):
            console.print(warning, style="yellow", markup=False, highlight=False)
