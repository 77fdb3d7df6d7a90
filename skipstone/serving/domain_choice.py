"""Requests get the certificate that a bandit chooses for their prompt's domain, and audits teach the bandit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from ..errors import SkipstoneError
from ..policies.domains.classifier import DomainClassifier
from ..tuning.domains.bandit import BanditFile
from .models import ServedModel
from .observers import Observer
from .requests import Picture, PictureRequest

log = logging.getLogger("skipstone.serving")


@dataclass(eq=False)
class DomainChoice(Observer):
    """Chooses a certificate for each request, and records what its pictures saved and how their audits went.

        choice = DomainChoice(classifier, BanditFile(path, bandit))
        auditor = Auditor(share=0.05, on_loss=choice.on_loss)
        engine = Engine({"pebble": model}, observer=Observers([auditor, choice]))
        auditor.start(engine)
        picture = engine.submit(choice.choose(PictureRequest("a red apple"), model)).result()

    Args:
        classifier: Of prompts.
        file: The bandit; its arms are called as the certificates are.
    """

    classifier: DomainClassifier
    file: BanditFile

    def choose(self, request: PictureRequest, model: ServedModel) -> PictureRequest:
        """The request under the certificate of its domain, among those that no audit has withdrawn.

        Args:
            request: Without policy and quality of its own; others are returned as they are.
            model: That is to draw it.

        Raises:
            PromptError: an empty prompt.
            SpecError: no arm is a certificate of this model any more, or the bandit's file is damaged.
            OutputError: the bandit's file cannot be written.
        """
        if request.policy or request.quality:
            return request
        held = [name for name, setting in model.choices.certificates.items() if setting.certificate == name]
        problem = model.problem(request, model.choices.default)
        arm = self.file.choose(self.classifier.classify(problem.text, problem.prompt).domain, held)
        return replace(request, quality=arm.name)

    def on_picture(self, picture: Picture) -> None:
        self._record(picture, saved=picture.saving)

    def on_loss(self, picture: Picture, loss: float) -> None:
        """A picture was audited: 0 where it met the target, 1 where not."""
        self._record(picture, loss=loss)

    def _record(self, picture: Picture, saved: float | None = None, loss: float | None = None) -> None:
        if picture.certificate not in [arm.name for arm in self.file.bandit.arms]:
            return
        domain = self.classifier.classify(picture.run.text, picture.run.prompt).domain
        try:
            self.file.record(domain, picture.certificate, saved, loss)
        except SkipstoneError as error:  # a picture is not lost for it
            log.warning("the bandit did not learn from a picture: %s", error)
