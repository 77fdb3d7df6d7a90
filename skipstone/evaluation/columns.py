"""One spelling for how a column of a comparison denoises: `policy @ solver / grid / steps`.

    third_order(tol=0.02)                         the policy, on the solver, grid and steps of the command
    fixed @ dpmpp(order=2) / karras / 20          a fixed sampler
    third_order | budget(calls=20) @ ddim         only the solver differs
    fewer @ dpmpp(order=2) / karras               as many steps as the column to its left needs calls
    stride @ 50                                   a policy that brings its own solver, `adams`
    third_order @ own                             the model's own solver and grid; `own / karras` changes the grid
    deepcache(interval=3) @ dpmpp                 a peer: somebody else's accelerator, in a diffusers pipeline
    lcm_lora @ 8                                  one that brings its own scheduler, and 4 steps by default
    out                                           the folder of a saved or calibrated policy; a calibrated one brings
                                                  the solver, grid and steps that it was calibrated with
    ./mine.py:Mine(tol=0.02)                      a policy of a Python file

What follows the @ may leave out any of solver, grid and steps, but keeps their order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..engine.requests import Solver
from ..errors import SpecError, UnknownNameError
from ..numerics.grid import Grid
from ..policies.certified import Certified
from ..policies.from_file import is_file_spec, load_policy_from_file, spell_policy
from ..policies.storage import is_policy_folder, read_fallback, read_policy
from ..settings import MAX_STEPS
from .peers import Peer

FEWER, OWN = "fewer", "own"
OWN_SAMPLER_SPEC = f"{OWN} / {OWN}"
FIXED_POLICY: Policy = registry.parse("policy", "fixed")
# Rows that go by one name: (what they are, their specs).
SPEC_SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "addiffusion": (
        "The fixed samplers and rivals that AdDiffusion names, on the pipeline's own grid, with the calls they make.",
        (
            "fixed @ ddim / own / 20",
            "fixed @ ddim / own / 50",
            "fixed @ dpmpp / own / 20",
            "fixed @ dpmpp / own / 50",
            "fixed @ euler / own / 20",
            "fixed @ unipc / own / 20",
            "scheduler @ 20",
            "sag @ ddim / own / 20",
            "attend_and_excite @ ddim / own / 50",
            "lcm_lora @ 4",
            "sdxl_turbo @ 4",
        ),
    ),
}
GRAMMAR_HINT = "Expected 'policy @ solver / grid / steps', e.g. 'fixed @ dpmpp(order=2) / karras / 20'"


class Sampler(NamedTuple):
    """Solver, grid and number of steps; None is the model's own."""

    solver: Solver | None = None
    grid: Grid | None = None
    steps: int = 50

    @staticmethod
    def parse_component(kind: str, spec: str) -> Any:
        """The solver or grid of a spec, None of `own`. Raises SpecError."""
        return None if spec.strip() == OWN else registry.parse(kind, spec)


def format_component(part: Solver | Grid | None) -> str:
    """The spec of a solver or grid."""
    return OWN if part is None else registry.spell(part)


