"""Traces: nothing is lost, nothing else is believed, and the account of a run says what happened."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.contracts import Attempt, Cached, Finish, Forecast, Full, Plan, Refine, Run
from skipstone.engine.drivers import replay
from skipstone.engine.flow import MAP_REUSED, REGION_SHARE
from skipstone.engine.trace import cite, explain, from_json, load, save, to_json
from skipstone.errors import TraceError
from skipstone.policies.agent.actions import ACTION, GATE, STOP
from skipstone.policies.early_stop import FINISH_MEMO
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

SETUP = PolicySetup(backbone=Mixture(guidance=3.0))
SPEC = "guidance_gate(below=0.7) | error_control(tol=0.01) | early_stop(tol=0.5)"
RUN = SETUP.run(registry.parse("policy", SPEC)).run
NUMBERS = st.floats(allow_nan=False)
NAMES = st.text(max_size=8)


def test_a_trace_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save(path, RUN, prompt="a red circle", seed=7, policy=SPEC)
    trace = load(path)
    assert trace.run == RUN
    assert trace.meta == {"prompt": "a red circle", "seed": 7, "policy": SPEC}
    assert replay(SETUP.backbone, SETUP.problem(), SETUP.solver, trace.run).run.cost == RUN.cost
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def plans() -> st.SearchStrategy[Plan]:
    evaluate = st.one_of(
        st.just(Full()),
        st.builds(
            Forecast, st.integers(0, 3), st.sampled_from(["eps", "x0", "v", "flow"]), st.sampled_from(["t", "logsnr"])
        ),
        st.builds(Cached, st.frozensets(NAMES), st.integers(0, 3), st.sampled_from(["t", "logsnr"])),
        st.builds(Finish, st.integers(1, 4)),
        st.builds(Refine, st.integers(0, 9), NUMBERS, NUMBERS, st.integers(0, 3), st.booleans()),
    )
    memo = st.dictionaries(NAMES, NUMBERS, max_size=2)
    return st.builds(Plan, evaluate, NUMBERS, st.booleans(), st.lists(NAMES, max_size=2).map(tuple), memo)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_run_round_trips(data: st.DataObject) -> None:
    signals = st.dictionaries(NAMES, NUMBERS, max_size=3)
    attempts = st.builds(Attempt, NUMBERS, NUMBERS, plans(), NUMBERS, signals, st.sampled_from([True, False, None]))
    grid = data.draw(st.lists(NUMBERS, min_size=2, max_size=4).map(tuple))
    past = tuple(data.draw(st.lists(attempts, max_size=3)))
    prompt, text = data.draw(st.lists(NUMBERS, max_size=2).map(tuple)), data.draw(st.text(max_size=9))
    run = Run(1.0, 0.0, grid, grid, 2, 1, past, data.draw(st.none() | attempts), prompt, text)
    assert from_json(to_json(run)).run == run


def test_a_number_that_is_none_survives() -> None:
    attempt = Attempt(1.0, 0.5, Plan(Full(), 0.5), 1.0, {"error": float("nan")}, True)
    text = to_json(Run(0.5, 0.0, (1.0, 0.5, 0.0), (-1.0, 0.0, 1.0), past=(attempt,)))
    assert "NaN" not in text
    value = from_json(text).run.past[0].signals["error"]
    assert value != value


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a document is, the notes aside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        p for key, v in items for p in [(*here, key), *places(v, (*here, key))] if p[0] not in ("meta", "skipstone")
    ]


DOCUMENT = json.loads(to_json(RUN))
PLACES = places(DOCUMENT)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), st.booleans())
def test_any_damage_is_one_sentence(place: tuple[Any, ...], remove: bool) -> None:
    broken = copy.deepcopy(DOCUMENT)
    parent = broken
    for key in place[:-1]:
        parent = parent[key]
    optional = place == ("run", "prompt")  # traces had none before agents looked at it
    if remove and not optional and isinstance(parent, dict) and not {"memo", "signals"} & {*place[:-1][-1:]}:
        del parent[place[-1]]
    else:
        parent[place[-1]] = {"strange": []}
    with pytest.raises(TraceError) as caught:
        from_json(json.dumps(broken))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(to_json(RUN)) - 1))
def test_a_truncated_trace_is_refused(length: int) -> None:
    with pytest.raises(TraceError, match="ends early"):
        from_json(to_json(RUN)[:length])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends early"),
        ("[1, 2]", "without a `format`"),
        ('{"format": 99, "skipstone": "9.0"}', r"format 1, got 99.*\(9.0\)"),
        ("[" * 100_000, "ends early"),
    ],
)
def test_what_is_no_trace_is_refused(text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        from_json(text)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"missing\.json: No such file"):
        load(tmp_path / "missing.json")
    with pytest.raises(TraceError, match="No such file"):
        save(tmp_path / "nowhere" / "run.json", RUN)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not a text file"):
        load(tmp_path / "bytes.json")
    (tmp_path / "half.json").write_text(to_json(RUN)[:500])
    with pytest.raises(TraceError, match=r"half\.json: Expected"):
        load(tmp_path / "half.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save(path, RUN, seed=1)
    with pytest.raises(TraceError, match="plain JSON"):
        save(path, RUN, seed={1, 2})
    assert load(path).meta == {"seed": 1}


def test_the_account_of_a_run() -> None:
    text = explain(RUN)
    lines = text.splitlines()
    assert lines[0].startswith(f"{RUN.cost:g} calls, where the bare run makes 24: ")
    assert any(line.startswith("guidance_gate amended") for line in lines)
    assert sum(line.lstrip()[:1].isdigit() and " -> " in line for line in lines) == len(RUN.past)
    assert "uncond forecast (0)" in text
    assert "finish of order 2" in text


def test_the_account_says_what_each_number_means() -> None:
    every = [need for name in registry.names("policy") for need in registry.parse("policy", name).needs]
    every += [
        ACTION,
        GATE,
        STOP,
        FINISH_MEMO,
        REGION_SHARE,
        MAP_REUSED,
        "expected_error",
        *registry.names("signal"),
        "look[0]",
        "look[1]",
        "no_such_signal(of='v')",
    ]
    numbered = Attempt(1.0, 0.5, Plan(Full(), 0.5), 1.0, dict.fromkeys(every, 0.25), True)
    run = Run(0.5, 0.0, (1.0, 0.5, 0.0), (0.0, 1.0, 2.0), past=(numbered,))
    steps, _, words = explain(run).partition("What the numbers mean:")
    assert all(f"{name} 0.25" in steps for name in every)
    said = dict(line.strip().split(": ", 1) for line in words.strip().splitlines())
    known = {name.partition("[")[0] for name in every} - {"no_such_signal(of='v')"}
    assert said.keys() == known
    assert all(meaning.endswith(".") and len(meaning) > 20 for meaning in said.values())
    silent = Run(0.5, 0.0, run.grid, run.clocks, past=(Attempt(1.0, 0.5, Plan(Full(), 0.5), 1.0, {}, True),))
    assert "What the numbers mean" not in explain(silent)


def test_references_of_a_chain() -> None:
    lines = cite(registry.parse("policy", "third_order | guidance_gate | third_order")).splitlines()
    assert lines[0].startswith("third_order: Ye et al. 2024, arXiv 2410.09873")
    assert lines[1].startswith("guidance_gate: Zhang et al. 2024, arXiv 2404.02747")
    assert len(lines) == 2
