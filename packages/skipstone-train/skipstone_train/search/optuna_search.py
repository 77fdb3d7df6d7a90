"""Samplers of Optuna: TPE, and NSGA-II for quality against calls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from skipstone.tuning.evaluator import Evaluator, Trial
from skipstone.tuning.space import POLICY, Dimension, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Objectives: TypeAlias = Callable[[Trial], Sequence[float]]
    Suggest: TypeAlias = Callable[[Space, Any], dict[str, int]]

STARTUP = 8  # candidates that TPE draws at random before it models them
POPULATION = 10  # of a generation of NSGA-II


def tpe(evaluator: Evaluator, seed: int) -> None:
    """Optuna's tree-structured Parzen estimator, on the quality less a penalty for calls beyond those asked for.

    Candidates that were stopped early count with what their difference to the best suggests. Optuna's own pruners are
    not used: NSGA-II cannot have one, and all searches are to be stopped by the same rule.

    References: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Akiba et al. 2019, arXiv 1907.10902.
    """
    import optuna

    with _quiet(optuna):
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        _run(study, evaluator, lambda trial: [evaluator.objective(trial)], _suggest_active)


def nsga2(evaluator: Evaluator, seed: int) -> None:
    """Optuna's NSGA-II: more quality and fewer calls, a candidate that makes too many breaking a constraint.

    Memory is no third objective: candidates of one model and one number of rows take the same, but for a few latents.

    References: Deb et al. 2002, A Fast and Elitist Multiobjective Genetic Algorithm.
    """
    import optuna

    def objectives(trial: Trial) -> Sequence[float]:
        return [trial.quality, trial.calls or float(evaluator.calls)]

    def constraints(trial: Any) -> Sequence[float]:
        return [float(trial.user_attrs.get("over", 1.0))]

    with _quiet(optuna):
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION, constraints_func=constraints)
        study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        _run(study, evaluator, objectives, _suggest_all)


def _run(study: Any, evaluator: Evaluator, objectives: Objectives, suggest: Suggest) -> None:
    """Ask and tell until the evaluator ends it; the start that every search has is the first candidate told."""
    space = evaluator.space
    for known in evaluator.trials:
        study.enqueue_trial({one.name: 0 for one in space.dimensions} | space.point(known.values))
        told = study.ask()
        suggest(space, told)
        _tell(study, told, known, evaluator, objectives)
    while True:
        asked = study.ask()
        trial = evaluator.ask(suggest(space, asked))
        _tell(study, asked, trial, evaluator, objectives)


def _tell(study: Any, asked: Any, trial: Trial, evaluator: Evaluator, objectives: Objectives) -> None:
    asked.set_user_attr("over", trial.calls - evaluator.calls if trial.scores else float(evaluator.calls))
    study.tell(asked, list(objectives(trial)))


def _suggest_all(space: Space, trial: Any) -> dict[str, int]:
    """The point that a trial suggests, dimensions that do not count chosen too.

    NSGA-II crosses only what all trials have, and draws the rest at random.
    """
    return space.restricted({one.name: _place(one, trial) for one in space.dimensions})


def _suggest_active(space: Space, trial: Any) -> dict[str, int]:
    """The point that a trial suggests, of the dimensions that count with its policy: TPE models these by groups."""
    first = space.dimensions[0]
    point = {POLICY: _place(first, trial)}
    return point | {one.name: _place(one, trial) for one in space.active(point[POLICY]) if one.name != POLICY}


def _place(dimension: Dimension, trial: Any) -> int:
    """The place in the list of values: numbers as numbers, names as names."""
    count = len(dimension.values)
    if dimension.ordered:
        return int(trial.suggest_int(dimension.name, 0, count - 1))
    return int(trial.suggest_categorical(dimension.name, list(range(count))))


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's lines for each trial, and its notices about features that may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
