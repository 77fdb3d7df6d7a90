"""A real Ray with two engines: one is killed, all are reloaded and replaced, and no request is lost (make test-ray)."""

from __future__ import annotations

import base64
import copy
import io
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from serving.pebble_folders import copy_pebble

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.evaluation.pixels import to_uint8
from skipstone.evaluation.ray_cluster import LOOPBACK
from skipstone.serving.fingerprint import weights_fingerprint

PATIENT = dict.fromkeys(("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "60")
# A token, or Ray writes one into the user's home; more than the five seconds that Serve gives its proxy to start.
os.environ |= {**LOOPBACK, **PATIENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ray = pytest.importorskip("ray", reason="Ray is not in this environment: make test-ray")
DEPLOY = Path(__file__).parent.parent.parent / "examples" / "deploy" / "serve.yaml"
PROMPT, POLICY, STEPS = "a red apple on a blue background", "fixed @ ddim / trailing / 8", 8


@dataclass
class Cluster:
    """The application of the example, with two engines."""

    config: dict[str, Any]
    folder: Path
    address: str
    lost: list[str] = field(default_factory=list)

    def deploy(self) -> None:
        """What `serve deploy` asks of Ray; waits until it is done."""
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(copy.deepcopy(self.config)))
        deadline = time.monotonic() + 300
        while (status := serve.status().applications["skipstone"]).status != "RUNNING":
            assert status.status != "DEPLOY_FAILED", status.message
            assert time.monotonic() < deadline, status
            time.sleep(0.2)

    @property
    def args(self) -> dict[str, Any]:
        return self.config["applications"][0]["args"]  # type: ignore[no-any-return]

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/images/generations", json={"prompt": PROMPT, **body}, timeout=240)

    def draw(self, seed: int, **more: Any) -> dict[str, Any]:
        answer = self.post(seed=seed, policy=POLICY, model="m", **more)
        assert answer.status_code == 200, answer.text
        [item] = answer.json()["data"]
        return dict(item)

    def stream(self, seed: int) -> list[str]:
        body = {"prompt": PROMPT, "seed": seed, "policy": POLICY, "stream": True, "partial_images": 3, "model": "m"}
        with httpx.stream("POST", f"{self.address}/v1/images/generations", json=body, timeout=240) as answer:
            assert answer.status_code == 200
            return [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]

    def engines(self) -> dict[int, dict[str, Any]]:
        """Process -> what it says of itself; asks until two have answered."""
        from ray import serve

        handle = serve.get_deployment_handle("Engine", "skipstone")
        found: dict[int, dict[str, Any]] = {}
        for _ in range(400):
            said = handle.identify.remote().result()
            found[said["pid"]] = said
            if len(found) == 2:
                break
            time.sleep(0.05)
        return found

    def under_load(self, disturb: Any) -> list[dict[str, Any]]:
        """The pictures of clients that ask before, while and after something happens."""
        done = threading.Event()

        def ask(client: int) -> list[dict[str, Any]]:
            found = [self.draw(client)]
            while not done.is_set():
                found.append(self.draw(client))
            return [*found, self.draw(client)]

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, client) for client in range(4)]
            try:
                disturb()
            finally:
                done.set()
            return [item for client in asking for item in client.result()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from ray import serve

    from skipstone.evaluation.ray_cluster import start_ray

    folder = copy_pebble(tmp_path_factory.mktemp("ray") / "pebble")
    config = yaml.safe_load(DEPLOY.read_text())
    port = 18765
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= {
        "models": {"m": str(folder), "dit": "pebble-dit"},
        "models_each": 1,
        "max_replicas": 0,
        "rows": 8,
        "shed": "",
        "audit": 0,
    }
    start_ray(2)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        found = Cluster(config, folder, f"http://127.0.0.1:{port}")
        found.deploy()
        yield found
    finally:
        serve.shutdown()
        ray.shutdown()


def pixels(item: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB")).astype(int)


def alone(folder: Path, seed: int) -> Any:
    from skipstone_pebble.model import Pebble

    model = Pebble.load(folder)
    problem = model.problem(PROMPT, seed, STEPS)
    found = denoise(model.backbone, problem, registry.parse("solver", "ddim"), registry.parse("policy", "fixed"))
    return to_uint8(model.decode([found.x])[0]).astype(int)


def check(items: list[dict[str, Any]], *folders: Path) -> None:
    """Each picture is that of its seed, drawn by one of these models."""
    expected = {(weights_fingerprint(f), seed): alone(f, seed) for f in folders for seed in range(4)}
    assert len(items) >= 8
    for item in items:
        assert np.abs(pixels(item) - expected[item["fingerprint"], item["seed"]]).max() <= 1


def test_the_pictures_are_those_of_the_engine_alone(cluster: Cluster) -> None:
    assert len(cluster.engines()) == 2
    assert np.abs(pixels(cluster.draw(3)) - alone(cluster.folder, 3)).max() <= 1
    assert cluster.stream(3) == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    traced = cluster.draw(1, trace=True)
    assert traced["trace"]
    assert [m["id"] for m in httpx.get(f"{cluster.address}/v1/models", timeout=240).json()["data"]] == ["m", "dit"]
    assert "<title>Skipstone" in httpx.get(cluster.address).text


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"policy": "student(path='/etc/passwd')"}, 400, "No student"),
        ({"policy": "agent(path='x')"}, 400, "files"),
        ({"model": "../../etc"}, 404, "Known: m, dit"),
        ({"size": "1x1"}, 400, "size"),
        ({"prompt": "a" * 3000}, 400, "at most 2000"),
        ({"deadline_ms": 1, "policy": "fixed @ 200"}, 400, "within"),
        ({"stream": True, "quality": "ultra"}, 400, "Known qualities"),
    ],
)
def test_refusals_are_those_of_one_process(cluster: Cluster, body: dict[str, Any], status: int, said: str) -> None:
    answer = cluster.post(**body)
    late = 504 if "deadline_ms" in body else status  # of an engine that has not timed a call yet
    assert answer.status_code in (status, late), answer.text
    assert said in answer.json()["error"]["message"]


