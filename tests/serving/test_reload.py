"""Reload of a server that draws: nothing is dropped, nothing is mixed, and a failure changes nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from analytic import AnalyticModel, served
from live import live
from pebble_folders import copy_pebble
from PIL import Image

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.errors import ModelError, SpecError
from skipstone.evaluation.pixels import to_uint8
from skipstone.serving import Engine, Picture, PictureRequest
from skipstone.serving.api.backend import LocalBackend, Partial
from skipstone.serving.fingerprint import dates_fingerprint, weights_fingerprint
from skipstone.serving.loading import ModelLoader
from skipstone.serving.models import ServedModel, Source
from skipstone.serving.refusals import ReloadFailed
from skipstone.serving.reload import Reloader

PROMPT, POLICY = "a red apple on a blue background", "fixed @ ddim / trailing / 5"
KEY = "0123456789abcdef-operator"


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    folder: Path

    def draw(self, seed: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": PROMPT, "seed": seed, "policy": POLICY, **more}
        answer = httpx.post(f"{self.address}/v1/images/generations", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        [item] = answer.json()["data"]
        return dict(item)

    def reload(self, key: str = KEY) -> httpx.Response:
        return httpx.post(f"{self.address}/admin/reload", headers={"Authorization": f"Bearer {key}"}, timeout=120)

    def model(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.address}/v1/models").json()["data"][0])

    def replace_folder(self, other: Path) -> None:
        """As an operator does: the old folder away, the new one in its place."""
        old = self.folder.with_name("old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(self.folder, old)
        shutil.copytree(other, self.folder)


@contextmanager
def started(folder: Path, *more: str) -> Iterator[Server]:
    keys = folder.with_name("admin.txt")
    keys.write_text(KEY)
    words = ["--model", f"m={folder}", "--port", "0", "--rows", "8", "--threads", "1", "--admin-keys", str(keys)]
    command = [sys.executable, "-m", "skipstone", "serve", *words, *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield Server(process, found[0], folder)
                break
        else:
            pytest.fail("the server did not start")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_pebble(tmp_path_factory.mktemp("other") / "pebble", 1.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(copy_pebble(tmp_path_factory.mktemp("served") / "pebble")) as found:
        yield found


def pixels(item: dict[str, Any]) -> Any:
    data = base64.b64decode(item["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def alone(folder: Path, seed: int) -> Any:
    """The picture that the model of a folder draws by itself."""
    from skipstone_pebble.model import Pebble

    model = Pebble.load(folder)
    problem = model.problem(PROMPT, seed, 5)
    found = denoise(model.backbone, problem, registry.parse("solver", "ddim"), registry.parse("policy", "fixed"))
    return to_uint8(model.decode([found.x])[0]).astype(int)


def test_a_reload_under_load_drops_nothing_and_mixes_nothing(server: Server, other: Path) -> None:
    """Who runs finishes on the old weights, who comes later gets the new ones, and nobody gets something between."""
    prints = weights_fingerprint(server.folder), weights_fingerprint(other)
    expected = {prints[0]: alone(server.folder, 7), prints[1]: alone(other, 7)}
    assert np.abs(expected[prints[0]] - expected[prints[1]]).max() > 8  # they can be told apart
    assert server.model()["fingerprint"] == prints[0]
    with ThreadPoolExecutor(6) as pool:
        first = [pool.submit(server.draw, 7) for _ in range(4)]
        server.replace_folder(other)
        assert server.model()["changed"]
        reloading = pool.submit(server.reload)
        meanwhile = []
        while not reloading.done():
            meanwhile.append(pool.submit(server.draw, 7))
            meanwhile[-1].result()
        after = [pool.submit(server.draw, 7) for _ in range(2)]
        answer = reloading.result()
        assert answer.status_code == 200, answer.text
        assert answer.json()["replaced"] == ["m"]
        items = [future.result() for future in (*first, *meanwhile, *after)]
    for item in items:
        assert np.abs(pixels(item) - expected[item["fingerprint"]]).max() <= 1
    assert {item["fingerprint"] for item in items[:4]} == {prints[0]}
    assert {item["fingerprint"] for item in items[-2:]} == {prints[1]}
    assert not server.model()["changed"]


def test_a_reload_that_fails_keeps_the_old_and_says_why(server: Server, other: Path) -> None:
    before, fingerprint = pixels(server.draw(3)), server.model()["fingerprint"]
    weights = server.folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    with weights.open("r+b") as stream:  # overwritten in place, as `cp` does
        stream.write(b"\0" * (len(whole) // 2))
    answer = server.reload()
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["code"] == "reload_failed"
    assert "Nothing has changed" in error["message"]
    assert "is damaged" in error["message"]
    assert server.model()["fingerprint"] == fingerprint
    assert (pixels(server.draw(3)) == before).all()
    shutil.rmtree(server.folder)
    assert server.reload().status_code == 409
    assert (pixels(server.draw(3)) == before).all()
    shutil.copytree(other, server.folder)
    assert server.reload().status_code == 200


def test_sighup_reloads_too(server: Server, tmp_path: Path) -> None:
    server.replace_folder(copy_pebble(tmp_path / "third", 0.97))
    wanted = weights_fingerprint(server.folder)
    server.process.send_signal(signal.SIGHUP)
    while server.model()["fingerprint"] != wanted:
        assert server.process.poll() is None
        time.sleep(0.05)
    assert server.draw(1)["fingerprint"] == wanted
    metrics = httpx.get(f"{server.address}/metrics").text
    assert 'skipstone_reloads_total{outcome="failed"} 2.0' in metrics
    assert 'skipstone_model_changed{model="m"} 0.0' in metrics


def test_only_the_operator_reloads(server: Server) -> None:
    assert server.reload("another-key-of-16-characters").status_code == 401
    assert httpx.post(f"{server.address}/admin/reload").status_code == 401
    assert httpx.get(f"{server.address}/admin/reload").status_code == 405
    with Engine({"analytic": served()}) as engine, live(engine) as address:
        answer = httpx.post(f"{address}/admin/reload", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 403
        assert "SIGHUP" in answer.json()["error"]["message"]


class Loader:
    """Gives what it was told to; in place of a `ModelLoader`."""

    def __init__(self, *models: Any) -> None:
        self.models = list(models)

    def load_all(self, known: Any = None) -> dict[str, ServedModel]:
        found = self.models.pop(0)
        if isinstance(found, Exception):
            raise found
        return {"analytic": found}


class Black(AnalyticModel):
    """Decodes to black."""

    def decode(self, latents: Any) -> list[Any]:
        return [np.zeros((4, 4, 3)) for _ in latents]


def black() -> ServedModel:
    one = served()
    return ServedModel("analytic", Black(backbone=one.model.backbone), one.choices, Source(fingerprint="black"))


def test_a_stream_is_decoded_by_the_model_that_it_began_with() -> None:
    async def run() -> list[Any]:
        with Engine({"analytic": served()}) as engine:
            items = await LocalBackend(engine).open_stream(PictureRequest("a"), 3)
            Reloader(engine, Loader(black())).reload()
            old = [item async for item in items]
            new = [item async for item in await LocalBackend(engine).open_stream(PictureRequest("a"), 3)]
            return [old, new]

    old, new = asyncio.run(run())
    assert [type(item) for item in old] == [Partial] * 3 + [Picture]
    assert all(item.pixels.any() for item in old)
    assert not any(item.pixels.any() for item in new)
    assert (old[-1].fingerprint, new[-1].fingerprint) == ("", "black")


@pytest.mark.parametrize("error", [ModelError("gone"), SpecError("wrong"), OSError("no disk"), MemoryError("none")])
def test_whatever_fails_changes_nothing(error: Exception) -> None:
    outcomes: list[bool] = []
    with Engine({"analytic": served()}) as engine:
        before = engine.models
        reloader = Reloader(engine, Loader(error, black()), on_reload=outcomes.append)
        with pytest.raises(ReloadFailed, match=f"Nothing has changed.*{error}"):
            reloader.reload()
        assert engine.models is before
        assert reloader.reload().replaced == ("analytic",)
    assert outcomes == [False, True]


def test_what_the_server_cannot_use_is_not_served() -> None:
    def check(models: Any) -> None:
        raise SpecError("--shed: no such certificate")

    with Engine({"analytic": served()}) as engine, pytest.raises(ReloadFailed, match="--shed"):
        Reloader(engine, Loader(black()), check).reload()


def test_two_reloads_at_once_are_one() -> None:
    going, release = threading.Event(), threading.Event()

    class Slow(Loader):
        def load_all(self, known: Any = None) -> dict[str, ServedModel]:
            going.set()
            assert release.wait(60)
            return super().load_all(known)

    with Engine({"analytic": served()}) as engine, ThreadPoolExecutor() as pool:
        reloader = Reloader(engine, Slow(black()))
        first = pool.submit(reloader.reload)
        assert going.wait(60)
        with pytest.raises(ReloadFailed, match="Another reload"):
            reloader.reload()
        release.set()
        assert first.result().models == {"analytic": "black"}


def test_a_folder_that_changes_while_it_is_read_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skipstone_pebble.package import Package

    folder, load = copy_pebble(tmp_path / "pebble"), Package.load

    def load_and_replace(self: Package, model: str, guidance: float | None = None) -> Any:
        found = load(self, model, guidance)
        (folder / "unet" / "config.json").write_text("{}")
        return found

    monkeypatch.setattr(Package, "load", load_and_replace)
    with pytest.raises(ModelError, match="changed while it was read"):
        ModelLoader({"m": str(folder)}).load_all()


def test_weights_that_are_the_same_are_kept_and_a_change_is_noticed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_pebble(tmp_path / "pebble")
    loader, noticed = ModelLoader({"m": str(folder)}), []
    with Engine(loader.load_all()) as engine:
        reloader = Reloader(engine, loader, on_change=lambda name, changed: noticed.append(changed))
        weights = engine.models["m"].model
        loader = replace(loader, policy="fast")
        assert Reloader(engine, loader).reload().replaced == ()
        assert engine.models["m"].model is weights
        assert engine.models["m"].choices.default.spec.startswith("adaptive_grid(calls=10)")
        os.utime(folder / "model_index.json", (1, 1))  # touched, not changed
        assert reloader.look() == []
        (folder / "model_index.json").write_text((folder / "model_index.json").read_text() + " ")
        assert reloader.look() == reloader.look() == ["m"]
        shutil.rmtree(folder)
        assert reloader.look() == ["m"]
    assert noticed == [False, True, True, True]
    assert sum("have changed" in record.message for record in caplog.records) == 2


def test_fingerprints_are_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = weights_fingerprint(tmp_path), dates_fingerprint(tmp_path)
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / "b").write_text("y")  # these are read apart
    assert (weights_fingerprint(tmp_path), dates_fingerprint(tmp_path)) == first
    os.rename(tmp_path / "a", tmp_path / "c")
    assert weights_fingerprint(tmp_path) != first[0]
