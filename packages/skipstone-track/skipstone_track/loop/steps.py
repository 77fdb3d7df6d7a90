"""The steps of a loop, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from . import audit, draw, release, search
from .round import Step
from .settings import LoopSettings

DRAW = Step("draw", draw.draw, draw.inputs)
TUNE = Step("tune", search.tune, search.tune_inputs)
DISTIL = Step("distil", search.distil, search.distil_inputs)
CALIBRATE = Step("calibrate", search.calibrate, search.calibrate_inputs)
VERIFY = Step("verify", search.verify, search.verify_inputs)
REGISTER = Step("register", release.register_release, release.register_inputs)
DEPLOY = Step("deploy", release.deploy)
AUDIT = Step("audit", audit.audit)
WATCH = Step("watch", audit.watch)


def steps_of(settings: LoopSettings, is_served: bool = False) -> Sequence[Step]:
    """The steps of a round. One that begins while a server draws looks at that first.

    `tune` and `distil` come before `calibrate`: what they find is among the settings of its one test, for whoever tests
    twice and takes the better result has no promise.
    """
    found = [TUNE] if settings.tune is not None else []
    found += [DISTIL] if settings.distil is not None else []
    return [*([WATCH] if is_served else []), DRAW, *found, CALIBRATE, VERIFY, REGISTER, DEPLOY, AUDIT]