def test_without_keys_it_is_for_this_machine(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.address}/v1/models", headers={"Host": "evil.example"}, timeout=60).status_code == 400


def test_a_killed_engine_loses_no_request_that_was_accepted(cluster: Cluster) -> None:
    killed = []

    def kill() -> None:
        time.sleep(1.0)
        killed.append(next(iter(cluster.engines())))
        os.kill(killed[0], signal.SIGKILL)
        while len(set(cluster.engines()) - set(killed)) < 2:  # until another has taken its place
            time.sleep(0.5)

    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(lambda seed: [cluster.stream(seed) for _ in range(3)], k) for k in range(2)]
        check(cluster.under_load(kill), cluster.folder)
        for future in streams:
            assert all(events[-1] == "image_generation.completed" for events in future.result())
    assert killed[0] not in cluster.engines()


def test_a_reload_replaces_the_weights_and_no_engine(cluster: Cluster, tmp_path: Path) -> None:
    old, new = tmp_path / "old", copy_pebble(tmp_path / "new", 1.05)
    shutil.copytree(cluster.folder, old)
    before, wanted = set(cluster.engines()), weights_fingerprint(new)

    def reload() -> None:
        shutil.rmtree(cluster.folder)
        shutil.copytree(new, cluster.folder)
        cluster.config["applications"][0]["deployments"][0]["user_config"] = {"reload": 1}
        cluster.deploy()
        same = 0
        while same < 6:  # both engines have it
            same = same + 1 if cluster.draw(0)["fingerprint"] == wanted else 0

    items = cluster.under_load(reload)
    check(items, old, new)
    assert {item["fingerprint"] for item in items} == {weights_fingerprint(old), wanted}
    assert set(cluster.engines()) == before


def test_a_reload_that_fails_keeps_the_old(cluster: Cluster) -> None:
    before, picture = set(cluster.engines()), pixels(cluster.draw(2))
    saved = cluster.folder.with_name("saved")
    shutil.move(cluster.folder, saved)
    cluster.config["applications"][0]["deployments"][0]["user_config"] = {"reload": 2}
    cluster.deploy()
    assert all((pixels(cluster.draw(2)) == picture).all() for _ in range(4))
    assert set(cluster.engines()) == before
    shutil.move(saved, cluster.folder)


def test_another_model_is_loaded_when_it_is_asked_for(cluster: Cluster) -> None:
    """One fits into each engine: the other makes place."""
    answer = cluster.post(model="dit", policy="fixed @ 2", seed=1)
    assert answer.status_code == 200, answer.text
    assert ["dit"] in [engine["models"] for engine in cluster.engines().values()]
    assert cluster.draw(1)["seed"] == 1


def test_a_rolling_update_loses_nothing(cluster: Cluster) -> None:
    before = set(cluster.engines())

    def update() -> None:
        cluster.args["running"] = 32
        cluster.deploy()

    check(cluster.under_load(update), cluster.folder)
    assert not before & set(cluster.engines())
