"""Slopes found for a model: what leads is found, what does not is not written, and equal calls are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from exact import ExactSubject, eval_samples

import skipstone
from skipstone import registry
from skipstone.evaluation.columns import parse_column
from skipstone.policies.adaptive_grid import AdaptiveGrid
from skipstone.testing.backbones.mixture import Mixture
from skipstone.tuning import slopes, slopes_report
from skipstone.tuning.cached_runs import RunScore
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TuningSettings
from skipstone.tuning.slopes import DEFAULT, LEAD, PAIRS, Lead, SlopeResult, Slopes, SlopeSearch, leads, slope_policy

HARD = Mixture(means=(-0.9, 0.9), stds=(0.1, 0.1), weights=(0.5, 0.5))


def runs(psnr: float, calls: float, samples: int = 3) -> list[RunScore]:
    return [RunScore(calls, 10 ** (-(psnr + k) / 10)) for k in range(samples)]


def search(folder: Path, subject: ExactSubject, **more: Any) -> SlopeSearch:
    settings = TuningSettings(**{"calls": (6, 8), "fine": 64, **more})
    return SlopeSearch(subject, settings, eval_samples(4), eval_samples(6, 100), RunCache.open(folder, {}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[SlopeSearch, SlopeResult]:
    made = search(tmp_path_factory.mktemp("slopes"), ExactSubject(HARD, steps=24))
    return made, made.run()


def test_a_lead_is_over_as_many_calls() -> None:
    """The default gains 12 dB by twice the calls: with half of that in the logarithm it gains 6."""
    default = [runs(30, 8), runs(42, 16)]
    assert leads([runs(36, 8 * 2**0.5)], default).mean == pytest.approx(0.0, abs=1e-6)
    assert leads([runs(40, 8)], default).mean == pytest.approx(10.0)
    both = leads([runs(33, 8), runs(43, 16)], default)
    assert both == pytest.approx((2.0, 0.0), abs=1e-6)


def test_the_error_of_a_lead_is_that_of_its_mean() -> None:
    default = [[RunScore(8, 1e-3)] * 4, [RunScore(9, 1e-3)] * 4]
    one = [[RunScore(8, 10 ** (-(30 + d) / 10)) for d in (0.0, 2.0, 4.0, 6.0)]]
    lead = leads(one, default)
    assert lead.mean == pytest.approx(3.0)
    assert lead.error == pytest.approx(math.sqrt(20 / 3) / 2)
    assert leads([one[0][:1]], [d[:1] for d in default]).error == math.inf


@pytest.mark.parametrize(
    ("lead", "counts"),
    [
        (Lead(LEAD + 0.1, 0.2), True),
        (Lead(LEAD - 0.1, 0.1), False),
        (Lead(2.0, 2.1), False),
        (Lead(-3.0, 0.1), False),
        (Lead(9.0, math.inf), False),
    ],
)
def test_the_default_stays_where_it_is_as_good(lead: Lead, counts: bool) -> None:
    best = Slopes(0.6, 0.25)
    result = SlopeResult((10,), (10,), best, {}, lead, None, ())  # type: ignore[arg-type]  # references are not read
    assert result.slopes == (best if counts else DEFAULT)
    assert ("The default is as good" in result.words) is not counts
    assert registry.spell(result.policy(10)) == registry.spell(slope_policy(best if counts else DEFAULT, 10))


def test_all_pairs_are_settings_and_the_default_is_the_preset() -> None:
    for pair in PAIRS:
        policy = slope_policy(pair, 10)
        assert isinstance(policy, AdaptiveGrid)
        assert (policy.rise, policy.fall, policy.calls) == (*pair, 10)
    assert slope_policy(DEFAULT, 15) == registry.parse("policy", "balanced")


def test_what_is_found_is_the_best_of_all_pairs_that_ran(found: tuple[SlopeSearch, SlopeResult]) -> None:
    made, result = found
    assert set(result.tried) == {DEFAULT, *PAIRS}
    assert result.tried[result.best] == max(result.tried.values()) >= 0.0
    reference = made.reference()
    again = made._lead(result.best, (6, 8), made.eval_samples, reference)
    assert again.mean == pytest.approx(result.tried[result.best])
    assert {row.calls for row in result.rows} == {6, 8}
    assert all(len(row.scores) == 6 for row in result.rows)


def test_what_was_drawn_is_not_drawn_again(found: tuple[SlopeSearch, SlopeResult], tmp_path: Path) -> None:
    subject = ExactSubject(HARD, steps=24)
    first = search(tmp_path, subject).run()
    drawn = subject.drawn
    assert search(tmp_path, subject).run().words == first.words == found[1].words
    assert subject.drawn == drawn + 1  # where runs begin


def test_results_are_policies_that_run(found: tuple[SlopeSearch, SlopeResult], tmp_path: Path) -> None:
    made, result = found
    written = slopes_report.write_report(result, tmp_path, {"model": "exact"})
    assert written == slopes_report.report_files(tmp_path, (6, 8))
    assert all(file.is_file() for file in written)
    folder = slopes_report.policy_folder(tmp_path, 6)
    assert skipstone.load_policy(folder) == result.policy(6)
    column = made.subject.resolve_column(parse_column(str(folder), None, None, 24))
    generated, _ = made.subject.draw([one.request for one in made.check], column)
    row = next(row for row in result.rows if row.calls == 6 and row.spec == registry.spell(result.policy(6)))
    assert [one.calls for one in generated] == [one.calls for one in row.scores]
    said = json.loads((tmp_path / slopes_report.RESULTS).read_text())
    assert said["verdict"] == result.words
    assert len(said["tried"]) == len(PAIRS) + 1


def test_the_default_stays_where_references_cannot_tell(
    found: tuple[SlopeSearch, SlopeResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leads are measured with the numbers of calls that are far enough from the references, by `MARGIN` dB."""
    made, result = found
    assert result.measured == (6, 8)
    medians = {row.calls: row.psnr_statistics["median"] for row in result.rows if row.label == "default"}
    monkeypatch.setattr(slopes, "MARGIN", result.agreement.median - max(medians.values()) + 0.1)
    assert made.run().measured == (min(medians, key=lambda calls: medians[calls]),)
    monkeypatch.setattr(slopes, "MARGIN", 1000.0)
    stays = made.run()
    assert (stays.measured, stays.slopes, stays.tried) == ((), DEFAULT, {DEFAULT: 0.0})
    assert stays.words.startswith("The default stays: with 6, 8 calls it is less than 1000 dB farther")
    assert [row.calls for row in stays.rows] == [6, 8]
