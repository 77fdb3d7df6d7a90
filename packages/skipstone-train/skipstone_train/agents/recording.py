"""Draw logged trajectories: fine runs of a model, how errors fade on them, and what fixed schedules make of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.evaluation.folder_lock import lock_folder
from skipstone.evaluation.models import EmbeddedModel
from skipstone.integrations.identity import identity
from skipstone.policies.agent.actions import BaseSchedule
from skipstone.tuning.grids import even_times, path_policy
from skipstone.tuning.recorder import Recorder

from .logged_backbone import RecordedTrajectories
from .trajectory_log import TrajectoryLog

PROBE_ANGLES = (0.93, 0.8, 0.62, 0.42, 0.22, 0.08)  # of the whole angle, where errors are made to see how they fade
PROBE_RMS = 0.02  # rms of such an error
PROBE_STRIDE = 10  # places that the runs pass in a step which carry it to the end
NUM_DENSE_TAIL_PLACES = 12  # last places that are all kept
LAST_STEP_PARTS = 5  # parts of the last fine step: the path bends hard near data
SampleProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class RecordingSettings:
    """How to draw logged trajectories.

    Args:
        fine: Steps of a fine run, even on the angle, >= 100; the last is divided once more.
        dimensions: Coordinates that are kept of a run, >= 2. With 36, rms 0.0016 of Pebble's v are left out.
        batch: Samples that are drawn together, >= 1.
        solver: Of all runs.
    """

    fine: int = 200
    dimensions: int = 36
    batch: int = 16
    solver: str = "adams(of='x0')"

    def record(
        self,
        model: EmbeddedModel,
        prompts: Sequence[str],
        seeds: Sequence[int],
        base_schedules: Mapping[int, BaseSchedule],
        out: Path,
        callback: SampleProgressCallback | None = None,
    ) -> TrajectoryLog:
        """The log of these samples; parts that are done are stored beside `out` until it is written.

        Args:
            model: The model.
            prompts, seeds: One of each for every sample.
            base_schedules: Fixed schedules, by calls.
            out: The file that is written in the end.
            callback: Called with (samples drawn, samples in all).

        Raises:
            SpecError: the parts beside `out` were recorded with other samples, schedules or settings.
            OutputError: another command records into `out`.
        """
        parts = out.with_name(f".{out.name}.parts")
        with lock_folder(parts):
            log = self._record(model, prompts, seeds, base_schedules, parts, callback)
            log.save(out)
            for file in (*parts.glob("*.npz"), parts / ABOUT):
                file.unlink()
        with suppress(OSError):  # another command has begun there
            parts.rmdir()
        return log

    def _record(
        self,
        model: EmbeddedModel,
        prompts: Sequence[str],
        seeds: Sequence[int],
        base_schedules: Mapping[int, BaseSchedule],
        parts: Path,
        callback: SampleProgressCallback | None,
    ) -> TrajectoryLog:
        grid = registry.parse("grid", "trailing").times(model.schedule, 50)
        times = fine_times(model.schedule, grid[0], self.fine)
        known = {str(n): list(schedule.times) for n, schedule in base_schedules.items()}
        identity_digest = identity(model)["weights"]
        _check_parts_folder(parts, [identity_digest, model.guidance, vars(self), list(prompts), list(seeds), known])
        found = []
        for first in range(0, len(prompts), self.batch):
            here = slice(first, first + self.batch)
            file = parts / f"{first:06d}.npz"
            if not file.is_file():
                problems = [model.problem(p, s, grid=grid) for p, s in zip(prompts[here], seeds[here], strict=True)]
                self._record_batch(model, problems, times, base_schedules, file)
            with np.load(file) as part:
                found.append(dict(part))
            if callback is not None:
                callback(min(first + self.batch, len(prompts)), len(prompts))
        whole = {name: np.concatenate([part[name] for part in found]) for name in found[0].keys() - _SHARED_ARRAYS}
        angles, marks = found[0]["angles"], found[0]["marks"]
        some = thin_indices(len(angles))
        runs = RecordedTrajectories(angles[some], whole["z"], whole["v"][:, some], whole["gains"], marks)
        return TrajectoryLog(
            runs, grid, tuple(prompts), tuple(seeds), whole["states"], base_schedules, whole["made"], whole["ends"],
            10 ** (float(np.median(whole["offset"])) / 20), self.solver, model.name,
            {"guidance": model.guidance, "identity": identity_digest, "fine": self.fine},
        )  # fmt: skip

    def _record_batch(
        self,
        model: EmbeddedModel,
        problems: Sequence[Problem],
        times: tuple[float, ...],
        base_schedules: Mapping[int, BaseSchedule],
        file: Path,
    ) -> None:
        """Run some samples, and write their part of the log."""
        solver = registry.parse("solver", self.solver)
        angles = np.array([model.schedule.angle(t) for t in times])
        recorder = Recorder(registry.parse("solver", "adams"))
        ends = [r.x for r in denoise_many(model.backbone, problems, recorder, path_policy(times))]
        z, v = _recorded_paths(recorder, angles)
        marks = nearest_indices(angles, angles[0] * np.array(PROBE_ANGLES))
        gains = _measure_error_gains(model, problems, times, z, v, marks)
        pictures = model.decode(ends)
        made, offsets = [], []
        for schedule in base_schedules.values():
            results = denoise_many(model.backbone, problems, solver, path_policy(schedule.times))
            near = [_decibels(r.x.numpy(), x.numpy()) for r, x in zip(results, ends, strict=True)]
            made.append([_decibels(a, b) for a, b in zip(model.decode([r.x for r in results]), pictures, strict=True)])
            offsets.append(np.subtract(made[-1], near))
        runs = RecordedTrajectories.from_latents(angles, z[:, 0], v, gains, angles[marks], self.dimensions)
        part = file.with_suffix(".part")
        with open(part, "wb") as opened:
            np.savez(
                opened, angles=runs.angles, marks=runs.marks, z=runs.z, v=runs.v, gains=runs.gains,
                states=np.array([p.prompt for p in problems]), made=np.array(made).T, offset=np.array(offsets).T,
                ends=np.stack([x.numpy() for x in ends]),
            )  # fmt: skip
        os.replace(part, file)


ABOUT = "about.json"  # what the parts are of
_SHARED_ARRAYS = {"angles", "marks"}  # alike in all parts


def _check_parts_folder(parts: Path, about: Any) -> None:
    """Make the folder of the parts, or check that it is of this recording. Raises SpecError."""
    parts.mkdir(parents=True, exist_ok=True)
    note, text = parts / ABOUT, json.dumps(about)
    if not any(parts.glob("*.npz")):
        note.write_text(text, encoding="utf-8")
    elif not note.is_file() or note.read_text(encoding="utf-8") != text:
        raise SpecError(
            f"{parts} holds parts of another drawing, which was interrupted. Give the command that drew them, choose "
            f"another --out, or delete that folder."
        )


def fine_times(schedule: Any, start: float, steps: int) -> tuple[float, ...]:
    """Times even on the angle, the last step in `LAST_STEP_PARTS` parts."""
    even = even_times(schedule, start, steps)
    return (*even[:-1], *(even[-2] * (1 - k / LAST_STEP_PARTS) for k in range(1, LAST_STEP_PARTS)), 0.0)


def thin_indices(places: int) -> list[int]:
    """Places that are stored in a log: every second, and all of the last ones, where the path bends hard."""
    return sorted(
        {*range(0, places - NUM_DENSE_TAIL_PLACES, 2), *range(max(0, places - NUM_DENSE_TAIL_PLACES), places)}
    )


def nearest_indices(angles: Any, wanted: Any) -> Any:
    """Places of a fine run nearest to some angles, away from both ends."""
    places = np.abs(angles[None] - np.asarray(wanted)[:, None]).argmin(1)
    return np.clip(places, PROBE_STRIDE, len(angles) - PROBE_STRIDE - 1)


def _recorded_paths(recorder: Recorder, angles: Any) -> tuple[Any, Any]:
    """z and v (samples, places, numbers) of the runs; v at the end is that of the line through the two before."""
    rows = np.stack([np.stack(line.rows, 1) for line in recorder.lines]).astype(np.float64)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    z = cos * rows[:, 0] + sin * rows[:, 1]
    v = cos * rows[:, 1] - sin * rows[:, 0]
    share = (angles[-1] - angles[-2]) / (angles[-2] - angles[-3])
    v[:, -1] = v[:, -2] + share * (v[:, -2] - v[:, -3])
    return z, v


def _measure_error_gains(
    model: EmbeddedModel, problems: Sequence[Problem], times: tuple[float, ...], z: Any, v: Any, marks: Any
) -> Any:
    """(samples, marks): how much of an error in the direction in which long steps err is left at the end."""
    starts = []
    for problem, line, slopes in zip(problems, z, v, strict=True):
        for place in marks:
            bend = slopes[place - PROBE_STRIDE] - 2 * slopes[place] + slopes[place + PROBE_STRIDE]
            nudge = PROBE_RMS * bend / math.sqrt(float((bend**2).mean()))
            grid = (times[place], *(t for t in (*times[place + 1 :: PROBE_STRIDE], times[-2], 0.0) if t < times[place]))
            grid = tuple(sorted(set(grid), reverse=True))
            for x in (line[place], line[place] + nudge):
                like = problem.x
                starts.append(replace(problem, x=like.new_tensor(x).reshape(like.shape), grid=grid))
    adams, fixed = registry.parse("solver", "adams"), registry.parse("policy", "fixed")
    ends = [r.x.numpy() for part in _chunks(starts, 64) for r in denoise_many(model.backbone, part, adams, fixed)]
    left = [math.sqrt(float(((a - b) ** 2).mean())) / PROBE_RMS for a, b in zip(ends[::2], ends[1::2], strict=True)]
    return np.array(left).reshape(len(problems), len(marks))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _decibels(a: Any, b: Any) -> float:
    return -10.0 * math.log10(max(float(((a - b) ** 2).mean()), 1e-12))
