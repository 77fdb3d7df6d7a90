"""Loading weights without the progress bars and warnings of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers: what is wrong is raised."""
    import diffusers
    import transformers

    logs = (diffusers.utils.logging, transformers.utils.logging)
    levels = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
