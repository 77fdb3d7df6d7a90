"""A queue of pictures in simulated time, ordered as the server orders them: mean waits and deadlines."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

import pytest

from skipstone.serving.order import Rank, Turn, in_order

TIERS = ((0.4, 10), (0.4, 20), (0.2, 50))  # share of arrivals, calls
MEAN = sum(share * calls for share, calls in TIERS)
BASE, EACH, ROOM = 6.0, 6.0, 16  # milliseconds of a call: for itself, and for each of at most so many samples
ALONE = BASE + EACH
CAPACITY = ROOM / (BASE + EACH * ROOM)  # calls of samples in a millisecond


@dataclass
class Job:
    """A picture.

    Args:
        start: When it came, in milliseconds.
        calls: That it needs.
        deadline: When it must be ready.
    """

    start: float
    calls: int
    deadline: float = math.inf
    left: int = 0
    since: int = 0
    end: float = math.inf


def arrivals(load: float, count: int, seed: int, slack: float = math.inf) -> list[Job]:
    """Poisson arrivals of the tiers; deadlines are `slack` times what a picture takes alone."""
    rng, now, jobs = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(load * CAPACITY / MEAN)
        [calls] = rng.choices([calls for _, calls in TIERS], [share for share, _ in TIERS])
        jobs.append(Job(now, calls, now + slack * calls * ALONE, calls))
    return jobs


def run(jobs: list[Job], patience: int = 8, shortest_first: bool = True, by_deadline: bool = True) -> None:
    """Serve the jobs, in the order of `in_order`."""
    now, forwards, coming = 0.0, 0, 0
    here: dict[int, Job] = {}
    while here or coming < len(jobs):
        if not here:
            now = max(now, jobs[coming].start)
        while coming < len(jobs) and jobs[coming].start <= now:
            here[coming] = jobs[coming]
            here[coming].since = forwards
            coming += 1
        turns = {
            n: Turn(Rank(1, j.deadline if by_deadline else math.inf, n), j.since, j.left if shortest_first else 0.0)
            for n, j in here.items()
        }
        chosen = in_order(turns, forwards, patience)[:ROOM]
        now += BASE + EACH * len(chosen)
        forwards += 1
        for n in chosen:
            here[n].left -= 1
            here[n].since = forwards
            if here[n].left == 0:
                here.pop(n).end = now
        for n in [n for n, j in here.items() if j.deadline < now]:  # ended with 504
            del here[n]


def waits(jobs: list[Job], calls: int = 0) -> list[float]:
    return [job.end - job.start for job in jobs if not calls or job.calls == calls]


@pytest.mark.parametrize("load", [0.8, 0.95])
@pytest.mark.parametrize("seed", [1, 2])
def test_fewest_calls_left_first_makes_the_mean_wait_shorter(load: float, seed: int) -> None:
    first_come, shortest = arrivals(load, 1500, seed), arrivals(load, 1500, seed)
    run(first_come, shortest_first=False)
    run(shortest)
    assert statistics.mean(waits(shortest)) < statistics.mean(waits(first_come))
    fast = [statistics.quantiles(waits(jobs, TIERS[0][1]), n=20)[-1] for jobs in (shortest, first_come)]
    assert fast[0] < fast[1]
    assert all(math.isfinite(wait) for wait in waits(shortest))


def met(jobs: list[Job]) -> float:
    """Share of deadlines that are met."""
    return statistics.mean(job.end <= job.deadline for job in jobs)


def test_deadlines_at_80_percent_of_saturation() -> None:
    """A call for 16 takes 8.5 times as long as one for a sample alone: deadlines of 10 times that are met."""
    jobs = arrivals(0.8, 3000, 3, slack=10.0)
    run(jobs)
    assert met(jobs) >= 0.99


def test_earliest_deadline_first_meets_more_of_them_near_saturation() -> None:
    dated, undated = arrivals(0.97, 3000, 3, slack=12.0), arrivals(0.97, 3000, 3, slack=12.0)
    run(dated, patience=10_000)
    run(undated, patience=10_000, shortest_first=False, by_deadline=False)
    assert met(dated) > met(undated) + 0.01
