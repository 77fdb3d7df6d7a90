"""What a request has left behind once its picture is handed over: nothing."""

from __future__ import annotations

import gc
from collections import Counter

from analytic import served

from skipstone.serving import Engine, Limits, PictureRequest

SPECS = ("fixed @ ddim / trailing / 4", "adaptive_grid(calls=4) @ kriging / trailing / 12", "fixed @ nowhere")


def draw(engine: Engine, pictures: int, first: int) -> None:
    """Pictures of several policies, seeds and priorities; one in seven is cancelled, and some are refused."""
    for start in range(first, first + pictures, 50):
        requests = [
            PictureRequest("abc"[: 1 + k % 3], seed=k, policy=SPECS[k % 2], priority=k % 3)
            for k in range(start, start + 50)
        ]
        futures = engine.submit_all(requests)
        for k, future in enumerate(futures):
            if k % 7 != 3 or not future.cancel():
                assert future.result().calls >= 1
    engine._texts.submit(lambda: None).result()
    while engine.load != (0, 0):
        pass


def count(engine: Engine) -> Counter[str]:
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects())


def test_no_object_of_a_request_outlives_it() -> None:
    with Engine({"analytic": served()}, Limits(queue=1000), 16) as engine:
        draw(engine, 200, 0)
        before = count(engine)
        draw(engine, 600, 200)
        grown = count(engine) - before
    assert {name: more for name, more in grown.items() if more > 60} == {}
