"""The HTTP interface: the official client understands it, and nothing that is sent breaks it."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from analytic import served
from hypothesis import given
from hypothesis import strategies as st
from live import HOSTS, live
from PIL import Image

from skipstone.engine.trace import from_json
from skipstone.serving import Engine, Limits
from skipstone.serving.api.keys import Keys
from skipstone.serving.metrics import Metrics

PROMPT = "a red apple on a blue background"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def address(pebble: Engine) -> Iterator[str]:
    with live(pebble, hosts=HOSTS) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none is needed", max_retries=0)


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A server without a network, for what is refused."""
    with Engine({"analytic": served()}) as engine, live(engine) as found:
        yield found


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def post(address: str, content: Any, **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    url = f"{address}/v1/images/generations"
    return httpx.post(url, content=body, headers={"Content-Type": "application/json"} | headers, timeout=60)


def test_the_official_client_gets_pictures(client: openai.OpenAI, pebble: Engine) -> None:
    answer = client.images.generate(prompt=PROMPT, model="pebble", n=2, size="64x64", extra_body={"seed": 3})
    assert answer.data is not None
    assert answer.size == "64x64"
    assert abs(answer.created - time.time()) < 600
    for k, item in enumerate(answer.data):
        assert item.b64_json is not None
        expected = pebble.submit(PROMPT, seed=3 + k).result()
        got = pixels(base64.b64decode(item.b64_json))
        assert np.abs(got.astype(int) - expected.pixels).max() <= 1
        facts = item.model_extra or {}
        assert (facts["seed"], facts["calls"], facts["full_calls"]) == (3 + k, expected.calls, 50.0)
        assert facts["policy"] == "adaptive_grid @ kriging / trailing / 50"
        assert facts["certificate"] is None
        assert "no certificate" in facts["promise"]


def test_pictures_by_url(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt=PROMPT, response_format="url", output_format="webp", extra_body={"policy": "fixed @ 2"}
    )
    assert answer.data is not None
    got = httpx.get(str(answer.data[0].url))
    assert got.headers["content-type"] == "image/webp"
    assert pixels(got.content).shape == (64, 64, 3)


def test_the_official_client_streams_partial_pictures(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 3})
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert last.type == "image_generation.completed"
    pictures = [pixels(base64.b64decode(event.b64_json)).astype(float) for event in (*partial, last)]
    away = [np.abs(picture - pictures[-1]).mean() for picture in pictures]
    assert away == sorted(away, reverse=True)  # it sharpens
    assert away[0] > 0 == away[-1]


def test_a_trace_comes_back_and_can_be_read(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, extra_body={"trace": True, "policy": "stride(tol=0.1)", "seed": 1})
    assert answer.data is not None
    facts = answer.data[0].model_extra or {}
    trace = from_json(json.dumps(facts["trace"]))
    assert trace.run.cost == facts["calls"] < 20
    assert trace.meta["seed"] == 1


def test_the_certificates_of_pebble_are_its_qualities(client: openai.OpenAI) -> None:
    known = (client.models.retrieve("pebble").model_extra or {})["qualities"]
    assert list(known) == ["high", "low", "medium"]
    calls = {}
    for quality in ("low", "medium", "high"):
        answer = client.images.generate(prompt=PROMPT, quality=quality, extra_body={"seed": 5})  # type: ignore[call-overload]
        facts = answer.data[0].model_extra
        assert answer.quality == quality == facts["certificate"]
        assert "90 % of prompts have psnr >= " in facts["promise"]
        calls[quality] = facts["calls"]
    assert calls["low"] < calls["medium"] < calls["high"] < 50


def test_errors_are_those_of_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="64x64") as size:
        client.images.generate(prompt=PROMPT, size="1024x1024")
    assert size.value.param == "size"
    with pytest.raises(openai.BadRequestError, match="no such field"):
        client.images.generate(prompt=PROMPT, style="vivid")


