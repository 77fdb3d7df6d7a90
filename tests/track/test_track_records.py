"""Folders read as records, and two of them compared: planted differences are found, chance is not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from track.folders import AGENT, CERTIFICATE, PEBBLE, STUDENT, bench_folder

from skipstone.errors import OutputError, SpecError
from skipstone.policies.seen_prompts import SEEN_FILE, write_seen
from skipstone_track.compare import compare_samples, settings_that_differ
from skipstone_track.manifest import differences, manifest
from skipstone_track.readers import read_folder
from skipstone_track.tracker import _key


def test_every_kind_of_folder_is_read() -> None:
    kinds = {read_folder(folder).kind for folder in (AGENT, CERTIFICATE, STUDENT, PEBBLE / "weights")}
    assert kinds == {"train", "calibrate", "distill", "model"}
    policy = read_folder(CERTIFICATE)
    assert policy.params["target"] == "psnr >= 30 @ 90%"
    assert policy.metrics["calls"] < 50
    assert policy.prompts[0].context == "calibration"
    assert len(policy.prompts[0].digest) == 64
    agent = read_folder(AGENT)
    assert [step for step, _ in agent.series["score"]] == sorted(step for step, _ in agent.series["score"])
    assert agent.metrics["over_random.mean"] > 0


def test_a_student_names_the_version_of_the_prompts_that_it_has_seen(tmp_path: Path) -> None:
    folder = shutil.copytree(STUDENT, tmp_path / "student")
    assert not read_folder(folder).prompts
    digests = []
    for text in ("a cat", "a dog"):
        (folder / SEEN_FILE).write_bytes(write_seen([text]))
        [learnt] = read_folder(folder).prompts
        assert learnt.context == "training"
        digests.append(learnt.digest)
    assert len(set(digests)) == 2


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = bench_folder(tmp_path, {"row": [30.0, float("inf"), float("nan")]})
    assert read_folder(folder).children[0].metrics["psnr_full.mean"] == 30.0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("other.json", "{}", "expected a pipeline, or the --out of"),
        ("bench.json", "[1]", "bench.json"),
        ("bench.json", "{", "bench.json"),
        ("policy.json", '{"policy": "stride"}', "has no certificate"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=said):
        read_folder(tmp_path)


def test_a_planted_difference_is_real_and_chance_is_not(tmp_path: Path) -> None:
    chance = random.Random(0)
    base = [30 + chance.gauss(0, 5) for _ in range(40)]
    noisy = [value + chance.gauss(0, 1) for value in base]
    better = [value + 1.5 + chance.gauss(0, 1) for value in base]
    a = read_folder(bench_folder(tmp_path / "a", {"same": base, "better": base}))
    b = read_folder(bench_folder(tmp_path / "b", {"same": noisy, "better": better}))
    found = {(one.row, one.metric): one for one in compare_samples(a, b)}
    assert found["better @ unipc", "psnr_full"].is_real
    assert found["better @ unipc", "psnr_full"].found.median.value < 0  # A minus B
    assert not found["same @ unipc", "psnr_full"].is_real
    assert found["same @ unipc", "calls"].p == 1.0  # the same calls: no difference at all
    assert all(one.p >= one.found.p for one in found.values())  # corrected for asking four times


def test_rows_of_different_names_are_compared_when_named(tmp_path: Path) -> None:
    a = read_folder(bench_folder(tmp_path / "a", {"x": [1.0, 2.0]}))
    b = read_folder(bench_folder(tmp_path / "b", {"y": [2.0, 3.0]}))
    with pytest.raises(SpecError, match="no row in common: name one of each with --row"):
        compare_samples(a, b)
    found = compare_samples(a, b, "x", "y @ unipc")
    assert {one.metric: one.found.median.value for one in found}["psnr_full"] == -1.0
    with pytest.raises(SpecError, match="A has no row 'z'"):
        compare_samples(a, b, "z", "y")
    with pytest.raises(SpecError, match="stores no samples"):
        compare_samples(a, read_folder(STUDENT))


def test_what_differs_names_settings_versions_and_prompts(tmp_path: Path) -> None:
    a = read_folder(bench_folder(tmp_path / "a", {"x": [1.0]}))
    b = read_folder(
        bench_folder(tmp_path / "b", {"x": [1.0]}, guidance=7.5, fingerprint={"prompts": "98765"}, date="later")
    )
    found = settings_that_differ(a, b)
    assert ("guidance", "3.0", "7.5") in found
    assert ("evaluation prompts", "some (0123456789)", "some (98765)") in found
    assert ("fingerprint.weights", "abc", "-") in found
    assert found[-1][0] == "date"  # always differs, so it comes last
    assert settings_that_differ(a, a) == []


def test_a_manifest_tells_what_changed(tmp_path: Path) -> None:
    for name in ("a", "b", "drawings/large", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = manifest(tmp_path)
    assert sorted(before) == ["a", "b"]
    (tmp_path / "a").write_text("other")
    (tmp_path / "b").unlink()
    (tmp_path / "c").write_text("c")
    assert differences(before, manifest(tmp_path)) == ["b is missing", "c was added", "a was changed"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="expected a folder with files"):
        manifest(tmp_path / "empty")


def test_names_are_those_that_mlflow_takes() -> None:
    assert _key("stride(tol=0.02) @ unipc") == "stride_tol_0.02_ _ unipc"
    assert _key("judge >= 0.9 @ 70%") == "judge __ 0.9 _ 70_"
