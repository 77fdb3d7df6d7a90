"""Prompts of a calibration: once each, divided by their texts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.calibration.planning import fewest
from skipstone.calibration.prompt_split import load_unique_prompts, split_prompts
from skipstone.calibration.target import Target
from skipstone.errors import PromptError, SpecError
from skipstone.evaluation.prompts import Prompt

TARGET = Target.parse("psnr >= 30 @ 90%")
texts = st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=2, max_size=60)


@given(texts, st.integers(0, 5))
def test_every_prompt_is_on_one_side_and_once(prompts: list[str], seed: int) -> None:
    found = split_prompts(prompts, TARGET, 0.9, seed=seed)
    both = [eval_sample.prompt.text.strip() for eval_sample in (*found.search, *found.test)]
    assert sorted(both) == sorted({text.strip() for text in prompts})
    assert found.num_duplicates == len(prompts) - len(both)
    assert found.about["search"] + found.about["test"] == len(both)


@given(texts, st.randoms(use_true_random=False))
def test_the_order_of_a_list_changes_nothing(prompts: list[str], random: object) -> None:
    once = list(dict.fromkeys(text.strip() for text in prompts))
    mixed = list(once)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert split_prompts(once, TARGET, 0.9).search == split_prompts(mixed, TARGET, 0.9).search
    assert split_prompts(once, TARGET, 0.9).test == split_prompts(mixed, TARGET, 0.9).test


def test_a_third_searches_unless_the_test_needs_them() -> None:
    needed = fewest(TARGET, 0.9)
    assert needed == 22
    many = split_prompts([f"prompt {i}" for i in range(300)], TARGET, 0.9)
    assert (len(many.search), len(many.test)) == (100, 200)
    few = split_prompts([f"prompt {i}" for i in range(28)], TARGET, 0.9)
    assert (len(few.search), len(few.test)) == (6, 22)


def test_seeds_are_those_of_the_prompt_and_the_calibration() -> None:
    one, other = (split_prompts([f"prompt {i}" for i in range(30)], TARGET, 0.9, seed=s) for s in (0, 1))
    seeds = [{s.prompt.text: s.seed for s in (*d.search, *d.test)} for d in (one, other)]
    assert len(set(seeds[0].values())) == 30
    assert seeds[0] != seeds[1]
    assert {s.prompt for s in one.search} != {s.prompt for s in other.search}


def test_groups_are_divided_each_by_itself() -> None:
    prompts = [Prompt(str(i), f"prompt {i}", "ab"[i >= 60]) for i in range(120)]
    found = split_prompts(prompts, TARGET, 0.9, groups="category")
    groups = found.groups(found.test)
    assert groups is not None
    assert groups.count("a") == groups.count("b") == 40
    assert split_prompts(prompts, TARGET, 0.9).groups(found.test) is None


def test_what_cannot_be_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="got none"):
        load_unique_prompts([])
    with pytest.raises(PromptError, match="No prompt set or file"):
        load_unique_prompts(tmp_path / "nothing.txt")
    with pytest.raises(SpecError, match="'category'"):
        split_prompts(["a", "b"], TARGET, 0.9, groups="colour")
    with pytest.raises(SpecError, match="have no categories"):
        split_prompts(["a", "b"], TARGET, 0.9, groups="category")
