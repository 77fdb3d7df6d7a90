"""`skipstone.calibrate`: from a target in words to the fastest setting that may be promised to meet it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..deprecation import old_keywords
from ..evaluation.progress import ProgressCallback, no_progress
from ..policies.certified import Certified
from ..satellites import require_module
from . import cache as caches
from .procedure import Calibration, CalibrationOptions, warn_user
from .prompt_split import PromptSource
from .subjects import make_subject

MOVED = ("samplers", "reference", "groups", "metric", "better", "steps", "guidance", "arguments", "seed", "batch")


@old_keywords(renamed={"tell": "on_progress"}, moved={"options": (CalibrationOptions, MOVED)})
def calibrate(
    pipe: Any,
    prompts: PromptSource | None,
    target: str,
    *,
    confidence: float | None = 0.9,
    settings: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    on_progress: ProgressCallback = no_progress,
    options: CalibrationOptions | None = None,
) -> Certified:
    """The fastest setting that meets a quality target, with a guarantee.

        policy = skipstone.calibrate(pipe, prompts, target="psnr >= 30 @ 90%")
        policy.save_pretrained("out")
        with skipstone.adapt(pipe, policy): ...

    With this confidence over the draw of the prompts, at least that share of prompts *exchangeable with them*, each
    with a random seed, meets the level on *this* model in *this* configuration; where the target is a mean, that the
    mean does. Of a model that takes no prompts, at least that share of *seeds* drawn at random does, with this
    confidence over the draw of the seeds. Nothing is promised of a single picture. A third of the prompts orders the
    settings; on the others they are tested one after the other, from the safest on, until one fails (Learn then Test,
    fixed sequence). The same call goes on where it was cut off.

    Args:
        pipe: A diffusers pipeline, a `skipstone.Pebble`, or the name, folder or hub id of a model.
        prompts: Texts, a file of them, or a set such as "pebble-tuning"; each counts once. For how many it takes, see
            `skipstone.calibration.planning.prompts_needed`: 22 in the test for 90 % at confidence 0.9. None for a
            model that takes no prompts; `options.samples` seeds take their place.
        target: "METRIC >= LEVEL @ PERCENT%" or "@ mean"; see `skipstone.calibration.Target.parse`.
        confidence: In (0.5, 1). None, for means only: the promise holds in the mean over calibrations.
        settings: Columns to choose from; the ladder of the model's own policy by default.
        cache: Folder of full runs and scores; $SKIPSTONE_CACHE or ~/.cache/skipstone by default.
        on_progress: Called with (what is being done, calls done, calls in all).
        options: All else; see `CalibrationOptions`.

    Raises:
        TargetMissedError: no setting is accepted; the message names the nearest.
        SpecError, PromptError, MetricError, ModelError, GuestError: something that cannot be used, or too few prompts.
        MissingPackage: matplotlib is not installed.

    References: Angelopoulos et al. 2021, arXiv 2110.01052; Angelopoulos et al. 2022, arXiv 2208.02814.
    """
    require_module("matplotlib", "plot")  # a certificate comes with its picture
    options = options or CalibrationOptions()
    subject = make_subject(pipe, options.guidance, options.arguments)
    planned = Calibration.of(subject, prompts, target, confidence, settings, options)
    if planned.samples.num_duplicates:
        warn_user(planned.duplicates_message)
    return planned.run(caches.folder(cache), on_progress, warn_user)
