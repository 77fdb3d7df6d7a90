"""A model that is served: problems from requests, with texts encoded once, and pictures from samples."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.contracts import COND, UNCOND
from ..engine.paired import PairedBackbone
from ..engine.requests import Backbone, Problem
from ..evaluation.models import EmbeddedModel
from ..evaluation.pixels import to_uint8
from ..numerics.noise import standard_normal
from .fingerprint import dates_fingerprint
from .refusals import RequestRefused
from .requests import PictureRequest
from .settings import Choices, Setting

MAX_TEXTS = 1024  # prompts whose encodings are kept
MAX_GUIDANCES = 16  # weights of guidance whose backbones are kept


class LruCache:
    """`functools.lru_cache` under a lock: several threads that ask for a key get one value, made once.

    Args:
        make: The function.
        most: Values that are kept.
    """

    def __init__(self, make: Callable[[Any], Any], most: int) -> None:
        self._make = functools.lru_cache(most)(make)
        self._lock = threading.RLock()  # a value may be made of others

    def __call__(self, key: Any) -> Any:
        with self._lock:
            return self._make(key)


@dataclass(frozen=True)
class Source:
    """Where a model was loaded from.

    Args:
        folder: Of its files; None where there is none.
        dates: Names, sizes and dates of the files, before they were read.
        fingerprint: SHA-256 of what was in them.
        memory_format: That was chosen for its network; "" where none was.
    """

    folder: Path | None = None
    dates: str = ""
    fingerprint: str = ""
    memory_format: str = ""


@dataclass(eq=False)
class ServedModel:
    """A model by the name that requests call it.

    Args:
        name: Its name.
        model: Of a package of models, loaded.
        choices: What requests may choose from.
        source: Where it was loaded from.
    """

    name: str
    model: EmbeddedModel
    choices: Choices
    source: Source = field(default_factory=lambda: Source())
    _texts: LruCache = field(init=False)
    _backbones: LruCache = field(init=False)
    size: tuple[int, int] = field(init=False)  # (height, width) of its pictures

    def __post_init__(self) -> None:
        self._texts = LruCache(lambda prompt: self.model.problem(prompt, 0, 1), MAX_TEXTS)
        self._backbones = LruCache(self._make_backbone, MAX_GUIDANCES)
        height, width = self.decode(self._texts("a").x).shape[:2]
        self.size = int(height), int(width)

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return self.source.fingerprint

    @property
    def has_changed(self) -> bool:
        """Whether the files are others than those that were loaded, by their dates."""
        return self.source.folder is not None and dates_fingerprint(self.source.folder) != self.source.dates

    def _make_backbone(self, key: tuple[float, str, str]) -> Backbone:
        guidance, student, beside = key
        if beside:  # the same two objects as of requests for one of them, so that rows share calls
            return PairedBackbone(self._backbones((guidance, "", "")), self._backbones((guidance, beside, "")), beside)
        model = self.choices.subject.student_of(student) if student else self.model.guided(guidance)
        backbone: Backbone = model.backbone
        return backbone

    def backbone(self, request: PictureRequest, setting: Setting | None = None) -> Backbone:
        """The denoiser of a request: the same object for the same weights and guidance, so that rows share calls.

        Raises:
            RequestRefused: guidance or a negative prompt for a student, which runs without.
        """
        student = setting.policy.network if setting is not None else ""
        beside = setting.policy.student if setting is not None else ""
        if (student or beside) and (request.guidance is not None or request.negative_prompt.strip()):
            raise RequestRefused(
                "A student has the model's own guidance, and no negative prompt. Leave guidance and "
                "negative_prompt out, or name another policy."
            )
        weight = self.model.guidance if request.guidance is None else float(request.guidance)
        return self._backbones((weight, student, beside))  # type: ignore[no-any-return]

    def problem(self, request: PictureRequest, setting: Setting) -> Problem:
        """The sample of a request. Raises PromptError, SpecError."""
        template: Problem = self._texts(request.prompt)
        cond = template.cond
        if request.negative_prompt.strip():
            cond = {**cond, UNCOND: self._texts(request.negative_prompt).cond[COND]}
        return replace(
            template,
            x=standard_normal(request.seed, 0, template.x),
            grid=setting.grid.times(template.schedule, setting.steps),
            cond=cond,
            seed=request.seed,
            branches=self.backbone(request, setting).branches,
            budget=request.budget,
            text=request.prompt,
        )

    def withdraw(self, certificate: str) -> None:
        """Serve nothing by a certificate any more."""
        self.choices = self.choices.withdraw(certificate)

    def decode(self, latent: Any) -> Any:
        """The picture (height, width, 3) of a sample, 8 bits each; one at a time, so that it depends on no other."""
        return to_uint8(self.model.decode([latent])[0])
