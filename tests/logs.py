"""Logged trajectories made up of smooth curves, for tests that need a log but no network."""

from __future__ import annotations

import numpy as np

from skipstone import registry
from skipstone.numerics.schedule import Cosine
from skipstone.policies.agent.actions import BaseSchedule
from skipstone_train.agents.logged_backbone import RecordedTrajectories
from skipstone_train.agents.trajectory_log import TrajectoryLog

SCHEDULE = Cosine()
GRID = registry.parse("grid", "trailing").times(SCHEDULE, 50)
GUIDES = {
    5: BaseSchedule((1.0, 0.85, 0.6, 0.3, 0.08, 0.0)),
    8: BaseSchedule((1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.12, 0.03, 0.0)),
    12: BaseSchedule((1.0, 0.97, 0.93, 0.87, 0.78, 0.66, 0.52, 0.38, 0.25, 0.14, 0.06, 0.02, 0.0)),
}


def make_trajectories(samples: int = 12, dimensions: int = 8, seed: int = 0, bend: float = 1.0) -> RecordedTrajectories:
    """Curves of a few waves each, the later samples bent more."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(SCHEDULE.angle(GRID[0]), 0.0, 121)
    waves = rng.normal(size=(samples, 4, dimensions)) * bend * np.linspace(0.3, 1.5, samples)[:, None, None]
    phases = rng.uniform(0, 6, (samples, 4, dimensions))
    turns = angles[None, :, None, None] * np.arange(1, 5)[None, None, :, None]
    v = (waves[:, None] * np.sin(turns + phases[:, None])).sum(2)
    gains = np.exp(rng.normal(-1.0, 0.3, (samples, 5)))
    return RecordedTrajectories.from_latents(
        angles, rng.normal(size=(samples, dimensions)), v, gains, angles[[10, 40, 70, 95, 110]], 99
    )


def log(samples: int = 12, seed: int = 0) -> TrajectoryLog:
    """A log of them, two seeds a prompt."""
    rng = np.random.default_rng(seed)
    prompts = ("a cat", "a dog", "a cat above a bus", "a frog on a red background", "a bus", "a key left of a cat")
    names = tuple(prompts[i % len(prompts)] for i in range(samples))
    made = np.array([[36.0, 40.0, 43.0]] * samples) + 0.3 * rng.normal(size=(samples, 3))
    states = np.array([[len(name), name.count("a"), 1.0] for name in names], float)
    way = {"fine": 120}
    ends = np.zeros((samples, 2, 2))
    return TrajectoryLog(
        make_trajectories(samples, seed=seed), GRID, names, tuple(range(samples)), states, GUIDES, made, ends, 4.0,
        "adams(of='x0')", "pebble", way,
    )  # fmt: skip
