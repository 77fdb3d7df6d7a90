"""bench, calibrate and tune on a real Ray of two workers, one killed in mid-run: the results are those without Ray."""

from __future__ import annotations

import functools
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skipstone.calibration.procedure import Calibration, CalibrationOptions
from skipstone.cli.options import ModelOptions
from skipstone.errors import PromptError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.ray_cluster import LOOPBACK
from skipstone.evaluation.ray_subject import RaySubject, on_ray
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import DrawJob, SampleRequest, Subject
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TimeGridSearch, TuningSettings
from skipstone_bench.benchmark import Benchmark, BenchSettings
from skipstone_bench.store import Store

os.environ |= {**LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ray = pytest.importorskip("ray", reason="Ray is not in this environment: make test-ray")
COLORS = ("red", "green", "blue", "yellow", "pink", "black")
PROMPTS = [f"a {color} apple on a white background" for color in COLORS]


@pytest.fixture(scope="module")
def subjects() -> Iterator[tuple[Subject, RaySubject]]:
    make = functools.partial(ModelOptions("pebble").subject)
    remote = on_ray(make, workers=2)
    assert isinstance(remote, RaySubject)
    yield make(), remote
    ray.shutdown()


@pytest.fixture
def killed(subjects: tuple[Subject, RaySubject]) -> Iterator[list[int]]:
    """Kills one worker with SIGKILL once it computes; its process is in the list then."""
    worker = subjects[1].workers[0]
    process = ray.get(worker.process.remote())
    gone: list[int] = []

    def kill() -> None:
        time.sleep(1)
        os.kill(process, signal.SIGKILL)
        gone.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    yield gone
    thread.join()
    assert ray.get(worker.process.remote()) != process  # Ray has started it again


def column(subject: Subject, spec: str) -> Column:
    return subject.resolve_column(parse_column(spec, *subject.default_sampler))


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(bool((x == y).all()) for x, y in zip(a, b, strict=True))


def test_a_batch_is_what_it_is_alone(subjects: tuple[Subject, RaySubject]) -> None:
    local, remote = subjects
    items = [SampleRequest(prompt, k) for k, prompt in enumerate(PROMPTS[:3])]
    drawn = column(local, "balanced @ unipc / trailing / 10")
    mine, theirs = local.draw(items, drawn)[0], remote.draw(items, drawn)[0]
    assert [one.calls for one in mine] == [one.calls for one in theirs]
    assert same(local.pictures(mine), remote.pictures(theirs))
    assert same([one.latent for one in mine], [one.latent for one in theirs])


def test_skipped_and_unannounced_batches(subjects: tuple[Subject, RaySubject]) -> None:
    local, remote = subjects
    drawn = column(local, "fixed @ ddim / trailing / 4")
    jobs = [DrawJob([SampleRequest(PROMPTS[0], seed)], drawn) for seed in range(8)]
    remote.prefetch(jobs)
    for job in (jobs[1], jobs[6], jobs[7], DrawJob([SampleRequest(PROMPTS[1], 9)], drawn)):
        generated = remote.draw(job.items, job.column)[0]
        assert same(remote.pictures(generated), local.pictures(local.draw(job.items, job.column)[0]))


def test_an_error_of_a_worker_is_ours(subjects: tuple[Subject, RaySubject]) -> None:
    local, remote = subjects
    drawn = column(local, "fixed @ ddim / trailing / 2")
    with pytest.raises(PromptError):
        local.draw([SampleRequest("", 0)], drawn)
    with pytest.raises(PromptError):
        remote.draw([SampleRequest("", 0)], drawn)


def test_benchmark(subjects: tuple[Subject, RaySubject], killed: list[int], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    options = {
        "prompts": str(tmp_path / "prompts.txt"), "limit": 3, "tuned": 1, "policies": ["balanced", "stride"],
        "peers": ["none"], "metrics": ["psnr", "judge"], "steps": 12, "solver": "ddim", "budgets": [6], "batch": 1,
        "timed": 0, "searched": 0, "converged": ["fixed @ dpmpp / trailing / 30", "fixed @ unipc / trailing / 20"],
    }  # fmt: skip
    stores = []
    for name, subject in zip(("ray", "alone"), reversed(subjects), strict=True):
        planned = Benchmark.from_settings(subject, BenchSettings.from_options(options))
        planned.run(tmp_path / name, False, "", {})
        stores.append(Store.load(tmp_path / name))
    assert killed
    assert {r.sample: r for r in stores[0].records}
    assert list(stores[0].records) == list(stores[1].records)
    pictures = [sorted(path.relative_to(store.folder) for path in store.folder.rglob("*.png")) for store in stores]
    assert pictures[0] == pictures[1]
    for path in pictures[0]:
        assert (stores[0].folder / path).read_bytes() == (stores[1].folder / path).read_bytes()


def test_calibration(subjects: tuple[Subject, RaySubject], killed: list[int], tmp_path: Path) -> None:
    certificates = []
    for name, subject in zip(("ray", "alone"), reversed(subjects), strict=True):
        settings = ["stride(tol=0.02)", "stride(tol=0.05)", "stride(tol=0.1)"]
        options = CalibrationOptions(steps=16, batch=2, source={"model": "pebble"})
        prompts = [Prompt(str(k), f"{text} with a {other} star") for k, text in enumerate(PROMPTS) for other in COLORS]
        planned = Calibration.of(subject, prompts, "psnr >= 20 @ 60%", 0.8, settings, options)
        certificates.append(replace(planned.run(tmp_path / name).certificate, date=""))
    assert killed
    assert certificates[0] == certificates[1]


def test_tuning(subjects: tuple[Subject, RaySubject], killed: list[int], tmp_path: Path) -> None:
    found = []
    for name, subject in zip(("ray", "alone"), reversed(subjects), strict=True):
        samples = [EvaluationSample(Prompt(str(k), text), k) for k, text in enumerate(PROMPTS[:4])]
        settings = TuningSettings((6,), 40, 0, 1, 0, True)
        search = TimeGridSearch(subject, settings, samples, (), RunCache.open(tmp_path / name, {"model": "pebble"}))
        found.append(search.run())
    assert killed
    assert found[0].rows == found[1].rows
    assert found[0].agreement == found[1].agreement
