"""Compiled networks: how often they are compiled, counted by a backend of our own that compiles nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

import skipstone
from skipstone.engine.contracts import Forecast, Plan, Policy, Run
from skipstone.errors import GuestError

from .families import FAMILIES, build
from .runs import SPECS, assert_near, run_adapted, run_bare

SAMPLES, STEPS = 3, 8


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compiler:
    """A backend that counts its graphs and notes whose code they come from."""

    def __init__(self) -> None:
        self.graphs = 0
        self.files: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Any:
        self.graphs += 1
        for node in graph.graph.nodes:
            lines = (node.stack_trace or "").splitlines()
            self.files.update(line.split('"')[1] for line in lines if 'File "' in line)
        return graph.forward


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_network(pipe: Any, plain: Any, how: str) -> None:
    """Compiled once, once more for its class while adapted, and once more for batches of any size."""
    compiler = Compiler()
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend=compiler)
    else:
        pipe.unet.compile(backend=compiler)
    reference = run_bare(pipe)
    assert compiler.graphs == 1
    assert torch.equal(run_adapted(pipe, "fixed").output, reference)
    attached = compiler.graphs
    assert attached <= 2
    assert torch.equal(run_adapted(pipe, SPECS[0]).output, run_adapted(plain, SPECS[0]).output)
    assert torch.equal(run_bare(pipe), reference)
    assert compiler.graphs == attached  # whole batches only
    for spec in SPECS[1:]:
        assert_near(run_adapted(pipe, spec).output, run_adapted(plain, spec).output, 1e-5)
        assert compiler.graphs <= attached + 1
    ours = str(Path(skipstone.__file__).parent)
    assert compiler.files
    assert not [file for file in compiler.files if file.startswith(ours)]
    torch._dynamo.reset()


@dataclass(frozen=True)
class Capricious(Policy):
    """Call the network for some samples of the batch, others in every step and in every run."""

    draw: random.Random = field(default_factory=lambda: random.Random(0), compare=False)
    name: ClassVar[str] = "capricious"
    scope: ClassVar[Literal["sample", "batch"]] = "batch"

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        skips = [bool(run.attempts) and self.draw.random() < 0.5 for run in runs]
        return [replace(p, evaluate=Forecast()) if skip else p for skip, p in zip(skips, proposals, strict=True)]


def compiled(family: str, **settings: Any) -> tuple[Any, Compiler]:
    """A pipeline whose transformer is compiled in place, and what counts its graphs."""
    pipe, compiler = build(family), Compiler()
    pipe.transformer.compile(backend=compiler, **settings)
    return pipe, compiler


def graphs_of_runs(pipe: Any, compiler: Compiler, inputs: dict[str, Any], count: int) -> list[int]:
    """How many graphs each of so many runs has added."""
    totals = [compiler.graphs]
    for _ in range(count):
        pipe(**inputs)
        totals.append(compiler.graphs)
    return [after - before for before, after in itertools.pairwise(totals)]


def test_nothing_is_compiled_after_the_second_run() -> None:
    """Of guided samples two rows enter at least, and after two numbers of rows a compiler makes one graph for all."""
    pipe, compiler = compiled("sd3")
    with skipstone.adapt(pipe, Capricious()):
        inputs = FAMILIES["sd3"].inputs(pipe, SAMPLES, STEPS)
        first, *later = graphs_of_runs(pipe, compiler, inputs, 4)
    assert first == 2
    assert later == [0, 0, 0]


def test_nothing_is_compiled_after_a_warm_up() -> None:
    """Even where every number of rows has a graph of its own; a lone row has one in any case."""
    pipe, compiler = compiled("flux", dynamic=False)
    inputs = FAMILIES["flux"].inputs(pipe, 2, STEPS)
    with skipstone.adapt(pipe, Capricious()) as adapted:
        adapted.warm_up(**inputs)
        assert compiler.graphs == 2
        assert graphs_of_runs(pipe, compiler, inputs, 2) == [0, 0]
    with skipstone.adapt(pipe, Capricious(), solver="adams") as adapted:
        assert graphs_of_runs(pipe, compiler, inputs, 1) == [0]  # FLUX is told one time for each row in any case
        before = adapted.last
        with pytest.raises(GuestError, match="2 samples take 3 steps to warm up, and 2 were made"):
            adapted.warm_up(**inputs | {"num_inference_steps": 2})
        assert adapted.last is before


@pytest.mark.parametrize("solver", [None, "adams"])
@pytest.mark.parametrize("policy", ["error_control", "guidance_gate"])
def test_a_warm_up_sends_every_number_of_rows(policy: str, solver: str | None) -> None:
    pipe = build("sd3")
    entered: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    with skipstone.adapt(pipe, policy, solver=solver) as adapted:
        adapted.warm_up(**FAMILIES["sd3"].inputs(pipe, SAMPLES, STEPS))
    single = [1, 2, 3] if policy == "guidance_gate" else []
    assert set(entered) == {*(2 * n for n in range(1, SAMPLES + 1)), *single}
