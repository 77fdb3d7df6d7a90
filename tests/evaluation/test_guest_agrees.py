"""Pebble through the guest and in the engine's own loop: the same decisions, the same latents, the same table."""

from __future__ import annotations

from typing import Any

import pytest

from skipstone.cli.options import ModelOptions
from skipstone.engine.trace import letters
from skipstone.evaluation.columns import parse_column, parse_columns
from skipstone.evaluation.compare import compare
from skipstone.evaluation.subject import SampleRequest, Subject
from skipstone.evaluation.table import format_rows

ITEMS = [SampleRequest("a red apple on a blue background", 0), SampleRequest("a cat left of a rocket", 3)]
COLUMNS = ["third_order", "guidance_gate | early_stop @ ddim", "fewer @ dpmpp"]


@pytest.fixture(scope="module")
def engine() -> Subject:
    return ModelOptions().subject()


@pytest.fixture(scope="module")
def guest() -> Subject:
    return ModelOptions(as_guest=True).subject()


def test_the_tables_agree(engine: Subject, guest: Subject) -> None:
    tables = []
    for subject in (engine, guest):
        columns = parse_columns(COLUMNS, *subject.default_sampler._replace(steps=20))
        full = parse_column("fixed", *subject.default_sampler._replace(steps=20))
        result = compare(subject, ITEMS, columns, full, repeats=1)
        head, *body = format_rows(result)
        seconds = head.index("seconds")
        tables.append([row[:seconds] + row[seconds + 1 :] for row in body])
        assert result.mean_calls(1) < result.mean_calls(0)
    ours, theirs = tables
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[0] == other[0]
        for a, b in zip(mine[1:], other[1:], strict=True):
            assert a == b or float(a.strip("%")) == pytest.approx(float(b.strip("%")), abs=0.11), (mine, other)


@pytest.mark.parametrize("spec", ["fixed", "third_order", "error_control", "third_order @ ddim", "interval @ dpmpp"])
def test_decisions_and_latents_agree(engine: Subject, guest: Any, spec: str) -> None:
    column = parse_column(spec, *engine.default_sampler._replace(steps=20))
    ours, _ = engine.draw(ITEMS, column)
    with guest.adapted(column) as adapted:
        theirs = guest.pipe(**guest.call_arguments(ITEMS, column) | {"output_type": "latent"}).images
    for mine, latent, account in zip(ours, theirs, adapted.last, strict=True):
        assert letters(mine.run) == account.decisions
        assert mine.calls == account.calls
        assert float((latent - mine.x).norm() / mine.x.norm()) < 1e-4


def test_rows_of_a_comparison_are_not_calls(guest: Any) -> None:
    """A hook of the user has the guest compare rows; what entered for that is no part of a sample's calls."""
    column = parse_column("guidance_gate", *guest.default_sampler._replace(steps=10))
    expected, _ = guest.draw(ITEMS, column)
    hook = guest.pipe.unet.register_forward_hook(lambda module, args, output: None)
    try:
        drawn, _ = guest.draw(ITEMS, column)
    finally:
        hook.remove()
    assert [sample.calls for sample in drawn] == [sample.calls for sample in expected]
    assert sum(sample.calls for sample in drawn) < 2 * 10
