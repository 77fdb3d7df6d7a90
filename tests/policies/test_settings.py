"""Settings of every policy: those in range are pure, finite and spelt back; those out of range are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.contracts import Policy
from skipstone.errors import SpecError
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import (
    PolicySetup,
    check_budget_holds_behind_it,
    check_counts_every_call_and_no_forecast,
    check_is_pure,
    check_reaches_the_end,
    check_spelling_round_trips,
    check_spends_no_more,
)

TOLERANCE = st.floats(0, 2) | st.sampled_from([0, 1e-300, 1e9])
FORECAST: dict[str, st.SearchStrategy[Any]] = {
    "order": st.integers(0, 3),
    "of": st.sampled_from(["eps", "x0", "v", "flow"]),
    "clock": st.sampled_from(["t", "logsnr"]),
}
SKIPS = {"tol": TOLERANCE, "max_skip": st.integers(0, 60)}
GUARDS = {"warmup": st.integers(4, 30), "tail": st.integers(0, 30)}
IN_RANGE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "third_order": {**SKIPS, **GUARDS, **FORECAST},
    "third_order_released": {**SKIPS, "warmup": st.integers(4, 30)},
    "interval": {"every": st.integers(1, 30), **GUARDS, **FORECAST},
    "forecast": {**FORECAST, "hold": st.integers(0, 5)},
    "error_control": {**SKIPS, **GUARDS, **FORECAST},
    "guidance_gate": {"below": st.floats(0, 1), "every": st.integers(1, 9), "order": st.integers(0, 3)},
    "early_stop": {
        "tol": TOLERANCE,
        "patience": st.integers(1, 9),
        "above": st.floats(-9, 9),
        "steps": st.integers(1, 4),
        "order": st.integers(1, 4),
    },
    "budget": {"calls": st.floats(1, 99), "ahead": st.floats(0, 1), **FORECAST},
}
OUT_OF_RANGE = {
    "tol": [-1e-9, math.nan, "a", None, True],
    "max_skip": [-1, 1.5, "4", True],
    "warmup": [-1, 2.5],
    "tail": [-1, 0.5],
    "order": [-1, 5, 1.0],
    "of": ["noise", 0],
    "clock": ["seconds"],
    "hold": [-1],
    "every": [-1, 2.0],
    "below": [-0.1, 1.1, "half"],
    "patience": [0],
    "above": [math.nan, "high"],
    "steps": [0, 5],
    "ahead": [-0.1, 1.5],
    "calls": [0, 0.5, math.nan, "many"],
}
GUIDED = PolicySetup(backbone=Mixture(guidance=2.0), steps=16)
TWO_STAGES = [registry.parse("solver", n) for n in ("heun",) if n in registry.names("solver")]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    name = draw(st.sampled_from(sorted(IN_RANGE)))
    arguments = {key: draw(values) for key, values in IN_RANGE[name].items()}
    return registry.find_class("policy", name)(**arguments)  # type: ignore[no-any-return]


@settings(max_examples=150, deadline=None)
@given(policies())
def test_any_settings_in_range_conform(policy: Policy) -> None:
    check_spelling_round_trips(policy)
    for check in (check_reaches_the_end, check_is_pure, check_spends_no_more, check_counts_every_call_and_no_forecast):
        check(policy, GUIDED)


@settings(max_examples=60, deadline=None)
@given(policies(), policies(), st.sampled_from([GUIDED.solver, *TWO_STAGES]))
def test_any_two_policies_conform_in_a_chain_and_keep_a_budget(first: Policy, second: Policy, solver: Any) -> None:
    chain, setup = first | second, dataclasses.replace(GUIDED, solver=solver)
    check_spelling_round_trips(chain)
    check_is_pure(chain, setup)
    check_budget_holds_behind_it(chain, setup)


CASES = [
    pytest.param(name, key, value, id=f"{name}-{key}-{value!r}")
    for name, known in IN_RANGE.items()
    for key in known
    for value in OUT_OF_RANGE[key]
]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_settings_out_of_range_are_refused_with_advice(name: str, key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"^{name}: expected {key} to be .*got {value!r}.*; try {key}="):
        registry.find_class("policy", name)(**{key: value})
