"""The table of sizes: differences are paired, the bar is said, pictures are judged at 64 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from research.sizes.measure_sizes import points, read_marks, resize, verdict, write_table
from skipstone_pebble.judge import JudgeReading


def test_points_are_a_mean_and_its_standard_error() -> None:
    assert points([1.0, 0.0, 1.0, 0.0]) == pytest.approx((50.0, 100 * (1 / 3) ** 0.5 / 2))


def test_the_verdict_says_where_the_standard_error_leaves_a_doubt() -> None:
    assert (verdict(-2.1, 0.1), verdict(-1.0, 0.1), verdict(-1.0, 1.0)) == (
        "no",
        "yes",
        "yes, but for its standard error",
    )


def test_the_table_has_paired_differences(tmp_path: Path) -> None:
    def marks(values: list[float]) -> dict[str, list[float]]:
        return {"score": values, "objects": values, "background": [1.0] * len(values)}

    noisy = [0.0, 1.0, 0.0, 1.0]
    rows = {
        "pebble": {"48": marks(noisy), "64": marks(noisy)},
        "48": {"48": marks(noisy)},
        "64": {"64": marks([1.0] * 4)},
        "both": {"48": marks(noisy), "64": marks([1.0, 0.9, 1.0, 0.9])},
    }
    write_table(rows, "command", tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| 48 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | yes |" in table  # of noisy marks, because they are paired
    assert "| 64 | -5.0 ± 2.9 | -5.0 ± 2.9 | +0.0 ± 0.0 | no |" in table


def test_small_pictures_are_judged_at_64_pixels() -> None:
    shapes: list[tuple[int, ...]] = []

    class Reader:
        def read(self, pictures: np.ndarray) -> list[JudgeReading]:
            shapes.append(pictures.shape)
            return [JudgeReading(("cat", "bus"), ("left", "right"), "red", "normal", 1.0)]

    found = read_marks(Reader(), np.zeros((1, 48, 48, 3), np.uint8), ["a cat left of a dog on a red background"])  # type: ignore[arg-type]
    assert shapes == [(1, 64, 64, 3)]
    assert found == {"score": [0.5], "objects": [0.5], "background": [1.0]}
    flat = np.full((2, 48, 48, 3), 77, np.uint8)
    assert (resize(flat, 64) == 77).all()
