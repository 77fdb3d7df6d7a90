"""Loading weights without the progress bars and warnings of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers inside: what is wrong is raised.

    Their settings are afterwards what they were before.
    """
    import diffusers
    import transformers

    logs = (diffusers.utils.logging, transformers.utils.logging)
    # diffusers 0.35 has no function that tells whether its bars are shown
    before = [(log.get_verbosity(), getattr(log, "_tqdm_active", True)) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
