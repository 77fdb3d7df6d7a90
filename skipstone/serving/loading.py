"""The models of a server from their folders: loaded whole, or not at all; again, where their files have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ModelError, SpecError
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.models import EmbeddedModel, ModelPackage, find_model_package
from ..integrations.mlx.loading import require_mlx
from ..integrations.students import network_fingerprint
from ..policies.student import Student, StudentCard
from .fingerprint import CERTIFICATES, dates_fingerprint, weights_fingerprint
from .limits import Limits
from .measure import choose_memory_format
from .models import ServedModel, Source
from .settings import Choices, check_default, read_certificates, read_default

FORMAT_ROWS = 16  # of the calls that decide on a memory format


@dataclass(frozen=True)
class RunOn:
    """What the networks of a server run on.

    Args:
        backend: "torch" or "mlx".
        dtype, bits: Of the weights on MLX, as of `skipstone.mlx.load`.
        memory_limit: Bytes, on MLX; None is no limit.
    """

    backend: str = "torch"
    dtype: str = "auto"
    bits: int | None = None
    memory_limit: int | None = None

    @property
    def on_mlx(self) -> bool:
        """Whether it is MLX."""
        return self.backend == "mlx"


@dataclass(frozen=True)
class ModelLoader:
    """Loads the models of a server, at its start and again.

    Args:
        models: Name -> name or folder of a model of a package.
        policy: Spec, name of a student or folder of what draws where a request says nothing.
        students: Name -> folder, or name of a shipped one, of students that requests may name.
        limits: Of the server.
        measure: Whether the faster memory format of each network on torch is chosen by measurement.
        run_on: What networks run on.

    Raises:
        SpecError: options that networks on MLX do not have.
    """

    models: Mapping[str, str]
    policy: str = "balanced"
    students: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    measure: bool = False
    run_on: RunOn = field(default_factory=RunOn)

    def __post_init__(self) -> None:
        if self.run_on.on_mlx and self.students:
            raise SpecError(
                f"--student {next(iter(self.students))}: students run on torch alone. Leave it out, or --backend mlx."
            )
        if self.run_on.memory_limit is not None and len(self.models) > 1:
            raise SpecError("--memory-limit is of one model, and several are served: serve one, or leave it out.")

    def load_all(self, known: Mapping[str, ServedModel] | None = None) -> dict[str, ServedModel]:
        """All models; of `known` ones whose files are still the same the weights are kept, and all else is read again.

        Raises:
            SkipstoneError: a model, student, policy or certificate that cannot be read, or is for another model.
        """
        if self.policy not in self.students:
            check_default(self.policy)
        found = {name: self.load(name, (known or {}).get(name)) for name in self.models}
        used = {student for one in found.values() for student in one.choices.students}
        if missing := [name for name in self.students if name not in used]:
            raise ModelError(
                f"--student {missing[0]}: expected a student of a served model, got one of another. Served: "
                f"{', '.join(self.models)}."
            )
        return found

    def load(self, name: str, known: ServedModel | None = None) -> ServedModel:
        """One of the models. Raises SkipstoneError, also where its folder changes meanwhile."""
        path = self.models[name]
        package = _package_of(path)
        folder = package.find(path)
        dates, fingerprint = dates_fingerprint(folder), weights_fingerprint(folder)
        same = known if known is not None and known.source.fingerprint == fingerprint else None
        layout = same.source.memory_format if same else ""
        if self.run_on.on_mlx:
            subject = self._load_on_mlx(path, same)
        elif same:
            subject = EngineSubject.from_loaded(same.model)
        else:
            subject = EngineSubject.from_loaded(package.load(path))
            layout = self._lay_out(subject.embedded, known.source.memory_format if known else "")
        if weights_fingerprint(folder) != fingerprint:
            raise ModelError(f"{folder} has changed while it was read. Wait until it is written, and try again.")
        source = Source(folder, dates, fingerprint, layout)
        return ServedModel(name, subject.embedded, self._choices(subject, folder), source)

    def _load_on_mlx(self, path: str, same: ServedModel | None) -> EngineSubject:
        """The model on MLX; one whose weights are the same is not loaded again."""
        require_mlx()
        from .mlx_models import load_mlx_subject

        on = self.run_on
        return load_mlx_subject(path, on.dtype, on.bits, on.memory_limit, same.model if same else None)  # type: ignore[arg-type]

    def _lay_out(self, model: EmbeddedModel, chosen: str) -> str:
        """Choose a memory format; after the first time the same, for then others would be disturbed."""
        if not self.measure:
            return ""
        if not chosen:
            return choose_memory_format(model.unet, model.backbone, model.problem("a", 0, 1), FORMAT_ROWS)
        import torch

        layout = torch.channels_last if chosen == "channels_last" else torch.contiguous_format
        model.unet.to(memory_format=layout)
        return chosen

    def _choices(self, subject: EngineSubject, folder: Path) -> Choices:
        """What requests may choose from."""
        students = _fitting(self.students, subject.embedded) if self.students else {}
        for student in students.values():
            subject.model_of(Student(student))
        default = read_default(subject, self.policy, students)
        certificates = read_certificates(subject, folder / CERTIFICATES)
        return Choices(subject, default, certificates, self.limits.steps, students)


def _package_of(path: str) -> ModelPackage:
    package = find_model_package(path)
    if package is None:
        raise ModelError(
            f"{path} is no model of a package such as skipstone-pebble, and only those are served. Other pipelines "
            f"are adapted where they run: skipstone.adapt(pipe, policy)."
        )
    return package


def _fitting(students: Mapping[str, str], model: EmbeddedModel) -> dict[str, str]:
    """Those of the students whose teacher the model is. Raises ModelError."""
    mine = network_fingerprint(model.unet)
    return {name: folder for name, folder in students.items() if StudentCard.read(folder).fingerprint == mine}
