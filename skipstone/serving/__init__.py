"""Serves pictures: requests join and leave between two calls of the network, each with decisions of its own.

    from skipstone.serving import Engine

    with Engine.of("pebble") as engine:
        future = engine.submit("a red apple on a blue background", seed=3)
        picture = future.result()

`skipstone serve` puts an HTTP interface before it. One subject a module: `order` (who is next), `batcher` (the driver
of all flows), `engine` (its thread), `settings` and `limits` (what a request may ask for), `api` (HTTP).
"""

from .engine import Engine as Engine
from .limits import Limits as Limits
from .requests import Picture as Picture
from .requests import PictureRequest as PictureRequest
from .requests import Progress as Progress
from .shedding import Shedding as Shedding

__all__ = ["Engine", "Limits", "Picture", "PictureRequest", "Progress", "Shedding"]
