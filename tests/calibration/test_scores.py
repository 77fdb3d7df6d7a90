"""Scores: drawn once, kept line by line, and never taken from another configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipstone.calibration import cache as caches
from skipstone.calibration.cache import Cache, SampleScore
from skipstone.calibration.scores import CachedScores, PictureMeasure
from skipstone.engine.requests import Status
from skipstone.errors import MetricError, OutputError, SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample, SampleRequest
from skipstone.metrics import PSNR

FULL = parse_column("fixed @ ddim / trailing / 10", None, None, 10)
HALF = parse_column("interval(every=2) @ ddim / trailing / 10", None, None, 10)
SHOTS = [EvaluationSample(Prompt(f"p{i}", f"prompt {i}"), i) for i in range(5)]
CONFIGURATION = {"model": "toy", "weights": "a", "guidance": 3.0}


@dataclass
class Toy:
    """Draws gray pictures, brighter by a tenth where a policy skips; the third of them is spoilt."""

    drawn: list[tuple[str, int]] = field(default_factory=list)
    is_video: bool = False
    judge: Any = None

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: Any = None
    ) -> tuple[list[GeneratedSample], float]:
        self.drawn += [(column.spec, item.seed) for item in items]
        level = 0.6 if column == HALF else 0.5
        spoilt = [Status.nonfinite if column == HALF and item.seed == 2 else Status.done for item in items]
        calls = 5.0 if column == HALF else 10.0
        return [GeneratedSample(np.full((16, 16, 3), level), None, calls, 10.0, status) for status in spoilt], 0.0

    def pictures(self, made: Sequence[GeneratedSample]) -> list[Any]:
        return [m.x for m in made]


def scores(root: Path, subject: Toy, gauge: PictureMeasure | None = None, **changes: Any) -> tuple[CachedScores, str]:
    cache, said = Cache.open(root, {**CONFIGURATION, **changes})
    return CachedScores(subject, FULL, gauge or PictureMeasure("psnr", PSNR().measure), cache, 2), said  # type: ignore[arg-type]


def test_what_was_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    first, _ = scores(tmp_path, Toy())
    found = first.of(HALF, SHOTS)
    assert [one.calls for one in found] == [5.0] * 5
    assert found[0].value == pytest.approx(20.0)
    assert math.isnan(found[2].value)  # spoilt: a failure, and still counted
    assert first.spent == {"reference": 50.0, "search": 25.0, "test": 0.0}
    again = Toy()
    second, said = scores(tmp_path, again)
    assert str(second.of(HALF, SHOTS, "test")) == str(found)
    assert again.drawn == []
    assert said == ""
    assert second.spent == {"reference": 0.0, "search": 0.0, "test": 0.0}


def test_a_torn_line_is_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    first, _ = scores(tmp_path, Toy())
    first.of(HALF, SHOTS)
    path = next(tmp_path.rglob("scores-*.jsonl"))
    path.write_bytes(path.read_bytes()[:-7])
    again = Toy()
    second, _ = scores(tmp_path, again)
    assert [one is None for one in second.known(HALF, SHOTS)] == [False] * 4 + [True]
    second.of(HALF, SHOTS)
    assert again.drawn == [(HALF.spec, 4)]


def test_a_score_without_a_value_is_null_in_the_file(tmp_path: Path) -> None:
    first, _ = scores(tmp_path, Toy())
    first.of(HALF, SHOTS)
    lines = [json.loads(line) for line in next(tmp_path.rglob("scores-*.jsonl")).read_text().splitlines()]
    assert [line["value"] is None for line in lines] == [False, False, True, False, False]
    assert {line["setting"] for line in lines} == {HALF.spec}


def test_full_runs_of_another_configuration_are_ignored_and_that_is_said(tmp_path: Path) -> None:
    scores(tmp_path, Toy())[0].of(HALF, SHOTS)
    again = Toy()
    other, said = scores(tmp_path, again, guidance=5.0)
    assert "guidance is 3.0 in the cache and 5.0 here" in said
    assert "ignored" in said
    other.of(HALF, SHOTS)
    assert len(again.drawn) == 2 * len(SHOTS)
    assert (
        scores(tmp_path, Toy(), model="another", weights="b")[1] == ""
    )  # of a model never seen there is nothing to say


def test_identical_pictures_count_as_99_db(tmp_path: Path) -> None:
    found, _ = scores(tmp_path, Toy())
    assert {one.value for one in found.of(FULL, SHOTS)} == {99.0}


def test_values_of_a_function_are_not_kept_but_its_full_runs_are(tmp_path: Path) -> None:
    def brightness(picture: Any, reference: Any) -> float:
        return float(picture.mean() - reference.mean())

    gauge = PictureMeasure.of("brightness", Toy(), brightness)  # type: ignore[arg-type]
    first, _ = scores(tmp_path, Toy(), gauge)
    assert first.of(HALF, SHOTS)[0].value == pytest.approx(0.1)
    again = Toy()
    second, _ = scores(tmp_path, again, gauge)
    second.of(HALF, SHOTS)
    assert {spec for spec, _ in again.drawn} == {HALF.spec}


def test_a_metric_that_looks_at_the_picture_alone_needs_no_full_run(tmp_path: Path) -> None:
    toy = Toy()
    found, _ = scores(
        tmp_path, toy, PictureMeasure("brightness", lambda s: float(s.pixels.mean()), needs_no_reference=True)
    )
    assert found.missing(SHOTS) == []
    assert found.of(HALF, SHOTS)[0] == SampleScore(pytest.approx(0.6), 5.0)
    assert {spec for spec, _ in toy.drawn} == {HALF.spec}


@pytest.mark.parametrize(
    ("metric", "error", "said"),
    [("judge", MetricError, "no judge of its own"), ("cost", SpecError, "nothing of one picture")],
)
def test_a_metric_that_cannot_be_taken_says_why(metric: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        PictureMeasure.of(metric, Toy())  # type: ignore[arg-type]


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(caches.CACHE_VARIABLE, raising=False)
    assert caches.folder() == tmp_path / "xdg" / "skipstone"
    monkeypatch.setenv(caches.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert caches.folder() == tmp_path / "mine"
    assert caches.folder(tmp_path / "said") == tmp_path / "said"


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--cache"):
        Cache.open(tmp_path / "file", CONFIGURATION)


def test_the_batch_changes_no_score(tmp_path: Path) -> None:
    one, _ = scores(tmp_path / "a", Toy())
    other, _ = scores(tmp_path / "b", Toy())
    assert str(one.of(HALF, SHOTS)) == str(replace(other, batch=5).of(HALF, SHOTS))
