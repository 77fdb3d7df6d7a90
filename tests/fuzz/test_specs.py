"""Hostile specs: whatever is typed, the answer is an object or a sentence, within a moment, and a run that ends."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.contracts import Plan, Policy, Run
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem
from skipstone.errors import SkipstoneError
from skipstone.numerics.schedule import Schedule
from skipstone.policies.from_file import load_policy_from_file
from skipstone.settings import field_types
from skipstone.testing.backbones.mixture import Mixture

KINDS = ["policy", "solver", "grid", "schedule", "signal", "metric"]
NASTY_NUMBERS = [
    "0", "-0.0", "1", "-1", "True", "None", "1e400", "-1e400", "1e-320", "1e308", "5e-324", "10**5000", "9" * 5000,
    "9" * 300, "-" * 50 + "1", "0x7fffffffffffffff", "1_000", "1j", "0.1 + 0.2", "nan", "inf", "float('inf')", "...",
]  # fmt: skip
NASTY_TEXTS = [
    "''", "'\\0'", "'\\ud800'", "b'x'", "'0-99999999999'", "'1-0'", "'3,,4'", "'0.5 0.5'", "'nan'", "'1e400 0.5'",
    "f'{1}'", f"'{'x' * 5000}'", f"'{'0,' * 6000}'", "'../../etc/passwd'", "'~nobody/x'", "'٣'",
]  # fmt: skip
NASTY_OTHERS = [
    "()",
    "(1,)",
    "((1,),)",
    "[1]",
    "{1: 2}",
    "{[]: 1}",
    "{*()}",
    f"{'(' * 99}{')' * 99}",
    "lambda: 0",
    "x.y",
    "-x",
]


def fitting(kind: Any, low: float, high: float) -> st.SearchStrategy[Any]:
    """Values that a setting of this type may have."""
    if get_origin(kind) is tuple:
        return st.lists(fitting(get_args(kind)[0], low, high), max_size=4).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.sampled_from(["", "pebble", "pebble-even", "2,4-6", "0.9 0.5 0.25", "alex"]) | st.text(max_size=8)
    if kind is int:
        few = st.integers(int(low), int(min(high, low + 12)))
        return few | few | st.integers(int(low), int(high))
    return st.floats(low, high) | st.sampled_from([low, high, (0.999 * low + 0.001 * high)])


@st.composite
def calls(draw: st.DrawFn, kind: str, hostile: bool) -> str:
    """`name(key=value)` of a registered class: values that fit, and hostile ones."""
    name = draw(st.sampled_from(registry.names(kind)))
    cls = registry.find_class(kind, name)
    types, ranges = field_types(cls), getattr(cls, "ranges", {})
    said = []
    for key in draw(st.lists(st.sampled_from(sorted(types)), unique=not hostile, max_size=5)) if types else []:
        value = fitting(types[key], *ranges.get(key, (0, 0))).map(repr)
        if hostile:
            value |= st.sampled_from([*NASTY_NUMBERS, *NASTY_TEXTS, *NASTY_OTHERS])
        said.append(f"{key}={draw(value)}")
    return f"{name}({', '.join(said)})" if said else name


@st.composite
def specs(draw: st.DrawFn, kind: str, hostile: bool = True) -> str:
    """Specs of a kind; of policies, chains too."""
    parts = draw(st.lists(calls(kind, hostile), min_size=1, max_size=3 if kind == "policy" else 1))
    return " | ".join(parts)


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> str:
    """A spec with pieces of text put in, taken out, doubled, or repeated many times."""
    text = draw(specs(kind))
    for _ in range(draw(st.integers(1, 3))):
        i, j = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        piece = draw(
            st.sampled_from(["(", ")", "|", "=", ",", "'", "-", "**", "\0", "\n", "#", "\\", "é"]) | st.text(max_size=3)
        )
        times = draw(st.sampled_from([0, 1, 1, 2, 200, 5000]))
        text = text[:i] + piece * times + text[draw(st.sampled_from([i, j])) :]
    return text


def parsed(kind: str, spec: str) -> Any:
    """What a spec says, or None where it is refused with a sentence; anything else fails."""
    said = ""
    try:
        return registry.parse(kind, spec)
    except SkipstoneError as e:
        said = str(e)
    assert 10 < len(said) < 2000
    return None


def check(kind: str, spec: str) -> None:
    """Parsed or refused; and what is parsed is spelt so that it is parsed again."""
    obj = parsed(kind, spec)
    event("accepted" if obj is not None else "refused")
    if obj is not None:
        again = registry.spell(obj)
        assert registry.parse(kind, again) == obj
        assert registry.spell(registry.parse(kind, again)) == again


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_hostile_values_are_taken_or_refused(kind: str, data: st.DataObject) -> None:
    check(kind, data.draw(specs(kind)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_broken_text_is_taken_or_refused(kind: str, data: st.DataObject) -> None:
    check(kind, data.draw(mutated(kind)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_values_in_range_are_taken_unless_they_do_not_fit_each_other(kind: str, data: st.DataObject) -> None:
    check(kind, data.draw(specs(kind, hostile=False)))


@given(
    st.text(max_size=20),
    st.sampled_from(["/no/such/place/mine", "~nobody/mine", "\0", "x" * 5000, "."]),
    st.text(max_size=9),
)
def test_a_spec_of_a_file_that_is_not_there_is_refused(before: str, file: str, after: str) -> None:
    with pytest.raises(SkipstoneError):
        load_policy_from_file(f"{before}{file}.py:{after}")


# -- what is accepted runs to its end ----------------------------------------------------------------


@given(data=st.data(), steps=st.integers(1, 20_000))
def test_a_grid_falls_from_noise_to_data_on_every_schedule(data: st.DataObject, steps: int) -> None:
    grid = parsed("grid", data.draw(specs("grid", hostile=False)))
    schedule = parsed("schedule", data.draw(specs("schedule", hostile=False)))
    if grid is None or schedule is None:
        return
    try:
        times = grid.times(schedule, data.draw(st.sampled_from([1, 2, 5, 30, steps])))
    except SkipstoneError:
        return
    assert times[0] <= 1.0 + 1e-9
    assert times[-1] == 0.0
    assert (np.diff(times) < 0.0).all()


class Measuring(Policy):
    """A policy in whose runs one more signal is measured."""

    def __init__(self, inner: Policy, signal: Any) -> None:
        self.inner, self.extra = inner, registry.spell(signal)

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {self.extra}

    @property
    def sites(self) -> frozenset[str]:
        return self.inner.sites

    def consult(self, runs: Any, proposals: Any) -> list[Plan]:
        return self.inner.consult(runs, proposals)


def run(policy: Policy, solver: Any, schedule: Schedule, guidance: float, prediction: Any) -> Run | None:
    """A run of 12 steps; None where it is ended with a sentence."""
    backbone = Mixture(schedule=schedule, guidance=guidance, prediction=prediction)
    x = np.random.default_rng(0).standard_normal((1, 4, 4)).astype("float32")
    grid = (*(1 - i / 12 for i in range(12)), 0.0)
    with np.errstate(all="ignore"):
        try:
            return denoise(backbone, Problem(schedule, x, grid, 0, 0, backbone.branches), solver, policy).run
        except SkipstoneError:
            return None


@given(data=st.data(), guidance=st.sampled_from([1.0, 3.0]), prediction=st.sampled_from(["eps", "v", "x0", "flow"]))
def test_whatever_is_accepted_runs_to_its_end(data: st.DataObject, guidance: float, prediction: str) -> None:
    said = {kind: data.draw(specs(kind, hostile=False)) for kind in ("policy", "solver", "schedule", "signal")}
    policy, solver, schedule, signal = (parsed(kind, spec) for kind, spec in said.items())
    if policy is None or solver is None or schedule is None or signal is None:
        return
    done = run(Measuring(policy, signal), solver, schedule, guidance, prediction)
    assert done is None or done.t == 0.0
