"""A model that is served: problems from requests, with texts encoded once, and pictures from samples."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.contracts import COND, UNCOND
from ..engine.requests import Backbone, Problem
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.models import EmbeddedModel
from ..evaluation.pixels import to_uint8
from ..numerics.noise import standard_normal
from .limits import Limits
from .requests import PictureRequest
from .settings import Choices, Setting, read_certificates, read_default

CERTIFICATES = "certificates"  # folder, in that of a model, with one folder for each quality
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
        self._lock = threading.Lock()

    def __call__(self, key: Any) -> Any:
        with self._lock:
            return self._make(key)


@dataclass(eq=False)
class ServedModel:
    """A model by the name that requests call it.

    Args:
        name: Its name.
        model: Of a package of models, loaded.
        choices: What requests may choose from.
    """

    name: str
    model: EmbeddedModel
    choices: Choices
    _texts: LruCache = field(init=False)
    _backbones: LruCache = field(init=False)
    size: tuple[int, int] = field(init=False)  # (height, width) of its pictures

    def __post_init__(self) -> None:
        self._texts = LruCache(lambda prompt: self.model.problem(prompt, 0, 1), MAX_TEXTS)
        self._backbones = LruCache(self._make_backbone, MAX_GUIDANCES)
        height, width = self.decode(self._texts("a").x).shape[:2]
        self.size = int(height), int(width)

    @classmethod
    def prepare(
        cls, name: str, model: EmbeddedModel, policy: str, limits: Limits, certificates: Path | None = None
    ) -> ServedModel:
        """Make a loaded model ready to be served.

        Args:
            name: That requests call it.
            model: Loaded.
            policy: Spec or folder of what draws where a request says nothing.
            limits: Of the server.
            certificates: Folder of folders that `skipstone calibrate` wrote; None is the one in the model's own.

        Raises:
            SkipstoneError: a policy or certificate that cannot be read, or is for another model.
        """
        subject = EngineSubject.from_loaded(model)
        folder = cls.folder_of(model) if certificates is None else certificates
        choices = Choices(subject, read_default(subject, policy), read_certificates(subject, folder), limits.steps)
        return cls(name, model, choices)

    @staticmethod
    def folder_of(model: EmbeddedModel) -> Path:
        """Where the certificates that come with a model are."""
        return EngineSubject.from_loaded(model).folder / CERTIFICATES

    def _make_backbone(self, guidance: float) -> Backbone:
        backbone: Backbone = self.model.guided(guidance).backbone
        return backbone

    def backbone(self, request: PictureRequest) -> Backbone:
        """The denoiser under the request's guidance; the same object for the same weight, so that rows share calls."""
        return self._backbones(self.model.guidance if request.guidance is None else float(request.guidance))  # type: ignore[no-any-return]

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
            branches=self.backbone(request).branches,
            budget=request.budget,
        )

    def withdraw(self, certificate: str) -> None:
        """Serve nothing by a certificate any more."""
        self.choices = self.choices.withdraw(certificate)

    def decode(self, latent: Any) -> Any:
        """The picture (height, width, 3) of a sample, 8 bits each; one at a time, so that it depends on no other."""
        return to_uint8(self.model.decode([latent])[0])
