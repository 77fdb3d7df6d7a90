"""Models on MLX in the server: pictures are those of the pipeline, MLX stays in one thread, promises are its own."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import numpy as np
from pebble_folders import copy_pebble

import skipstone
import skipstone_pebble
from skipstone import cli
from skipstone.cli import serve as command
from skipstone.cli.serve_options import AddressOptions, NetworkOptions, RayOptions
from skipstone.engine.requests import Estimate, Query
from skipstone.errors import BackboneError, GuestWarning, ModelError, SpecError
from skipstone.integrations.mlx.backbone import MlxBackbone
from skipstone.integrations.mlx.pipeline import MlxPipeline
from skipstone.policies.certified import Certified
from skipstone.policies.storage import read_policy
from skipstone.serving import Engine
from skipstone.serving.forward import predict_apart
from skipstone.serving.loading import ModelLoader, RunOn
from skipstone.serving.mlx_models import HostBackbone, MlxModel, load_mlx_subject
from skipstone.serving.models import ServedModel
from skipstone.serving.refusals import RequestRefused

PROMPTS = ("a red apple on a blue background", "a cat above a bus")
STEPS = 3


@dataclass(frozen=True)
class Served:
    """A folder with certificates of both backends, its model on MLX as served, and what was said."""

    folder: Path
    pipe: MlxPipeline
    loader: ModelLoader
    models: dict[str, ServedModel]
    said: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = copy_pebble(tmp_path_factory.mktemp("mlx") / "pebble")
    shipped = skipstone_pebble.path() / "certificates"
    shutil.copytree(shipped / "low", folder / "certificates" / "of_torch")
    pipe = skipstone.mlx.load(folder)
    policy = read_policy(shipped / "medium", allow_sampler=True)
    assert isinstance(policy, Certified)
    mine = replace(policy.certificate, identity=pipe.identity())
    replace(policy, certificate=mine).save_pretrained(folder / "certificates" / "of_mlx")
    loader = ModelLoader({"pebble": str(folder)}, run_on=RunOn("mlx"))
    with pytest.warns(GuestWarning) as caught:
        models = loader.load_all()
    return Served(folder, pipe, loader, models, str(caught[0].message))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads that have called networks on MLX."""
    seen: set[str] = set()

    def watch(owner: type, name: str) -> None:
        call = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            seen.add(threading.current_thread().name)
            return call(*arguments)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((MlxPipeline, "encode"), (MlxPipeline, "decode"), (MlxBackbone, "predict")):
        watch(owner, name)
    return seen


def test_pictures_are_those_of_the_pipeline_and_mlx_stays_in_one_thread(served: Served, threads: set[str]) -> None:
    policies = ("fixed", "stride(tol=0.05)")
    with Engine(served.models, rows=8) as engine:
        futures = [
            engine.submit(prompt, seed=k, policy=f"{policy} @ unipc / trailing / {STEPS}")
            for k, (prompt, policy) in enumerate(zip(PROMPTS, policies, strict=True))
        ]
        pictures = [future.result() for future in futures]
    assert threads == {"skipstone-mlx_0"}
    for k, picture in enumerate(pictures):
        alone = served.pipe(PROMPTS[k], policy=policies[k], seed=k, steps=STEPS)
        assert [a.t for a in picture.run.past] == [a.t for a in alone.results[0].run.past]
        assert np.abs(picture.pixels.astype(int) - np.asarray(alone.images[0]).astype(int)).max() <= 1
        assert isinstance(picture.latent, np.ndarray)
        assert picture.latent.dtype == np.float32