@dataclass(frozen=True)
class Column:
    """How every sample of one column is denoised.

    Args:
        policy: Which steps call the network, or a peer that does what it does; None is `fewer`, which runs as many
            full steps as the column to its left makes calls in the mean, rounded up: generous to this baseline,
            never to the policy.
        solver: How steps are made; None is the model's own way.
        grid: Where they go; None is the model's own.
        steps: How many; of a `fewer` column, 0 until its partner's calls are known.
        explicit_parts: The parts that were written after the @, for the label.
        preset: The name that the policy was written as, where it is a preset or a folder that keeps one; for the label.
        fallback: The column that runs in its place in a pipeline whose loop it cannot take over; None where there is
            none, and the refusal is an error.
        refusal: Of a column that runs in such a place: why.
    """

    policy: Policy | Peer | None
    solver: Solver | None
    grid: Grid | None
    steps: int
    explicit_parts: tuple[str, ...] = field(default=(), compare=False)
    preset: str = field(default="", compare=False)
    fallback: Column | None = field(default=None, compare=False)
    refusal: str = field(default="", compare=False)

    @property
    def is_adaptive(self) -> bool:
        """Whether the column's policy makes any decisions."""
        return isinstance(self.policy, Policy) and registry.spell(self.policy) != "fixed"

    @property
    def peer(self) -> Peer | None:
        """The peer (a third-party accelerator) of this column; None if the column has a policy."""
        return self.policy if isinstance(self.policy, Peer) else None

    @property
    def effective_policy(self) -> Policy:
        """The policy; `fixed` of a `fewer`. Raises SpecError of a peer, which only runs in a pipeline."""
        if isinstance(self.policy, Peer):
            raise SpecError(f"{self.policy.name} is no policy: it runs in diffusers pipelines. Add --as-guest.")
        return self.policy or FIXED_POLICY

    @property
    def spec(self) -> str:
        """The column in full: what it takes to run it again, which for a `fewer` with its steps is `fixed`."""
        head = "fixed" if self.policy is None and self.steps else self.policy_spec
        return f"{head} @ {self.way}"

    @property
    def way(self) -> str:
        """The spec of solver, grid and steps."""
        way = f"{format_component(self.solver)} / {format_component(self.grid)}"
        return f"{OWN if way == OWN_SAMPLER_SPEC else way} / {self.steps}"

    @property
    def label(self) -> str:
        """The column as it was written: without the parts that it left to the command."""
        head = self.preset or self.policy_spec
        if self.refusal:
            head += f" ({self.policy_spec})"
        return f"{head} @ {' / '.join(self.explicit_parts)}" if self.explicit_parts else head

    @property
    def title(self) -> str:
        """The label; behind that of a preset, what it stands for: "balanced (adaptive_grid)"."""
        return f"{self.label} ({self.stands_for})" if self.stands_for else self.label

    @property
    def stands_for(self) -> str:
        """What the preset stands for; empty where there is none, or its fallback runs, which the label names."""
        return self.policy_spec if self.preset and not self.refusal else ""

    @property
    def policy_spec(self) -> str:
        """The spec of the policy alone."""
        return FEWER if self.policy is None else spell_policy(self.policy)

    def with_calls(self, calls: float) -> Column:
        """A `fewer` column once its partner's mean calls are known."""
        return replace(self, steps=max(1, math.ceil(calls - 1e-9)))

    @property
    def refusal_note(self) -> str:
        """A sentence about a preset that could not take the loop over; empty of all other columns."""
        if not self.refusal:
            return ""
        return (
            f"{self.preset} would take the pipeline's loop over, and cannot here: {self.refusal}. {self.policy_spec} "
            f"decides in the pipeline's own steps instead."
        )


def parse_column(
    spec: str, solver: Solver | None, grid: Grid | None, steps: int, run_files: bool = False, read_folders: bool = True
) -> Column:
    """The column of a spec; the parts that it leaves out are taken from the arguments.

    Args:
        spec: Of the column.
        solver, grid, steps: Of what it leaves out.
        run_files: Whether a policy may come from a Python file, which is run: only where the user has typed the spec,
            never where it was read from a folder that may be somebody else's.
        read_folders: Whether a policy may be that of a folder: not where a stranger has sent the spec.

    Raises:
        SpecError: unknown names or arguments, parts out of order, fewer than one step or more than MAX_STEPS.
    """
    head, at, tail = spec.partition("@")
    parts = [part.strip() for part in tail.split("/")] if at else []
    if not head.strip() or "" in parts or len(parts) > 3:
        raise SpecError(f"{GRAMMAR_HINT}, got {spec!r}.")
    policy = None if head.strip() == FEWER else _parse_policy(head.strip(), run_files, read_folders)
    explicit, hosted = tuple(parts), solver
    if isinstance(policy, Certified) and not policy.is_unrestricted and not parts:
        parts = [part.strip() for part in policy.point.way.split("/")]  # the promise is for no other sampler
    if parts and re.fullmatch(r"[+-]?[0-9]+", parts[-1]):
        if policy is None:
            raise SpecError(f"{FEWER!r} takes its steps from the column to its left; leave them out of {spec!r}.")
        steps = int(parts.pop().lstrip("+0")[:20] or 0)  # as many digits as tell that there are too many
    elif isinstance(policy, Peer):
        steps = policy.steps or steps
    _check_steps(steps, 0 if policy is None else 1)
    if len(parts) > 2:
        raise SpecError(f"{GRAMMAR_HINT}, got {spec!r}.")
    if parts == [OWN]:
        parts = [OWN, OWN]
    if isinstance(policy, Peer) and policy.brings_scheduler:
        if parts and parts != [OWN, OWN]:
            raise SpecError(f"{policy.name} brings its own scheduler: write '{policy.name} @ {steps}', got {spec!r}.")
        return Column(policy, None, None, steps, explicit)
    preset, fallback = _preset_and_fallback(head.strip(), read_folders)
    if len(parts) == 2 or (parts and _component_kind(parts[0]) == "solver"):
        solver = Sampler.parse_component("solver", parts.pop(0))
        fallback = "" if solver else fallback  # whoever names a solver is told where it is refused
    elif isinstance(policy, Policy) and policy.solver:
        solver = registry.parse("solver", policy.solver)
    if parts:
        grid = Sampler.parse_component("grid", parts[0])
    column = Column(policy, solver, grid, 0 if policy is None else steps, explicit, preset)
    instead = replace(column, policy=registry.parse("policy", fallback), solver=hosted) if fallback else None
    return replace(column, fallback=instead)


