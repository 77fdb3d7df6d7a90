"""Logged trajectories: what a model did on some prompts, in a file small enough to ship, and the pool they make."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skipstone import registry
from skipstone.engine.requests import Problem, Solver
from skipstone.errors import OutputError, SpecError
from skipstone.numerics.schedule import Schedule
from skipstone.policies.agent.actions import BaseSchedule

from .complexity import prompt_complexities
from .episodes import SamplePool
from .logged_backbone import CachedSchedule, RecordedBackbone, RecordedTrajectories

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "logs"


@dataclass(frozen=True, eq=False)
class TrajectoryLog:
    """Fine runs of a model, and how fixed schedules did there on the real network.

    Args:
        runs: The fine runs.
        grid: Of the problems.
        prompts: One for each sample.
        seeds: One for each sample.
        states: (samples, width) mean text states.
        base_schedules: Fixed schedules, by calls.
        made: (samples, schedules) PSNR to the converged run in dB, of each schedule on the network.
        ends: (samples, *latent) where each fine run ends, half precision: the references of runs on the network.
        peak: See `SamplePool`.
        solver: Spec of the solver that the schedules were found for.
        model: Its name.
        provenance: Guidance, digest of the weights and number of fine steps.
    """

    runs: RecordedTrajectories
    grid: tuple[float, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    states: Any
    base_schedules: Mapping[int, BaseSchedule]
    made: Any
    ends: Any
    peak: float
    solver: str = "adams"
    model: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = (self.runs.z, self.runs.v, self.runs.gains, self.seeds, self.states, self.made, self.ends)
        if any(len(one) != len(self.prompts) for one in found) or self.made.shape[1] != len(self.base_schedules):
            raise SpecError(
                "Expected as many trajectories, states and ends as prompts, and as many figures as schedules."
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the samples."""
        return tuple(f"{prompt}, seed {seed}" for prompt, seed in zip(self.prompts, self.seeds, strict=True))

    def split(self, share: float) -> tuple[list[int], list[int]]:
        """Numbers of the samples to train on, and of those to validate on: by the prompt, whatever its seed.

        Args:
            share: Of the prompts that are used for validation, in (0, 1).

        Raises:
            SpecError: nothing is left for one of the two.
        """
        order = sorted(set(self.prompts), key=lambda p: hashlib.sha256(p.encode()).digest())
        kept = set(order[: round(share * len(order))])
        train = [i for i, p in enumerate(self.prompts) if p not in kept]
        held = [i for i, p in enumerate(self.prompts) if p in kept]
        if not train or not held:
            raise SpecError(f"Expected prompts for training and for validation, got {len(train)} and {len(held)}.")
        return train, held

    def build_solver(self) -> Solver:
        """The solver."""
        solver: Solver = registry.parse("solver", self.solver)
        return solver

    def pool(self, samples: Sequence[int], schedule: Schedule) -> SamplePool:
        """The recorded runs of these samples as a pool."""
        schedule = CachedSchedule(schedule)
        backbone = RecordedBackbone(schedule, self.runs)
        ends = backbone.at(self.grid[-1])[1]
        problems = [
            Problem(schedule, self.runs.z[i], self.grid, i, self.seeds[i], prompt=tuple(map(float, self.states[i])))
            for i in samples
        ]
        known = np.array(prompt_complexities([self.prompts[i] for i in samples]).values, np.float32)
        return SamplePool(
            backbone, problems, [ends[i] for i in samples], self.peak, [self.names[i] for i in samples], known
        )

    # -- On disk -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one file, complete or not at all. Raises OutputError where that cannot be."""
        about = {
            "format": FORMAT_VERSION,
            "grid": list(self.grid),
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "guides": {str(n): list(schedule.times) for n, schedule in self.base_schedules.items()},
            "peak": self.peak,
            "solver": self.solver,
            "model": self.model,
            "way": dict(self.provenance),
        }
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        runs = self.runs
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez_compressed(
                    file,
                    angles=runs.angles,
                    z=runs.z,
                    v=runs.v,
                    gains=runs.gains,
                    marks=runs.marks,
                    states=np.asarray(self.states, np.float32),
                    made=np.asarray(self.made, np.float32),
                    ends=np.asarray(self.ends, np.float16),
                    about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                )
            os.replace(part, target)
        except OSError as e:
            raise OutputError(f"Cannot write the logged trajectories to {target}: {e}.") from None
        return target

    @classmethod
    def load(cls, path: str | Path) -> TrajectoryLog:
        """What `save` wrote: a shipped one by its name, or a file. Raises SpecError where it cannot be read."""
        shipped = SHIPPED / f"{path}.npz"
        file = shipped if shipped.is_file() else Path(path)
        try:
            with np.load(file, allow_pickle=False) as found:
                a = {name: found[name] for name in found.files}
            about = json.loads(a["about"].tobytes().decode())
            if about["format"] != FORMAT_VERSION:
                raise SpecError(f"{file} has format {about['format']}, expected {FORMAT_VERSION}: draw it again.")
            return cls(
                RecordedTrajectories(a["angles"], a["z"], a["v"], a["gains"], a["marks"]),
                tuple(about["grid"]),
                tuple(about["prompts"]),
                tuple(about["seeds"]),
                a["states"],
                {int(n): BaseSchedule(tuple(times)) for n, times in about["guides"].items()},
                a["made"],
                a["ends"],
                about["peak"],
                about["solver"],
                about["model"],
                about["way"],
            )
        except FileNotFoundError:
            names = ", ".join(sorted(repr(p.stem) for p in SHIPPED.glob("*.npz"))) or "none"
            raise SpecError(
                f"Expected a file of logged trajectories, got {path}. Shipped: {names}. Draw some: skipstone train log."
            ) from None
        except Exception as e:  # zip and zlib have errors of their own, for files that are cut or changed
            if isinstance(e, SpecError):
                raise
            raise SpecError(f"{file} is damaged, or holds no logged trajectories. Draw it again.") from None
