"""Several pipelines at once, one within another, and one adapted several times."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import skipstone
from skipstone.errors import GuestError

from .families import SCHEDULERS
from .runs import SPECS, run_adapted, run_bare, traces

Values = dict[str, Any]


def sibling(pipe: Any, scheduler: str = "ddim") -> Any:
    """Another pipeline with the same networks and a scheduler of its own.

    And a tokenizer: those of transformers keep padding and truncation as state, and threads that share one now and then
    get prompts of unlike lengths.
    """
    own = {"scheduler": SCHEDULERS[scheduler](pipe.scheduler.config), "tokenizer": copy.deepcopy(pipe.tokenizer)}
    parts = {**pipe.components, **own}
    other = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


# -- threads --------------------------------------------------------------------------------------


def test_pipelines_that_share_a_network_run_at_once_as_one_after_another(pipe: Any) -> None:
    """Under policies of their own, and one of them bare; they meet at every step."""
    plans = {"ddim": SPECS[1], "euler": SPECS[2], "unipc": SPECS[0], "dpmpp": None}
    pipes = {name: sibling(pipe, name) for name in plans}

    def run(name: str, callback: Any = None) -> tuple[torch.Tensor, list[str]]:
        spec = plans[name]
        if spec is None:
            return run_bare(pipes[name], callback_on_step_end=callback), []
        with skipstone.adapt(pipes[name], spec) as guest:
            output = run_bare(pipes[name], callback_on_step_end=callback)
            return output, [s.decisions for s in guest.last]

    serial = {name: run(name) for name in plans}
    meeting = threading.Barrier(len(plans), timeout=300)

    def meet(p: Any, step: int, t: Any, values: Values) -> Values:
        meeting.wait()
        return values

    with ThreadPoolExecutor(len(plans)) as pool:
        together = dict(zip(plans, pool.map(lambda name: run(name, meet), plans), strict=True))
    for name in plans:
        assert torch.equal(together[name][0], serial[name][0])
        assert together[name][1] == serial[name][1]
    assert not [name for p in pipes.values() for name in traces(p, *p.components.values())]


def test_one_pipeline_in_two_threads_is_refused_and_the_first_run_goes_on(pipe: Any) -> None:
    expected = run_adapted(pipe, SPECS[1])
    errors: list[BaseException] = []

    def intrude(p: Any, step: int, t: Any, values: Values) -> Values:
        if step == 5:
            with ThreadPoolExecutor(1) as pool:
                errors.append(pool.submit(run_bare, pipe).exception(timeout=300))  # type: ignore[arg-type]  # not None
        return values

    ran = run_adapted(pipe, SPECS[1], callback_on_step_end=intrude)
    assert [type(e) for e in errors] == [GuestError]
    assert "running already" in str(errors[0])
    assert torch.equal(ran.output, expected.output)
    assert ran.decisions == expected.decisions
    assert torch.equal(run_bare(pipe), run_bare(sibling(pipe)))


def test_a_pipeline_that_calls_itself_is_refused(pipe: Any) -> None:
    def again(p: Any, step: int, t: Any, values: Values) -> Values:
        run_bare(p)
        return values

    with skipstone.adapt(pipe, "fixed"), pytest.raises(GuestError, match="running already"):
        run_bare(pipe, callback_on_step_end=again)
    assert not traces(pipe, *pipe.components.values())


# -- one pipeline within another ------------------------------------------------------------------


def inside(inner: Callable[[], Any]) -> Callable[..., Values]:
    def callback(p: Any, step: int, t: Any, values: Values) -> Values:
        if step in (2, 7):
            inner()
        return values

    return callback


@pytest.mark.parametrize(
    ("how", "shared"), [("function", False), ("function", True), ("partial", True), ("object", True)]
)
@pytest.mark.parametrize("inner_spec", [None, SPECS[2]], ids=["bare", "adapted"])
def test_a_callback_that_runs_another_pipeline(
    pipe: Any, plain: Any, how: str, shared: bool, inner_spec: str | None
) -> None:
    other = sibling(pipe, "euler") if shared else plain
    if inner_spec is None:
        expected_inner = run_bare(other, batch=2)
    else:
        guest = skipstone.adapt(other, inner_spec)
        expected_inner = run_bare(other, batch=2)
        expected_letters = [s.decisions for s in guest.last]
    expected = run_adapted(pipe, SPECS[1])
    made: list[Any] = []
    callback: Any = inside(lambda: made.append(run_bare(other, batch=2)))
    if how == "partial":
        callback = partial(callback)
    elif how == "object":
        callback = type("Watcher", (), {"__call__": staticmethod(callback)})()
    with skipstone.adapt(pipe, SPECS[1]) as outer:
        output = run_bare(pipe, callback_on_step_end=callback)
    assert len(made) == 2
    assert all(torch.equal(m, expected_inner) for m in made)
    assert torch.equal(output, expected.output)
    assert [s.decisions for s in outer.last] == expected.decisions
    if inner_spec is not None:
        assert [s.decisions for s in guest.last] == expected_letters
        guest.remove()
    assert not traces(pipe, *pipe.components.values())
    assert not traces(other, *other.components.values())


# -- one pipeline adapted several times -----------------------------------------------------------


def test_the_newest_rules_hold_and_removing_gives_back_the_older(pipe: Any) -> None:
    expected = {spec: run_adapted(pipe, spec).output for spec in ("fixed", *SPECS)}
    guests = [skipstone.adapt(pipe, spec) for spec in SPECS]
    assert torch.equal(run_bare(pipe), expected[SPECS[2]])
    guests[2].remove()
    assert torch.equal(run_bare(pipe), expected[SPECS[1]])
    guests[0].remove()  # an older one first
    assert torch.equal(run_bare(pipe), expected[SPECS[1]])
    for _ in range(2):  # twice does no harm
        guests[1].remove()
        guests[0].remove()
        assert torch.equal(run_bare(pipe), expected["fixed"])
        assert type(pipe) is StableDiffusionPipeline
    assert [guest.last.policy for guest in guests[1:]] == [skipstone.spell(guest.policy) for guest in guests[1:]]


def test_each_guest_has_an_account_of_its_own(pipe: Any) -> None:
    with skipstone.adapt(pipe, SPECS[0]) as older:
        run_bare(pipe)
        first = older.last
        with skipstone.adapt(pipe, SPECS[1]) as newer:
            with pytest.raises(GuestError, match="has not run yet"):
                newer.last  # noqa: B018
            run_bare(pipe)
        assert older.last is first
        assert newer.last is not first
        run_bare(pipe)
        assert older.last is not first
    assert type(pipe) is StableDiffusionPipeline
    with pytest.raises(GuestError, match="has not run yet"):
        skipstone.adapt(pipe, "fixed").last  # noqa: B018


def test_removed_within_a_run_it_ends_with_that_run(pipe: Any) -> None:
    expected, plain = run_adapted(pipe, SPECS[1]), run_bare(pipe)
    guest = skipstone.adapt(pipe, SPECS[1])
    ran = run_bare(pipe, callback_on_step_end=inside(guest.remove))
    assert torch.equal(ran, expected.output)
    assert [s.decisions for s in guest.last] == expected.decisions
    assert type(pipe) is StableDiffusionPipeline
    assert torch.equal(run_bare(pipe), plain)


def test_adapted_within_a_run_the_rules_hold_from_the_next_on(pipe: Any) -> None:
    expected, reference = run_adapted(pipe, SPECS[1]), run_bare(pipe)
    guests: list[Any] = []
    with skipstone.adapt(pipe, "fixed"):
        ran = run_bare(pipe, callback_on_step_end=inside(lambda: guests.append(skipstone.adapt(pipe, SPECS[1]))))
        assert torch.equal(ran, reference)
        assert torch.equal(run_bare(pipe), expected.output)
    for guest in guests:
        guest.remove()
    assert type(pipe) is StableDiffusionPipeline
