"""The samples of a calibration, divided into search and test: prompts, each once with a seed of its own, or seeds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError, SpecError
from ..evaluation.prompts import Prompt, describe_prompts, load_prompts
from ..evaluation.references import EvaluationSample, samples_from_seeds
from .planning import fewest
from .target import Target

SEARCH_SHARE = 1 / 3  # of the prompts, which search
MIN_SEARCH_PROMPTS = 4  # prompts that search
MAX_SAMPLES = 100_000  # of a model that takes no prompts
RANDOM_SEEDS = "random seeds"  # where the samples of a model are from that takes no prompts


@dataclass(frozen=True)
class SampleSplit:
    """Prompts and seeds.

    Args:
        search: For choosing the order of the settings.
        test: For the final test, none of them in `search`.
        about: {"source", "count", "sha256", ...} for the certificate.
        num_duplicates: Prompts that were there twice or more, and counted once.
        by: "category" where the promise is made to every category.
    """

    search: tuple[EvaluationSample, ...]
    test: tuple[EvaluationSample, ...]
    about: dict[str, Any]
    num_duplicates: int = 0
    by: str = ""

    @property
    def of(self) -> str:
        """What samples differ by, which is what the promise is about: "prompts", or "seeds"."""
        return promised_of(self.about)

    def groups(self, eval_samples: Sequence[EvaluationSample]) -> list[str] | None:
        """The group of each sample; None where there are none."""
        return [eval_sample.prompt.category for eval_sample in eval_samples] if self.by else None


PromptSource = str | os.PathLike[str] | Sequence[str | Prompt]


def load_unique_prompts(
    prompts: PromptSource, limit: int | None = None, seed: int = 0, prompt_format: str | None = None
) -> tuple[list[Prompt], int, str]:
    """The prompts of a set, a file or a list, each once; how often one was there again; and where they are from.

    Raises:
        PromptError: no prompts, or no such set or file.
    """
    if isinstance(prompts, str | os.PathLike):
        found = load_prompts(os.fspath(prompts), limit=limit, seed=seed, prompt_format=prompt_format)
        source = Path(prompts).name
    else:
        found, source = [p if isinstance(p, Prompt) else Prompt(str(p), str(p)) for p in prompts][:limit], "a list"
    if not found:
        raise PromptError(
            "Expected prompts to calibrate on, got none: a list, a file, or a set such as 'pebble-tuning'."
        )
    once = {prompt.text.strip(): prompt for prompt in reversed(found)}
    kept = [once[text] for text in dict.fromkeys(prompt.text.strip() for prompt in found)]
    return kept, len(found) - len(kept), source


def split_prompts(
    prompts: PromptSource,
    target: Target,
    confidence: float | None,
    *,
    groups: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompt_format: str | None = None,
) -> SampleSplit:
    """Prompts into search and test: a third searches, less where the test needs the others.

    Which prompt goes where, and its seed, depends on its text and on `seed` alone.

    Raises:
        PromptError: no prompts.
        SpecError: groups that are not there.
    """
    if groups not in (None, "category"):
        raise SpecError(f"groups: expected 'category' or nothing, got {groups!r}.")
    found, doubles, source = load_unique_prompts(prompts, limit, seed, prompt_format)
    if groups and all(not prompt.category for prompt in found):
        raise SpecError(f"groups='category': the prompts of {source} have no categories. Give a file that has them.")
    needed = 1 if confidence is None else fewest(target, confidence)
    search: list[EvaluationSample] = []
    test: list[EvaluationSample] = []
    for name in sorted({prompt.category if groups else "" for prompt in found}):
        part = [
            EvaluationSample(p, hashed_seed(seed, "seed", p.text)) for p in found if not groups or p.category == name
        ]
        part.sort(key=lambda eval_sample: hashed_seed(seed, "split", eval_sample.prompt.text))
        count = _num_search(len(part), needed)
        search += part[:count]
        test += part[count:]
    search.sort(key=lambda eval_sample: hashed_seed(seed, "order", eval_sample.prompt.text))
    test.sort(key=lambda eval_sample: hashed_seed(seed, "order", eval_sample.prompt.text))
    about = {**describe_prompts(source, found), "search": len(search), "test": len(test)}
    return SampleSplit(tuple(search), tuple(test), about, doubles, groups or "")


def split_seeds(count: int, target: Target, confidence: float | None, seed: int = 0) -> SampleSplit:
    """So many samples of a model that takes no prompts, each a seed drawn at random, into search and test.

    Raises:
        SpecError: fewer than 2, or more than 100,000.
    """
    if not 2 <= count <= MAX_SAMPLES:
        raise SpecError(f"samples: expected 2 to {MAX_SAMPLES:,}, the first to search with, got {count}.")
    samples = samples_from_seeds(hashed_seed(seed, "sample", str(k)) for k in range(count))
    searching = _num_search(count, 1 if confidence is None else fewest(target, confidence))
    search, test = tuple(samples[:searching]), tuple(samples[searching:])
    about = {"source": RANDOM_SEEDS, "count": count, "search": len(search), "test": len(test)}
    return SampleSplit(search, test, about)


def promised_of(about: Mapping[str, Any]) -> str:
    """What a certificate's promise is about, by what it says of its samples: "prompts", or "seeds"."""
    return "seeds" if about.get("source") == RANDOM_SEEDS else "prompts"


def _num_search(count: int, needed: int) -> int:
    """How many of so many samples search: a third, less where the test needs the others."""
    return max(min(MIN_SEARCH_PROMPTS, count // 2), min(round(SEARCH_SHARE * count), count - needed))


def hashed_seed(seed: int, *words: str) -> int:
    """A pseudo-random integer below 2^31; equal for equal words on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join((str(seed), *words)).encode()).digest()[:4], "big") >> 1
