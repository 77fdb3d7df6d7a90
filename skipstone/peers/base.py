"""What the bench asks of somebody else's accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class Peer:
    """Base of peers: frozen settings, and a way to accelerate a pipeline that leaves nothing behind."""

    name: ClassVar[str]

    @classmethod
    def settings(cls) -> list[str]:
        """Specs that the bench runs by default, from mild to strong."""
        return [cls.name]

    def refusal(self, pipe: Any) -> str | None:
        """Why this pipeline cannot run it, or None where it can."""
        return None

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        """The pipeline accelerated inside the block, and exactly as before after it."""
        raise NotImplementedError
        yield