def test_models_health_metrics_and_description(client: openai.OpenAI, address: str, pebble: Engine) -> None:
    assert [model.id for model in client.models.list()] == ["pebble"]
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
    client.images.generate(prompt=PROMPT, extra_body={"policy": "fixed @ 3"})
    text = httpx.get(f"{address}/metrics").text
    for name in ("waiting_pictures", "rows_per_forward_bucket", "saved_calls_total", "picture_seconds_bucket"):
        assert f"skipstone_{name}" in text
    described = httpx.get(f"{address}/openapi.json").json()
    body = described["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert {"prompt", "policy", "deadline_ms"} <= body["content"]["application/json"]["schema"]["properties"].keys()


def test_a_host_of_another_name_is_refused_on_loopback(address: str) -> None:
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 400


REFUSED: list[tuple[Any, int, str]] = [
    (b"", 400, ""),
    (b"{", 400, ""),
    (b"[" * 50_000, 400, ""),
    (b'{"prompt": "\xff"}', 400, ""),
    ([], 400, ""),
    ({}, 400, "prompt"),
    ({"prompt": 3}, 400, "prompt"),
    ({"prompt": ""}, 400, "empty"),
    ({"prompt": "a" * 2001}, 400, "2000"),
    ({"prompt": "a" * 70_000}, 413, "65536"),
    ({"prompt": "a", "n": 0}, 400, "n"),
    ({"prompt": "a", "n": 11}, 400, "at most 10"),
    ({"prompt": "a", "n": 10**30}, 400, "n"),
    ({"prompt": "a", "n": True}, 400, "n"),
    ({"prompt": "a", "seed": 2**63}, 400, "seed"),
    ({"prompt": "a", "seed": 1.5}, 400, "seed"),
    ({"prompt": "a", "size": "999999999x999999999"}, 400, "size"),
    ({"prompt": "a", "policy": "fixed @ 9999"}, 400, "at most 200"),
    ({"prompt": "a", "policy": "fixed | " * 40 + "fixed"}, 400, "at most"),
    ({"prompt": "a", "policy": "(" * 900}, 400, "Expected 'name'"),
    ({"prompt": "a", "policy": "../../etc/passwd"}, 400, ""),
    ({"prompt": "a", "quality": "../low"}, 400, "certificate"),
    ({"prompt": "a", "model": "../../etc"}, 404, "model"),
    ({"prompt": "a", "stream": True, "n": 2}, 400, "stream"),
    ({"prompt": "a", "partial_images": 2}, 400, "partial_images"),
    ({"prompt": "a", "output_format": "svg"}, 400, "output_format"),
    ({"prompt": "a", "guidance": 1e9}, 400, "guidance"),
    ({"prompt": "a", "deadline_ms": -1}, 400, "deadline_ms"),
    ({"prompt": "a", "adapter": "../x"}, 400, "no such field"),
]


@pytest.mark.parametrize(("content", "status", "said"), REFUSED, ids=range(len(REFUSED)))
def test_hostile_requests_are_refused_with_a_sentence(small: str, content: Any, status: int, said: str) -> None:
    answer = post(small, content)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert len(error["message"]) < 800
    assert "Traceback" not in answer.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
)
FIELDS = ["prompt", "n", "size", "quality", "policy", "seed", "budget", "guidance", "negative_prompt", "stream", "x"]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_no_body_whatever_is_an_error_of_the_server(small: str, content: dict[str, Any]) -> None:
    answer = post(small, {"policy": "fixed @ 1", **content})
    assert answer.status_code in (200, 400), answer.text


def test_what_a_page_of_another_site_can_send_is_refused(small: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = post(small, {"prompt": "a"}, **{"Content-Type": kind})
        assert answer.status_code == 400
    assert "access-control-allow-origin" not in post(small, {"prompt": "a"}, Origin="http://evil.example").headers


def test_keys_and_quotas() -> None:
    with Engine({"analytic": served()}, Limits(per_minute=3)) as engine:
        import hashlib

        keys = Keys((hashlib.sha256(KEY.encode()).digest(),))
        with live(engine, keys=keys) as address:
            assert post(address, {"prompt": "a"}).status_code == 401
            assert httpx.get(f"{address}/v1/models").status_code == 401
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
            client.images.generate(prompt="a", n=3)
            with pytest.raises(openai.RateLimitError) as refused:
                client.images.generate(prompt="a")
            assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 20
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="another" * 5).images.generate(prompt="a")


def finished_calls(engine: Engine) -> float:
    """Calls of the pictures that were finished."""
    assert isinstance(engine.observer, Metrics)
    return engine.observer.registry.get_sample_value("skipstone_calls_total", {"model": "pebble"}) or 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_not_drawn_for(pebble: Engine, address: str, stream: bool) -> None:
    before = finished_calls(pebble)
    body = json.dumps({"prompt": PROMPT, "policy": "fixed @ ddim / trailing / 200", "stream": stream})
    lines = (
        "POST /v1/images/generations HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "",
        body,
    )
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as caller:
        caller.sendall("\r\n".join(lines).encode())
        while pebble.load[1] == 0:
            time.sleep(0.001)
    while pebble.load != (0, 0):
        time.sleep(0.001)
    assert finished_calls(pebble) == before


def test_a_deadline_that_cannot_be_met_is_not_tried_again(address: str) -> None:
    answer = post(address, {"prompt": PROMPT, "deadline_ms": 1, "policy": "fixed @ 200"})
    found = answer.status_code, answer.json()["error"]["code"]
    assert found in {(504, "deadline_missed"), (400, "deadline_infeasible")}  # the latter once a call was timed
    assert answer.status_code == 400 or answer.headers["x-should-retry"] == "false"


def test_an_error_in_the_middle_of_a_stream_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match=r"not ready within|is wanted within"):
        list(client.images.generate(prompt=PROMPT, stream=True, extra_body={"deadline_ms": 1, "policy": "fixed @ 200"}))


def test_certificates_are_read_with_their_model() -> None:
    from skipstone.errors import CertificateError
    from skipstone.evaluation.engine_subject import EngineSubject
    from skipstone.serving.fingerprint import CERTIFICATES
    from skipstone.serving.loading import ModelLoader
    from skipstone.serving.settings import read_certificates

    found = ModelLoader({"pebble": "pebble"}).load("pebble").choices.certificates
    assert {name: setting.certificate for name, setting in found.items()} == {n: n for n in ("high", "low", "medium")}
    folder = EngineSubject("pebble", "pebble").folder / CERTIFICATES
    with pytest.raises(CertificateError, match="something else"):
        read_certificates(EngineSubject("pebble-dit", "pebble-dit"), folder)
