"""Say the quality, get the speed: the fastest setting of a policy that provably meets a target.

`skipstone.calibrate(pipe, prompts, "psnr >= 30 @ 90%")` is `calibrate.run.calibrate`: the package can be called.
"""

import sys
from types import ModuleType
from typing import Any

from .control import Choice as Choice
from .control import choose as choose
from .planning import Needed as Needed
from .planning import enough as enough
from .planning import prompts_needed as prompts_needed
from .risk import by_group as by_group
from .risk import interval as interval
from .risk import p_value as p_value
from .sequential import Audit as Audit
from .sequential import Watchdog as Watchdog
from .target import Known as Known
from .target import Target as Target


class _Callable(ModuleType):
    """A package of the name of its main function, which calling it calls."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .run import calibrate

        return calibrate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
