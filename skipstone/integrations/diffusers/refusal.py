"""The errors of a takeover: one that is refused before it begins, and one that the pipeline has broken."""

from __future__ import annotations

from ...errors import GuestError

ALTERNATIVE = (
    "Adapt it without solver=..., with a policy that keeps to the pipeline's steps, such as error_control. A solver "
    "can step in the pipeline's own loop: pipe.scheduler = skipstone.Scheduler.from_config(pipe.scheduler.config)."
)


class TakeoverRefused(GuestError):
    """A pipeline whose loop cannot be taken over; `reason` says why, as a clause."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The pipeline cannot be taken over: {reason}. {ALTERNATIVE}")
        self.reason = reason


class TakeoverBroken(GuestError):
    """A pipeline that did in a later step what a takeover, made in the first one, could not know of."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"The run was taken over in the pipeline's first step, and later {reason}. A takeover cannot follow this. "
            f"{ALTERNATIVE}"
        )
