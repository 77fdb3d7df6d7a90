"""Pictures as files: encoded, and kept for a while under addresses that cannot be guessed."""

from __future__ import annotations

import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


def encode(pixels: Any, file_format: str, quality: int | None = None) -> bytes:
    """The file of a picture.

    Args:
        pixels: (height, width, 3), 8 bits each.
        file_format: One of MEDIA_TYPES.
        quality: Of webp and jpeg, in 0..100; None is 100.
    """
    from PIL import Image

    out = io.BytesIO()
    options = {} if file_format == "png" else {"quality": 100 if quality is None else quality}
    Image.fromarray(pixels).save(out, format=file_format.upper(), **options)
    return out.getvalue()


class KeptFile(NamedTuple):
    """A picture that can be fetched.

    Args:
        data: The file.
        media_type: Of HTTP.
        until: When it is forgotten.
    """

    data: bytes
    media_type: str
    until: float


@dataclass(eq=False)
class KeptFiles:
    """The pictures of answers by URL; the oldest go first.

    Args:
        clock: Seconds, never falling.
        most: Files that are kept.
        seconds: That each is kept.
    """

    clock: Callable[[], float]
    most: int = 1000
    seconds: float = 3600.0
    _files: OrderedDict[str, KeptFile] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def keep(self, data: bytes, file_format: str) -> str:
        """Keep a file; returns its name."""
        name = f"{secrets.token_urlsafe(24)}.{file_format}"
        with self._lock:
            self._files[name] = KeptFile(data, MEDIA_TYPES[file_format], self.clock() + self.seconds)
            while len(self._files) > self.most:
                self._files.popitem(last=False)
        return name

    def find(self, name: str) -> KeptFile | None:
        """A file by its name; None where there is none, or none any more."""
        with self._lock:
            found = self._files.get(name)
            if found is not None and found.until < self.clock():
                del self._files[name]
                return None
            return found
