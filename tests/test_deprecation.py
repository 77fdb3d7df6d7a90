"""Names of the last release keep working for one more, and say the new ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import skipstone
from skipstone import deprecation, errors
from skipstone.engine.contracts import Run
from skipstone.numerics.tables import Table


@dataclass(frozen=True)
class Options:
    seed: int = 0
    batch: int = 8


@deprecation.old_keywords(renamed={"tell": "on_progress"}, moved={"options": (Options, ("seed", "batch"))})
def draw(prompt: str, on_progress: str = "", options: Options | None = None) -> tuple[str, str, Options]:
    """Draw."""
    return prompt, on_progress, options or Options()


def test_new_keywords_are_passed_on_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw("a cat", on_progress="bar", options=Options(3)) == ("a cat", "bar", Options(3))


def test_a_renamed_keyword_warns_where_it_was_written() -> None:
    with pytest.warns(FutureWarning, match=r"skipstone\.draw\(tell=\.\.\.\) is now on_progress=\.\.\.;") as warned:
        assert draw("a cat", tell="bar") == ("a cat", "bar", Options())  # type: ignore[call-arg]
    assert warned[0].filename == __file__


def test_moved_keywords_amend_the_options_that_are_given() -> None:
    with pytest.warns(FutureWarning, match=r"is now options=Options\(seed=\.\.\.\)"):
        assert draw("a cat", seed=5, options=Options(batch=2))[2] == Options(5, 2)  # type: ignore[call-arg]


def test_an_old_and_a_new_name_together_are_refused() -> None:
    with pytest.raises(TypeError, match="both 'on_progress' and its old name 'tell'"):
        draw("a cat", tell="a", on_progress="b")  # type: ignore[call-arg]


def test_what_was_never_a_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="sead"):
        draw("a cat", sead=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(("old", "new"), [("UnknownName", "UnknownNameError"), ("TargetMissed", "TargetMissedError")])
def test_errors_have_their_old_names(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"skipstone.errors.{old} is now skipstone.errors.{new}") as warned:
        assert getattr(errors, old) is getattr(errors, new)
    assert warned[0].filename == __file__


def test_runs_have_their_old_attributes() -> None:
    run = Run(1.0, 0.0, (1.0, 0.5, 0.0), (-1.0, 0.0, 1.0))
    with pytest.warns(FutureWarning, match=r"skipstone\.Run\.left is now skipstone\.Run\.remaining_times;") as warned:
        assert run.left == (0.5, 0.0)  # type: ignore[attr-defined]
    assert warned[0].filename == __file__
    with pytest.warns(FutureWarning, match=r"Run\.is_in_tail"):
        assert run.ending(run.proposal(), 2)  # type: ignore[attr-defined]


def test_other_attributes_are_still_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'UnknownNam'"):
        errors.UnknownNam  # noqa: B018


def test_a_table_of_a_scheduler_has_its_old_name() -> None:
    scheduler = SimpleNamespace(alphas_cumprod=[0.9, 0.5, 0.1])
    with pytest.warns(FutureWarning, match=r"Table\.of is now Table\.from_scheduler") as warned:
        assert Table.of(scheduler) == Table.from_scheduler(scheduler)
    assert warned[0].filename == __file__


def test_classes_of_plug_ins_may_declare_old_names() -> None:
    with pytest.warns(FutureWarning, match="calibration_settings"):

        class Old(skipstone.Policy):
            ladder = ({"tol": 0.1},)

    assert Old.calibration_settings == ({"tol": 0.1},)
    with pytest.warns(FutureWarning, match="convergence_order"):

        class OldSolver(skipstone.Solver):
            @property
            def convergence(self) -> int:
                return 3

    assert OldSolver().convergence_order == 3
