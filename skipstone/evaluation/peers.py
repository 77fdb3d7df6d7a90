"""The interface of peers (third-party accelerators), and the code that they share."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeAlias

from ..deprecation import adopt_old_declarations
from ..errors import GuestError, GuestWarning
from ..registry import spell
from .peer_harness import SavingsCounter, around_each_run, restore_modules, watch_savings

CallContextFactory: TypeAlias = Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
# What subclasses declared in 0.1.0 -> what they declare now.
OLD_DECLARATIONS = {
    "cannot": "unsupported_reason",
    "probes": "probe_modules",
    "installed": "install",
    "spares": "skips_work",
    "brings": "brings_scheduler",
}


class Peer:
    """Base of peers: frozen settings, and a way to accelerate a pipeline that leaves nothing behind.

    A subclass defines where it cannot run (`unsupported_reason`), which modules show that a run saved something
    (`probe_modules`), and how it is put on and taken off (`install`); everything else is here.
    """

    name: ClassVar[str]
    skips_work: ClassVar[bool] = True  # whether it leaves out parts of calls; others are other samplers or guidance
    brings_scheduler: ClassVar[bool] = False  # whether it brings its own scheduler
    steps: ClassVar[int] = 0  # by default; 0 takes the command's
    package: ClassVar[str] = ""  # what pip calls it, where it is not part of diffusers
    module: ClassVar[str] = ""  # what Python calls it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_declarations(cls, OLD_DECLARATIONS)

    @classmethod
    def settings(cls) -> list[str]:
        """Specs that the bench runs by default, from mild to strong."""
        return [cls.name]

    def refusal_reason(self, pipe: Any) -> str | None:
        """Why this pipeline cannot run it ("not applicable: ..."), or None where it can."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"not applicable: {self.package} is not installed; pip install {self.package}"
        why = self.unsupported_reason(pipe)
        return f"not applicable: {why}" if why else None

    def prepare(self, pipe: Any, **call: Any) -> None:
        """Measure what it has to know beforehand of runs with these arguments; most have nothing to know."""

    @contextmanager
    def apply(self, pipe: Any) -> Iterator[SavingsCounter]:
        """The pipeline accelerated inside the block, and exactly as before after it.

        The value of the block counts which calls of the network were saved in part. A block in which none
        was warns: its pictures are those of the bare pipeline.

        Raises:
            GuestError: the pipeline cannot run it; the message has the reason.
        """
        if why := self.refusal_reason(pipe):
            raise GuestError(f"{spell(self)} on {type(pipe).__name__}: {why}.")
        with (
            restore_modules(pipe),
            around_each_run(pipe, None if self.skips_work else self.run) as runs,
            self._install_quietly(pipe) as running,
        ):
            with watch_savings(denoiser_of(pipe), self.probe_modules(pipe)) as savings:
                runs.append(lambda call: savings.run())
                runs.append(running)
                yield savings
            runs.clear()
        if self.skips_work and savings.calls and not savings.saved:
            message = f"{spell(self)} saved nothing in {savings.calls} calls of {type(denoiser_of(pipe)).__name__}"
            warnings.warn(f"{message}: these are runs of the bare pipeline.", GuestWarning, stacklevel=3)

    # -- what a subclass defines ------------------------------------------------------------------

    def unsupported_reason(self, pipe: Any) -> str | None:
        """Reason in a few words why the peer cannot run in this pipeline, or None."""
        raise NotImplementedError

    def probe_modules(self, pipe: Any) -> list[Any]:
        """Modules of the denoiser that it spares, or gives fewer rows, whenever it saves something."""
        raise NotImplementedError

    def install(self, pipe: Any) -> AbstractContextManager[CallContextFactory]:
        """The peer put on the pipeline; yields what to open around each of its calls, given their arguments."""
        raise NotImplementedError

    def run(self, pipe: Any, bare: Callable[..., Any], call_arguments: Mapping[str, Any]) -> Any:
        """A call of the pipeline with these arguments, of those that spare nothing; `bare` is its own."""
        return bare(pipe, **call_arguments)

    @contextmanager
    def _install_quietly(self, pipe: Any) -> Iterator[CallContextFactory]:
        """`install`, without what peers log when they are put on and taken off."""
        block = self.install(pipe)
        with quiet_logging():
            running = block.__enter__()
        try:
            yield running
        finally:
            with quiet_logging():
                block.__exit__(None, None, None)


def denoiser_of(pipe: Any) -> Any:
    """The transformer or UNet of a pipeline, None where it has neither."""
    found = getattr(pipe, "transformer", None)
    return getattr(pipe, "unet", None) if found is None else found


def no_context(call: Mapping[str, Any]) -> AbstractContextManager[None]:
    """A context that does nothing."""
    return nullcontext()


@contextmanager
def quiet_logging() -> Iterator[None]:
    """No log lines below errors: peers announce themselves."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
