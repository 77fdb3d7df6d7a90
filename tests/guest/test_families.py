"""The tiny pipelines themselves, bare: the ground on which the guest's tests stand."""

from __future__ import annotations

import pytest
import torch

from .families import FAMILIES, alone, build

BATCH, STEPS = 2, 4


def run(name: str, row: int | None = None) -> torch.Tensor:
    """The output for the whole batch, or for one of its samples run alone."""
    family, pipe = FAMILIES[name], build(name)
    inputs = family.inputs(pipe, BATCH, STEPS)
    return family.after(pipe(**(inputs if row is None else alone(inputs, row, BATCH, family.shared))))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_the_same_twice_and_its_samples_do_not_depend_on_each_other(name: str) -> None:
    whole = run(name)
    assert len(whole) == BATCH
    assert whole.isfinite().all()
    assert torch.equal(whole, run(name))
    assert not torch.allclose(whole[0], whole[1], rtol=0.05, atol=0.05)
    second = run(name, row=1)
    assert len(second) == 1
    assert (second[0] - whole[1]).norm() <= 1e-4 * whole[1].norm()
