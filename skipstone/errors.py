"""Every error Skipstone raises on purpose.

    SkipstoneError
    ├── SpecError (ValueError)         a spec string or setting that cannot be understood
    │   └── UnknownNameError           no policy, solver, grid ... of that name
    ├── PlanError (ValueError)         a policy planned something the engine cannot do
    ├── BackboneError (ValueError)     a denoiser was asked for, or returned, something impossible
    ├── GuestError (ValueError)        a pipeline, scheduler or policy that cannot be adapted as it is
    ├── ModelError                     a model that is missing, corrupt or of a kind not supported
    ├── PromptError (ValueError)       a prompt that cannot be drawn
    ├── MetricError (ValueError)       a metric that cannot be taken of these pictures
    ├── TraceError (ValueError)        a trace file that cannot be read or does not fit
    ├── CertificateError (ValueError)  a calibrated policy on what its certificate was not made for
    ├── TargetMissedError              no setting keeps the promise that was asked for
    ├── BenchError                     results of a benchmark that cannot be read, merged or written
    ├── OutputError                    a result that cannot be written
    ├── ServingError                   a request that a server refuses or cannot finish
    └── MissingPackage (ImportError)   what comes with a package that is not installed

Each message says what was expected, what was got, where, and what to type instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .deprecation import old_names


class SkipstoneError(Exception):
    """Root of the tree: catch this to catch everything that Skipstone raises on purpose."""


class SpecError(SkipstoneError, ValueError):
    """A spec string or a setting that cannot be understood."""


class UnknownNameError(SpecError):
    """No policy, solver, grid, schedule, metric or signal of that name."""


class PlanError(SkipstoneError, ValueError):
    """A policy planned something the engine cannot do."""


class BackboneError(SkipstoneError, ValueError):
    """A denoiser was asked for, or returned, something impossible."""


class GuestError(SkipstoneError, ValueError):
    """A pipeline, a scheduler or a policy that cannot be adapted as it is."""


class GuestWarning(UserWarning):
    """An adapted run saved less than was planned, or nothing."""


class ModelError(SkipstoneError):
    """A model that is missing, corrupt, or of a kind that is not supported."""


class PromptError(SkipstoneError, ValueError):
    """A prompt that cannot be drawn."""


class MetricError(SkipstoneError, ValueError):
    """A metric that cannot be taken of these pictures."""


class TraceError(SkipstoneError, ValueError):
    """A trace that cannot be read, or does not fit the problem it is replayed on."""


class CertificateError(SkipstoneError, ValueError):
    """A calibrated policy on a model or configuration that its certificate was not made for."""


class TargetMissedError(SkipstoneError):
    """No setting meets the target with the confidence that was asked for."""


class BenchError(SkipstoneError):
    """Results of a benchmark that cannot be read, merged with others, or written."""


class OutputError(SkipstoneError):
    """A result that cannot be written where it was asked for."""


class ServingError(SkipstoneError):
    """A request that a server refuses, or cannot finish; its subclasses are in `skipstone.serving.refusals`."""


class MissingPackage(SkipstoneError, ImportError):
    """A name or a command that comes with a package which is not installed."""


if not TYPE_CHECKING:
    __getattr__ = old_names(__name__, {"UnknownName": "UnknownNameError", "TargetMissed": "TargetMissedError"})
