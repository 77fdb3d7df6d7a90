"""Prompt sets, those that packages bring and whatever a file holds; sampled by category, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import PromptError
from ..satellites import install_hint
from .models import ModelPackage, model_packages
from .prompt import Prompt as Prompt
from .prompt_files import read_prompts

# Published sets are not ours to ship: where their files are.
PUBLISHED = {
    "partiprompts": "PartiPrompts.tsv of github.com/google-research/parti",
    "drawbench": "DrawBench200.txt of github.com/vipshop/cache-dit",
    "geneval": "prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval",
    "t2i-compbench": "the folder examples/dataset of github.com/Karine-Huang/T2I-CompBench",
    "dpg-bench": "the folder dpg_bench/prompts of github.com/TencentQQGYLab/ELLA",
    "vbench": "vbench/VBench_full_info.json of github.com/Vchitect/VBench",
    "coco": "captions_val2014.json of cocodataset.org",
    "tifa": "tifa_v1.0/tifa_v1.0_text_inputs.json of github.com/Yushi-Hu/tifa",
}


def load_prompts(
    name_or_path: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    prompt_format: str | None = None,
) -> list[Prompt]:
    """The prompts of a set or a file.

    Args:
        name_or_path: A name out of `prompt_sets()`, or a file or folder as `prompt_files.read_prompts` takes it.
        limit: How many; None is all of them in the order of the file. Fewer are chosen so that every category has
            as many as every other until it runs out, and so that the first n of a larger limit are those of n.
        seed: Of the drawing.
        categories: Those to use; None uses all.
        prompt_format: Of a file: txt, csv, tsv, json or jsonl; None takes the end of its name.

    Raises:
        PromptError: no such set or file, a file that is not prompts, no prompts, an unknown category.
    """
    prompts = _load_all(name_or_path, prompt_format)
    if categories is not None:
        prompts = _filter_categories(prompts, categories, name_or_path)
    if limit is None:
        return prompts
    if limit < 1:
        raise PromptError(f"Expected at least 1 prompt, got a limit of {limit}.")
    return sample_prompts(prompts, limit, seed)


def describe_prompts(source: str | Path, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the header of a benchmark has of its prompts: `sha256` distinguishes two lists, whatever their names."""
    text = "\n".join(f"{p.id}\t{p.category}\t{p.text}" for p in prompts)
    return {
        "source": str(source),
        "count": len(prompts),
        "categories": dict(sorted(Counter(p.category for p in prompts).items())),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def sample_prompts(prompts: Sequence[Prompt], limit: int, seed: int) -> list[Prompt]:
    """The first `limit` of a seeded order in which categories take turns.

    The order depends on texts alone, so that neither the order of a file nor the other prompts change it.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: (seeded_key(seed, p.category, p.text), p.id)):
        groups.setdefault(prompt.category, []).append(prompt)
    order = sorted(groups, key=lambda category: seeded_key(seed, category))
    turns = zip_longest(*(groups[category] for category in order))
    return [prompt for turn in turns for prompt in turn if prompt is not None][:limit]


def prompt_sets() -> dict[str, tuple[str, ModelPackage]]:
    """The sets that packages of models bring: name -> what is in it, and whose it is."""
    return {name: (about, package) for package in model_packages() for name, about in package.prompt_sets.items()}


def seeded_key(seed: int, *words: str) -> bytes:
    """A key to sort by, random and always the same: Python's generators promise that across no versions."""
    return hashlib.sha256("\n".join((str(seed), *words)).encode()).digest()


def _filter_categories(prompts: Sequence[Prompt], categories: Sequence[str], source: object) -> list[Prompt]:
    known = sorted({p.category for p in prompts})
    for category in categories:
        if category not in known:
            listed = ", ".join(filter(None, known)) or "none"
            raise PromptError(
                f"{source} has no category {category!r}.{registry.suggest_spelling(category, known)} It has: {listed}."
            )
    chosen = [p for p in prompts if p.category in categories]
    if not chosen:
        raise PromptError(f"Expected at least one category to keep, got none; {source} has: {', '.join(known)}.")
    return chosen


def _load_all(name_or_path: str | Path, prompt_format: str | None) -> list[Prompt]:
    name = str(name_or_path)
    sets = prompt_sets()
    if name in sets:
        return sets[name][1].prompts(name)
    path = Path(name_or_path).expanduser()
    if name.strip() and _exists(path):
        return read_prompts(path, prompt_format)
    if hint := install_hint("prompt set", name):
        raise PromptError(f"The prompt set {name} {hint}.")
    known = "; ".join(f"{each!r} ({about})" for each, (about, _) in sets.items()) or "none, as no package brings one"
    wanted = name.lower().replace("_", "-").replace(" ", "")
    where = next((f for each, f in PUBLISHED.items() if wanted in (each, each.replace("-", ""))), None)
    if where is not None:
        raise PromptError(f"{name} is not shipped with Skipstone. Get {where} and give its path.")
    raise PromptError(
        f"No prompt set or file is called {name[:200]!r}.{registry.suggest_spelling(name, list(sets))} Give the "
        f"path of a file, or a set out of {known}."
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # longer than a name may be
        return False