def test_another_guidance_and_a_negative_prompt_are_those_of_the_pipeline(served: Served) -> None:
    with Engine(served.models, rows=8) as engine:
        asked = {"guidance": 4.0, "negative_prompt": "blue", "policy": f"fixed @ unipc / trailing / {STEPS}"}
        picture = engine.submit(PROMPTS[0], seed=3, **asked).result()
    wide = served.pipe.guided(4.0).with_negative_prompt("blue")
    expected = wide(PROMPTS[0], policy="fixed", seed=3, steps=STEPS).images[0]
    assert np.abs(picture.pixels.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_only_certificates_of_mlx_are_claimed_on_mlx(served: Served) -> None:
    assert "made on torch and pebble runs on MLX: the certificates of_torch. To make one: " in served.said
    assert f"skipstone calibrate --backend mlx --model {served.folder} " in served.said
    choices = served.models["pebble"].choices
    assert set(choices.certificates) == {"of_mlx"}
    assert choices.choose("", "of_mlx").certificate == "of_mlx"
    with pytest.raises(RequestRefused, match="of_torch"):
        choices.choose("", "of_torch")


def test_only_certificates_of_torch_are_claimed_on_torch(served: Served) -> None:
    with pytest.warns(GuestWarning, match="made on MLX and .* runs on torch: the certificates of_mlx.* calibrate --m"):
        choices = ModelLoader({"pebble": str(served.folder)}).load("pebble").choices
    assert set(choices.certificates) == {"of_torch"}


def test_a_reload_keeps_the_weights_of_the_same_files(served: Served) -> None:
    with pytest.warns(GuestWarning):
        again = served.loader.load_all(served.models)["pebble"]
    assert again.model is served.models["pebble"].model
    assert again.choices.subject.embedded is again.model


@pytest.mark.parametrize(
    ("policy", "said"),
    [("student(path='pebble-consistency-2')", "students run on torch alone"), ("refine | balanced", "--backend torch")],
)
def test_a_policy_that_needs_torch_is_refused(served: Served, policy: str, said: str) -> None:
    with pytest.raises((ModelError, SpecError), match=said):
        replace(served.loader, policy=policy).load("pebble", served.models["pebble"])
    with pytest.raises((RequestRefused, SpecError)):
        served.models["pebble"].choices.choose(policy, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "mlx", "--student", "pebble-consistency-2"), "students run on torch alone"),
        (("--backend", "mlx", "--threads", "1"), "--threads is of torch"),
        (("--backend", "mlx", "--model", "pebble", "--model", "pebble-dit", "--memory-limit", "8GB"), "serve one"),
        (("--backend", "mlx", "--model", "runwayml/stable-diffusion-v1-5"), "is no model of a package"),
        (("--dtype", "float16"), "--dtype is for MLX"),
        (("--bits", "4"), "--bits is for MLX"),
        (("--backend", "mx"), "mlx"),
    ],
)
def test_options_that_do_not_go_together_are_said(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["skipstone", "serve", "--port", "0", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_ray_is_refused() -> None:
    with pytest.raises(SpecError, match="--ray: its engines run on torch"):
        RayOptions(ray=True).check(AddressOptions(), NetworkOptions(backend="mlx"))


def test_options_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[ModelLoader] = []
    monkeypatch.setattr(command, "_serve", lambda loader, *more: found.append(loader))
    words = "--backend mlx --dtype float16 --bits 8 --memory-limit 1GB --port 0"
    monkeypatch.setattr(sys, "argv", ["skipstone", "serve", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert [loader.run_on for loader in found] == [RunOn("mlx", "float16", 8, 10**9)]


def test_a_limit_that_needs_parts_one_after_another_is_refused(served: Served) -> None:
    before = mx.get_memory_limit()
    need = served.pipe.limited(10**10).plan
    assert need is not None
    try:
        with pytest.raises(ModelError, match="a server needs all of them at once"):
            load_mlx_subject(str(served.folder), "auto", None, need.needed - 1)
        model = served.models["pebble"].model
        assert isinstance(model, MlxModel)
        subject = load_mlx_subject(str(served.folder), "auto", None, 10**10, model)
        assert subject.embedded is model
    finally:
        mx.set_memory_limit(before)


@dataclass(frozen=True, eq=False)
class Failing:
    """A backbone that overflows on every sample at t > 0.5, or has no memory for more than one."""

    error: str = ""
    branches: int = 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        if self.error and len(queries) > 1:
            raise RuntimeError(self.error)
        outputs = [query.x * (float("inf") if query.t > 0.5 else 1.0) for query in queries]
        return [Estimate(output, 1.0, output, "eps") for output in outputs]


QUERIES = [Query(np.ones((2, 2, 2), np.float32), t) for t in (0.3, 0.9)]


def test_an_overflow_in_half_precision_names_the_step_and_ends_one_sample() -> None:
    backbone: Any = HostBackbone(Failing(), "float16, 4 bits")  # type: ignore[arg-type]
    (good, bad), short = predict_apart(backbone, QUERIES)
    assert isinstance(good, Estimate)
    assert not short
    assert isinstance(bad, BackboneError)
    assert "t=0.9" in str(bad)
    assert "bfloat16" in str(bad)
    (_, bad), _ = predict_apart(HostBackbone(Failing(), "float32"), QUERIES)  # type: ignore[arg-type]
    assert isinstance(bad, Estimate)


@pytest.mark.parametrize(
    "words",
    [
        "[malloc] Unable to allocate 99 bytes.",
        "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed buffer size of 9.",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError)",
    ],
)
def test_memory_of_mlx_that_runs_out_halves_the_call(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: freed.append(True))
    answers, short = predict_apart(HostBackbone(Failing(words), "float32"), QUERIES)  # type: ignore[arg-type]
    assert short
    assert freed == [True]
    assert all(isinstance(answer, Estimate) for answer in answers)
