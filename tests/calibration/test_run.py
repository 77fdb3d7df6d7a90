"""Whole calibrations of a tiny pipeline: what is promised is what was measured, and all that is wrong is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ASKED, OPTIONS, PROMPTS, SETTINGS

import skipstone
from skipstone.calibration.planning import fewest
from skipstone.calibration.risk import binomial_p
from skipstone.calibration.target import Target
from skipstone.errors import GuestWarning, PromptError, SpecError, TargetMissedError, UnknownNameError
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.prompts import Prompt
from skipstone.policies.certified import Certified


def again(pipe: Any, cache: Path, prompts: Any = PROMPTS, **changes: Any) -> Certified:
    found: Certified = skipstone.calibrate(pipe, prompts, **{"settings": SETTINGS, "cache": cache, **ASKED, **changes})
    return found


def test_the_certificate_says_what_was_measured(policy: Certified) -> None:
    made, target = policy.certificate, Target.parse(policy.certificate.target)
    tested = [p for p in made.points if p.p is not None]
    assert [p.calls for p in made.points] == sorted(p.calls for p in made.points)
    assert made.full_calls == 6
    assert made.prompts["search"] + made.prompts["test"] == len(PROMPTS)
    for p in tested:
        assert p.failures is not None
        assert p.n == made.prompts["test"] >= fewest(target, 0.7)
        assert p.p == pytest.approx(binomial_p(p.failures, p.n, target.risk))
        assert p.accepted == (p.p <= 0.3 + 1e-12)
        assert p.value == 1 - p.failures / p.n
        assert p.low <= p.value <= p.high
    assert any(p.setting.startswith("error_control(tol=0.0") and p.calls == 6 for p in made.points)
    assert policy.point == min((p for p in tested if p.accepted), key=lambda p: p.calls)


def test_calls_are_those_that_a_hook_counts(policy: Certified, pipe: Any) -> None:
    """The mean that is promised, and what one run of the same prompt and seed costs a user."""
    with skipstone.adapt(pipe, policy) as adapted:
        pipe("a red cat", num_inference_steps=6, output_type="latent")
    assert adapted.last[0].calls <= 6


def test_the_same_call_again_draws_nothing(policy: Certified, pipe: Any, cache: Path) -> None:
    found = again(pipe, cache)
    assert sum(found.certificate.spent.values()) == 0
    assert found.certificate.points == policy.certificate.points


def test_a_calibration_that_was_cut_off_goes_on(
    policy: Certified, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, left = PipelineSubject.draw, [4]

    def cut(self: PipelineSubject, items: Any, column: Any, watch: Any = None) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(self, items, column, watch)

    monkeypatch.setattr(PipelineSubject, "draw", cut)
    with pytest.raises(KeyboardInterrupt):
        again(pipe, tmp_path)
    kept = sum(len(path.read_text().splitlines()) for path in tmp_path.rglob("scores-*.jsonl"))
    assert kept > 0
    monkeypatch.setattr(PipelineSubject, "draw", draw)
    found = again(pipe, tmp_path)
    assert found.certificate.points == policy.certificate.points
    assert sum(found.certificate.spent.values()) > 0


def test_where_nothing_keeps_the_promise_the_nearest_is_named(pipe: Any, cache: Path) -> None:
    with pytest.raises(
        TargetMissedError,
        match=r"None of 1 settings .* The nearest is error_control\(tol=9.0.* of \d+ prompts.*offer safer",
    ):
        again(pipe, cache, settings=SETTINGS[2:], target="psnr >= 90 @ 60%")


def test_where_every_setting_has_another_solver_the_errors_of_the_full_run_are_named(pipe: Any, cache: Path) -> None:
    with pytest.raises(TargetMissedError, match=r"6 steps have errors of their own.*--steps 12;.*-p 'error_control"):
        again(pipe, cache, settings=["fixed @ ddim / own / 3"], target="psnr >= 90 @ 60%")


def test_a_function_of_the_user_and_a_mean(pipe: Any, cache: Path) -> None:
    def close(picture: Any, reference: Any) -> float:
        return float(1 - abs(picture - reference).mean())

    found = again(pipe, cache, target="close >= 0.5 @ mean within 0..1", options=replace(OPTIONS, metric=close))
    assert found.certificate.target == "close >= 0.5 @ mean within 0..1"
    assert found.point.failures is None
    assert found.point.low >= 0.5


def test_a_mean_without_a_confidence_is_conformal(pipe: Any, cache: Path) -> None:
    found = again(pipe, cache, target="ssim >= 0.2 @ mean", confidence=None)
    assert found.certificate.confidence is None
    assert found.point.p is None
    assert "Conformal" in found.certificate.method
    with pytest.raises(SpecError, match="promised with a confidence"):
        again(pipe, cache, confidence=None)


def test_a_function_that_gives_nan_fails_every_prompt(pipe: Any, cache: Path) -> None:
    def nothing(picture: Any, reference: Any) -> float:
        return float("nan")

    with pytest.raises(TargetMissedError, match="0 of 8 prompts meet it"):
        again(pipe, cache, target="nothing >= 0 @ 60%", settings=SETTINGS[:1], options=replace(OPTIONS, metric=nothing))


def test_groups_are_each_promised(pipe: Any, cache: Path) -> None:
    prompts = [Prompt(text, text, text.split()[1][0]) for text in PROMPTS]
    by_category = replace(OPTIONS, groups="category")
    found = again(pipe, cache, prompts, settings=SETTINGS[:1], target="psnr >= 20 @ 40%", options=by_category)
    assert set(found.point.groups) == {"r", "b", "g"}
    assert all(group["p"] <= 0.3 for group in found.point.groups.values())
    assert found.point.p == max(group["p"] for group in found.point.groups.values())
    assert b"each of these groups" in found.files["README.md"]


def test_doubles_are_counted_once_and_said(pipe: Any, cache: Path, policy: Certified) -> None:
    with pytest.warns(GuestWarning, match="2 of the prompts were there before"):
        found = again(pipe, cache, [*PROMPTS, *PROMPTS[:2]])
    assert found.certificate.prompts["count"] == len(PROMPTS)


def test_a_cache_of_another_configuration_is_ignored_and_that_is_said(
    policy: Certified, pipe: Any, cache: Path
) -> None:
    with pytest.warns(GuestWarning, match=r"(guidance|pipeline) is .* ignored"):
        found = again(pipe, cache, settings=SETTINGS[:1], options=replace(OPTIONS, guidance=2.0))
    assert found.certificate.spent["reference"] > 0


def test_a_reference_of_the_users_own(pipe: Any, cache: Path) -> None:
    options = replace(OPTIONS, reference="fixed @ own / 12")
    found = again(pipe, cache, settings=SETTINGS[:1], target="psnr >= 1 @ 60%", options=options)
    assert found.certificate.reference == "fixed @ own / 12"
    assert 0 < found.point.value <= 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"target": "sharpness >= 3 @ 90%"}, UnknownNameError, "no metric is called 'sharpness'"),
        ({"target": "ssim >= 1.5 @ 90%"}, SpecError, "expected a level in the range of ssim"),
        ({"target": "psnr >= 30 @ 120%"}, SpecError, "between 0 and 100 %"),
        ({"target": "psnr <= 30 @ 90%"}, SpecError, "psnr >= 30 @ 90%"),
        ({"target": "psnr >= 30 @ 99%"}, SpecError, "needs at least 120 prompts in the final test"),
        ({"confidence": 1.0}, SpecError, r"expected a number in \(0.5, 1\)"),
        ({"prompts": []}, PromptError, "got none"),
        ({"prompts": [*PROMPTS, " "]}, PromptError, "empty"),
        ({"settings": ["strid"]}, UnknownNameError, "Did you mean 'stride'"),
        ({"settings": ["fewer"]}, SpecError, "expected policies or fixed samplers"),
        ({"options": replace(OPTIONS, reference="nothing")}, UnknownNameError, "nothing"),
        (
            {"target": "print >= 3 @ 60%", "options": replace(OPTIONS, metric=print, better="bigger")},
            SpecError,
            "'higher' or 'lower'",
        ),
        ({"options": replace(OPTIONS, groups="colour")}, SpecError, "'category'"),
        ({"options": replace(OPTIONS, arguments={"heigth": 64})}, SpecError, "Did you mean 'height'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    pipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(PipelineSubject, "draw", lambda *args: pytest.fail("drawn"))
    with pytest.raises(error, match=said):
        again(pipe, tmp_path, **{"confidence": 0.7, **changes})


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(skipstone.SkipstoneError):
        skipstone.calibrate(3, PROMPTS, **ASKED)
    with pytest.raises(SpecError, match="take no arguments"):
        skipstone.calibrate("pebble", PROMPTS, **{**ASKED, "options": replace(OPTIONS, arguments={"height": 64})})


def test_keywords_of_0_1_0_work_with_a_warning(policy: Certified, pipe: Any, cache: Path) -> None:
    told: list[str] = []
    asked = {"target": ASKED["target"], "confidence": 0.7, "settings": SETTINGS, "cache": cache}
    with pytest.warns(FutureWarning) as warned:
        found = skipstone.calibrate(pipe, PROMPTS, **asked, steps=6, seed=0, tell=lambda *args: told.append(args[0]))
    assert found.certificate.points == policy.certificate.points
    assert {str(one.message).split(";")[0] for one in warned if one.category is FutureWarning} == {
        "skipstone.calibrate(tell=...) is now on_progress=...",
        "skipstone.calibrate(steps=...) is now options=CalibrationOptions(steps=...)",
        "skipstone.calibrate(seed=...) is now options=CalibrationOptions(seed=...)",
    }