def _check_steps(steps: int, least: int) -> None:
    if steps < least:
        raise SpecError(f"Expected at least 1 step, got {steps}.")
    if steps > MAX_STEPS:
        raise SpecError(f"Expected at most {MAX_STEPS} steps, got {steps}.")


def _preset_and_fallback(spec: str, read_folders: bool) -> tuple[str, str]:
    """The spec of a policy and its fallback, where it is a preset, a chain with one, or a folder that keeps one."""
    if is_file_spec(spec):
        return "", ""
    if read_folders and is_policy_folder(spec):
        kept = read_fallback(spec)
        return (spec, registry.spell(kept)) if kept else ("", "")
    return (spec, registry.find_fallback("policy", spec)) if registry.mentions_preset("policy", spec) else ("", "")


def _parse_policy(spec: str, run_files: bool, read_folders: bool) -> Policy | Peer:
    """A policy, or the folder of one, or one of a Python file, or a peer."""
    if is_file_spec(spec):
        if not run_files:
            raise SpecError(f"A policy of a Python file is taken with --policy (-p) only, got {spec!r}.")
        return load_policy_from_file(spec)
    if read_folders and is_policy_folder(spec):
        return read_policy(spec)
    if spec.partition("(")[0].strip() in registry.names("peer"):
        peer: Peer = registry.parse("peer", spec)
        return peer
    try:
        policy: Policy = registry.parse("policy", spec)
    except UnknownNameError as e:
        peers = registry.names("peer")
        guess = registry.suggest_spelling(spec.partition("(")[0].strip(), (*peers, *SPEC_SETS))
        raise UnknownNameError(f"{e} Peers: {', '.join(peers)}. Sets of rows: {', '.join(SPEC_SETS)}.{guess}") from None
    return policy


def _component_kind(spec: str) -> str:
    """Whether the only part of a spec names a solver or a grid."""
    name, kinds = spec.partition("(")[0].strip(), ("solver", "grid")
    for kind in kinds:
        if name in registry.names(kind):
            return kind
    known = (*registry.names("solver"), *registry.names("grid"), OWN)
    raise SpecError(
        f"No solver or grid is called {name!r}.{registry.suggest_spelling(name, known)} Known: {', '.join(known)}."
    )


def expand_specs(specs: Sequence[str]) -> list[str]:
    """Specs, the names of sets replaced by what is in them."""
    return [spec for one in specs for spec in (SPEC_SETS[one.strip()][1] if one.strip() in SPEC_SETS else (one,))]


def parse_columns(
    specs: Sequence[str], solver: Solver | None, grid: Grid | None, steps: int, run_files: bool = False
) -> list[Column]:
    """The columns of a comparison; the name of a set stands for all of its columns. Arguments as of `parse_column`.

    Raises:
        SpecError: as `parse_column`; a `fewer` with no other column to its left.
    """
    columns = [parse_column(spec, solver, grid, steps, run_files) for spec in expand_specs(specs)]
    for i, column in enumerate(columns):
        if column.policy is None and find_partner(columns, i) < 0:
            raise SpecError(f"{FEWER!r} takes as many steps as the column to its left makes calls; put one there.")
    return columns


def check_names_apart(columns: Sequence[Column]) -> None:
    """Raise SpecError where two columns have one spec under two names, of which results would keep one only."""
    names: dict[str, str] = {}
    for column in columns:
        first = names.setdefault(column.spec, column.label)
        if first != column.label:
            raise SpecError(f"{first!r} and {column.label!r} are the same, {column.spec!r}. Leave out one of them.")


def find_partner(columns: Sequence[Column], i: int) -> int:
    """Index of the column whose calls a `fewer` column at i is given, or -1."""
    return max((k for k in range(i) if columns[k].policy is not None), default=-1)
