"""The picture of a calibration: its words cover nothing and end before the figure does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from skipstone.calibration.plot import draw_front
from skipstone.calibration.target import Target
from skipstone.policies.certified import Certified
from skipstone.policies.storage import read_policy

SAVED = Path(__file__).parents[1] / "fixtures" / "v0_1_0" / "certificate"


@pytest.mark.parametrize("chosen", [0, 9])
@pytest.mark.parametrize("setting", ["stride", "third_order(tol=0.0123) | guidance_gate(until=0.45)", "stride_" * 30])
@pytest.mark.parametrize("said", ["psnr >= 30 @ 90%", "ssim >= 0.9 @ mean"])
def test_words_are_inside_of_the_figure_and_outside_of_the_axes(chosen: int, setting: str, said: str) -> None:
    policy = read_policy(str(SAVED))
    assert isinstance(policy, Certified)
    one = policy.certificate.best
    points = tuple(
        dataclasses.replace(one, calls=5 + 4.5 * k, value=v, low=v - 0.1, high=v + 0.04, accepted=k >= chosen,
                            setting=setting)
        for k, v in enumerate(0.5 + 0.05 * k for k in range(10))
    )  # fmt: skip
    certificate = dataclasses.replace(
        policy.certificate, points=points, target=said, full_calls=50.0, model="an-organisation/" * 6
    )
    figure = draw_front(certificate, Target.parse(said))
    figure.canvas.draw()
    (axes,) = figure.axes
    (legend,) = figure.legends
    words = axes.title.get_window_extent() if axes.title.get_text() else axes._left_title.get_window_extent()
    for box in (words, legend.get_window_extent(), axes.xaxis.label.get_window_extent()):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not box.overlaps(axes.get_window_extent())
    assert not legend.get_window_extent().overlaps(axes.xaxis.label.get_window_extent())
    assert {"chosen", "target", "full run"} <= {text.get_text() for text in legend.get_texts()}
    assert not axes.texts
