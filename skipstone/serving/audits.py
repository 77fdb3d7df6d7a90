"""Whether certificates hold for what is really asked: some pictures are drawn again in full while nothing else is."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..calibration.scores import PictureMeasure
from ..calibration.sequential import RunningAudit
from ..calibration.target import Target
from ..errors import SkipstoneError
from ..metrics import Sample
from .audit_state import AuditStates
from .engine import Engine
from .models import ServedModel
from .observers import Observer
from .requests import Picture
from .settings import Setting

log = logging.getLogger("skipstone.serving")
WAIT = 0.2  # seconds between looks at whether the engine is idle
LOOK_SECONDS = 5.0  # between looks at what other processes have found
LOWEST = 2  # class of what is drawn again: whoever comes meanwhile goes first


@dataclass(eq=False)
class Auditor(Observer):
    """Audits certificates on a random share of the pictures drawn under them; one that fails is withdrawn.

    Which pictures are drawn again does not depend on how they came out. The test may be looked at after every picture:
    the chance that it ever withdraws a certificate that holds is at most the false alarm of `states`, for each.

    Args:
        share: Of the pictures, in [0, 1].
        states: What audits have seen.
        seed: Of the choice of pictures; None is another one in each process.
        most: Pictures that wait to be drawn again; more are left out.
        on_audit: Called with model, certificate and result after each picture.
        on_loss: Called with each picture that was drawn again, and its loss: 0 where it met the target, 1 where not.
    """

    share: float = 0.01
    states: AuditStates = field(default_factory=AuditStates)
    seed: int | None = None
    most: int = 64
    on_audit: Callable[[str, str, RunningAudit], None] = lambda model, certificate, result: None
    on_loss: Callable[[Picture, float], None] = lambda picture, loss: None
    _backlog: deque[Picture] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def on_picture(self, picture: Picture) -> None:
        if picture.certificate and self._random.random() < self.share and len(self._backlog) < self.most:
            self._backlog.append(picture)

    def start(self, engine: Engine) -> None:
        """Audit whenever the engine is idle, in a thread, until `close`."""
        self.withdraw_known(engine.models)
        self._thread = threading.Thread(target=self._work, args=(engine,), name="skipstone-audit", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Audit no more. To be called before the engine is closed."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self, engine: Engine) -> None:
        looked = engine.clock()
        while not self._closing.wait(WAIT):
            if engine.clock() - looked > LOOK_SECONDS:  # others that share the files may have found something
                self.withdraw_known(engine.models)
                looked = engine.clock()
            while self._backlog and engine.load == (0, 0) and not self._closing.is_set():
                try:
                    self.audit_next(engine)
                except SkipstoneError as error:  # the queue is full, the engine closes
                    log.warning("an audit was left out: %s", error)

    def withdraw_known(self, models: Mapping[str, ServedModel]) -> None:
        """Withdraw the certificates whose audits have raised the alarm before, here or in another process."""
        for model in models.values():
            for name, setting in model.choices.certificates.items():
                if setting.certificate == name and self.states.read(model, name, setting).alarm:
                    self._withdraw(model, name, setting.target)

    def audit_next(self, engine: Engine) -> RunningAudit | None:
        """Draw the picture that waits longest again in full, and look at the test; None where none counts."""
        found = self._next(engine)
        if found is None:
            return None
        picture, model, setting = found
        asked = replace(picture.request, policy=setting.reference, quality="", priority=LOWEST, deadline=float("inf"))
        full = engine.submit(asked).result()
        if full.fingerprint != picture.fingerprint:  # reloaded meanwhile
            return None
        target = Target.parse(setting.target)
        value = self._measure(model, target, picture, full)
        result = self.states.add(model, picture.certificate, setting, value)
        if result.alarm:
            self._withdraw(model, picture.certificate, setting.target)
        self.on_audit(picture.model, picture.certificate, result)
        self.on_loss(picture, target.loss(value))
        return result

    def _next(self, engine: Engine) -> tuple[Picture, ServedModel, Setting] | None:
        """The picture that waits longest and whose certificate is not withdrawn yet, its model and its setting."""
        while self._backlog:
            picture = self._backlog.popleft()
            model = engine.models.get(picture.model)
            if model is None or model.fingerprint != picture.fingerprint:  # reloaded since
                continue
            setting = model.choices.certificates.get(picture.certificate)
            if setting is not None and (setting.certificate, setting.spec) == (picture.certificate, picture.setting):
                return picture, model, setting
        return None

    def _measure(self, model: ServedModel, target: Target, picture: Picture, full: Picture) -> float:
        """The metric of a picture, held against the full run."""
        measure = PictureMeasure.of(target.metric, model.choices.subject)
        mine, theirs = model.model.decode([picture.latent, full.latent])
        prompt, judge = picture.request.prompt, model.model.judge
        return float(
            measure.measure_sample(Sample(mine, prompt, picture.calls, theirs, judge, picture.latent, full.latent))
        )

    def _withdraw(self, model: ServedModel, certificate: str, target: str) -> None:
        model.withdraw(certificate)
        log.error(
            "ALARM: the certificate %s of %s does not hold for what is asked here, and is withdrawn. Calibrate again, "
            "on prompts like those: skipstone calibrate%s --model %s --prompts FILE --target '%s' --out DIR",
            certificate,
            model.name,
            " --backend mlx" if model.choices.subject.settings.get("backend") == "mlx" else "",
            model.model.name,
            target,
        )
