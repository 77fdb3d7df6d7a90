"""Why a request gets no picture: each class is one answer of the HTTP interface."""

from __future__ import annotations

from typing import ClassVar

from ..errors import ServingError


class RequestRefused(ServingError):
    """A request asks for what is not served here.

    Args:
        message: What was expected, what was got, what to say instead.
        parameter: The field that is wrong; None where it is no single one.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class UnknownModel(RequestRefused):
    """No model of that name is served."""

    status, code = 404, "model_not_found"


class WrongKey(RequestRefused):
    """An API key is missing or unknown."""

    status, code = 401, "invalid_api_key"


class Forbidden(RequestRefused):
    """Only the operator may do this."""

    status, code = 403, "forbidden"


class ReloadFailed(RequestRefused):
    """What was to be loaded cannot be; what was served is served still."""

    status, code = 409, "reload_failed"


class TooLarge(RequestRefused):
    """A body has more bytes than are read."""

    status, code = 413, "request_too_large"


class Busy(RequestRefused):
    """The queue is full, or a key has used up its quota.

    Args:
        message: As of `RequestRefused`.
        retry_after: Seconds after which it is worth another try, at least 1.
    """

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class Closing(RequestRefused):
    """The server finishes what it has accepted, and accepts no more."""

    status, code = 503, "closing"


class DeadlineInfeasible(RequestRefused):
    """The picture would not be ready by the request's own deadline even if nothing else were drawn."""

    status, code = 400, "deadline_infeasible"


class DeadlineMissed(RequestRefused):
    """The picture would not have been ready by the request's own deadline."""

    status, code = 504, "deadline_missed"


class DrawingFailed(RequestRefused):
    """The run of this request failed: its policy or its network raised, or its sample became NaN or infinite."""

    status, code = 500, "drawing_failed"
