"""Settings of whatever is registered, listed nowhere: each has a range, is held to it, and its docstring says it."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.requests import Query
from skipstone.errors import SpecError
from skipstone.numerics.tables import Table
from skipstone.policies.budget import calls_within
from skipstone.policies.from_file import load_policy_from_file
from skipstone.settings import MAX_STEPS, Ranges, check_settings, field_types, format_range
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.settings import check_settings_are_bounded

EXAMPLES = {"table": Table((0.9, 0.5, 0.1))}  # of classes that need arguments
EVERY = [
    pytest.param(EXAMPLES.get(name) or registry.find_class(kind, name)(), id=f"{kind}-{name}")
    for kind in registry.KIND_MODULES
    for name in registry.names(kind)
]


def number_type(kind: Any) -> Any:
    """int or float where a setting is a number, or a tuple of them."""
    kind = getattr(kind, "__args__", (kind,))[0]
    return kind if kind in (int, float) else None


@pytest.mark.parametrize("obj", EVERY)
def test_every_setting_refuses_what_is_out_of_range(obj: Any) -> None:
    check_settings_are_bounded(obj)


@pytest.mark.parametrize("obj", EVERY)
def test_every_number_has_a_finite_range_and_its_docstring_says_it(obj: Any) -> None:
    ranges: Ranges = getattr(type(obj), "ranges", {})
    numbers = {name: number_type(kind) for name, kind in field_types(type(obj)).items() if number_type(kind)}
    assert set(ranges) == set(numbers)
    doc = re.sub(r"\s+", " ", inspect.getdoc(type(obj)) or "").lower()
    for name, kind in numbers.items():
        low, high = ranges[name]
        assert -math.inf < low < high < math.inf, name
        assert format_range(kind, low, high) in doc, (
            f"{name}: the docstring does not say {format_range(kind, low, high)}"
        )


@pytest.mark.parametrize("obj", EVERY)
def test_both_ends_of_a_range_are_allowed_and_spelt_back(obj: Any) -> None:
    """Alone: some settings must fit each other too, and are refused for that."""
    kind = next(k for k in registry.KIND_MODULES if obj.name in registry.names(k))
    arguments = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init}
    for name, span in getattr(type(obj), "ranges", {}).items():
        for end in span:
            value = (end,) if isinstance(arguments[name], tuple) else end
            made, why = None, ""
            try:
                made = type(obj)(**{**arguments, name: value})
            except SpecError as e:
                why = str(e)
            assert f"expected {name} to be" not in why
            assert made is None or kind == "backbone" or registry.parse(kind, registry.spell(made)) == made


# -- what a spec may say ---------------------------------------------------------------------------

TEN_TIMES = "ten times " * 1001
REFUSED = [
    # numbers that take all memory, overflow, or never come to an end
    ("policy", "mask(skips='0-99999999999')", "below 10,000, got '0-99999999999'"),
    ("policy", "mask(skips='5,10000')", "below 10,000"),
    ("policy", "stride(places=1000000000)", "places to be a whole number in 1..100, got 1000000000; try places=4"),
    ("policy", "stride(fade=10000.0)", r"fade to be a number in \[0, 10\], got 10000.0; try fade=0.7"),
    ("policy", "pid(rtol=1e-12)", r"rtol to be a number in \[1e-6, 1000\]"),
    ("policy", "refine(steps=1000000000)", "steps to be a whole number in 0..100"),
    ("solver", "dpm_adaptive(rtol=1e-300)", r"rtol to be a number in \[1e-6, 1000\]"),
    ("schedule", "scaled_linear(steps=1000000000)", "steps to be a whole number in 2..100,000"),
    ("grid", "karras(rho=1e300)", r"rho to be a number in \[1, 1000\]"),
    # numbers that are none, or that could not be read again
    ("policy", "third_order(tol=1e400)", r"tol to be a number in \[0, 1e9\], got inf"),
    ("policy", "budget(calls=1e309)", "got inf"),
    ("schedule", "cosine_table(cap=1e400)", "got inf"),
    ("schedule", "vp_linear(b0=-1e400)", "got -inf"),
    ("policy", "refine(at=-1e400)", "got -inf"),
    ("policy", f"interval(every={'9' * 4000})", r"got 9+\.\.\.; try every=2"),
    ("policy", f"interval(every={'9' * 5000})", "Expected 'name'"),
    # other types
    ("grid", "uniform(open=5)", "open to be True or False, got 5"),
    ("solver", "dpmpp(order=2.0)", "order to be a whole number in 1..3, got 2.0"),
    ("solver", "ddim(eta=True)", "eta to be a number"),
    ("schedule", "table(alpha_bars=(0.5, 'a'))", "each element a number"),
    ("schedule", "table(alpha_bars=((0.5, 0.4), 0.3))", "each element a number"),
    ("schedule", "table(alpha_bars=5)", "alpha_bars to be a tuple"),
    ("policy", "zeus(modular=((((1,),),),))", "modular to be a tuple, each element a whole number"),
    ("policy", "mask(skips=3)", "skips to be a text"),
    ("signal", "look(by=3)", "by to be a text"),
    ("signal", "disagreement(order=2, of='noise')", "of to be one of 'eps', 'x0', 'v', 'flow', got 'noise'"),
    ("metric", "fid(weights=7)", "weights to be a text"),
    # the same argument twice
    ("policy", "third_order(tol=0.1, tol=0.2)", "third_order: 'tol' is given twice"),
    ("solver", "ddim(eta=0, eta=0)", "ddim: 'eta' is given twice"),
    # the text of the spec itself
    ("policy", "third_order(tol={[]: 1})", "expected a number, a quoted text or a tuple for 'tol'"),
    ("policy", f"third_order(tol={'1+' * 3000}1)", "Expected 'name'|expected a number"),
    ("policy", f"third_order(tol={'(' * 150}1{',)' * 150})", "Expected 'name'|tol to be a number"),
    ("policy", " | ".join(["fixed"] * 33), "at most 32 policies in a chain, got 33"),
    ("policy", "fixed" + " " * 100_000 + "|", "at most 100,000 characters, got 100,006"),
    ("policy", f"agent(path={TEN_TIMES!r})", "path to be a text of at most 10,000 characters"),
    ("policy", f"agent(path='{'x' * 5000}', price=1)", "there is no agent 'xxx"),
    (
        "policy",
        f"auto(certificate='{'x' * 5000}')",
        "auto chooses from a certificate, and there is no certificate in 'xxx",
    ),
    ("policy", "kriging", "No policy is called 'kriging'. It is a solver."),
    ("solver", "balanced", "No solver is called 'balanced'. It is a policy."),
    ("policy", "x" * 5000, "No policy is called 'xxx"),
    ("solver", "ddim | ddim", "Expected 'name'"),
    ("policy", "", "Expected 'name'"),
    ("policy", None, "Expected 'name'"),
    ("policy", 5, "Expected 'name'"),
]


@pytest.mark.parametrize(("kind", "spec", "says"), REFUSED, ids=[f"{spec!s:.40}" for _, spec, _ in REFUSED])
def test_a_spec_is_refused_with_a_short_sentence(kind: str, spec: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        registry.parse(kind, spec)
    assert len(str(caught.value)) < 700


def test_a_spec_of_a_file_is_read_by_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from skipstone.policies.interval import Interval\n\n\nclass Mine(Interval):\n    pass\n")
    assert registry.spell(load_policy_from_file(f"{file}:Mine(every=3) | fixed")) == "interval(every=3) | fixed"
    for rest, says in (
        ("Mine(every=3, every=4)", "Mine: 'every' is given twice"),
        ("Mine(every=1e400)", "every to be a whole number"),
        ("Mine(every={[]: 1})", "expected a number, a quoted text or a tuple for 'every'"),
        ("Mine" + " | fixed" * 32, "at most 32 policies in a chain, got 33"),
        ("Mine" + " " * 100_001 + "(", "at most 100,000 characters"),
    ):
        with pytest.raises(SpecError, match=says):
            load_policy_from_file(f"{file}:{rest}")


def test_a_chain_of_python_has_as_many_parts_as_a_spec_may_have() -> None:
    fixed = registry.parse("policy", "fixed")
    longest = functools.reduce(operator.or_, [fixed] * 32)
    assert registry.parse("policy", registry.spell(longest)) == longest
    with pytest.raises(SpecError, match="at most 32 policies in a chain, got 33"):
        _ = longest | fixed


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0])
def test_a_limit_in_seconds_is_a_finite_number(seconds: float) -> None:
    with pytest.raises(SpecError, match="Expected seconds to be finite"):
        calls_within(seconds, Gaussian(), Query(np.zeros((1, 2, 2)), 0.5))


def test_a_grid_has_a_greatest_number_of_steps() -> None:
    for name in registry.names("grid"):
        with pytest.raises(
            SpecError, match=f"{name}: expected at least 1 step and at most {MAX_STEPS:,}, got 1000000000"
        ):
            registry.parse("grid", name).times(registry.parse("schedule", "cosine"), 10**9)


def test_a_number_of_numpy_is_spelt_as_a_literal() -> None:
    policy = registry.find_class("policy", "third_order")(tol=np.float64(0.25))
    assert registry.spell(policy) == "third_order(tol=0.25)"
    table = Table((np.float64(0.5), 0.25))
    assert registry.parse("schedule", registry.spell(table)) == table


# -- planted faults --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loose:
    """Takes any number."""

    tol: float = 0.1
    name: ClassVar[str] = "loose"


@dataclass(frozen=True)
class Bounded:
    """Is held to its types and ranges, but for what `leaks` says."""

    tol: float = 0.1
    count: int = 3
    flag: bool = False
    places: tuple[int, ...] = (1, 2)
    word: str = ""
    name: ClassVar[str] = "bounded"
    ranges: ClassVar[Ranges] = {"tol": (0, 1), "count": (0, 9), "places": (0, 9)}
    leaks: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not any(_same(getattr(self, name), value) for name, value in self.leaks.items()):
            check_settings(self)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_the_check_passes_what_is_bounded() -> None:
    check_settings_are_bounded(Bounded())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tol", math.inf), ("tol", math.nan), ("tol", True), ("tol", math.nextafter(1, 2)), ("count", 10),
        ("count", 0.5), ("count", -1), ("flag", 1), ("places", (10,)), ("places", ((0,),)), ("word", 0),
    ],
)  # fmt: skip
def test_the_check_finds_one_leak(name: str, value: Any) -> None:
    leaky = type("Leaky", (Bounded,), {"leaks": {name: value}})
    with pytest.raises(AssertionError, match=f"Leaky accepts {name}="):
        check_settings_are_bounded(leaky())


def test_the_check_finds_a_class_without_ranges() -> None:
    with pytest.raises(AssertionError, match="Loose accepts tol="):
        check_settings_are_bounded(Loose())
