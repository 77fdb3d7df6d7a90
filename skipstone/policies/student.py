"""Run a student, a network that was distilled to need few steps, in place of the model that taught it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from .. import __version__
from ..engine.contracts import Plan, Policy, Run
from ..errors import ModelError, SpecError
from ..json_files import JsonReader
from ..registry import register
from ..satellites import list_entry_points
from ..settings import Ranges, check_settings, shorten

CARD = "student.json"
FORMAT = 1
_READER = JsonReader(ModelError, "Distil it again: skipstone distill.")


@dataclass(frozen=True)
class StudentCard:
    """What `student.json` says of a student.

    Args:
        format: Of the file, 1.
        method: "progressive" or "consistency".
        steps: That it was trained for.
        weights: "lora" or "full".
        part: "unet" or "transformer" of the pipeline.
        guidance: Weight that was distilled into it; it runs without guidance. With a range: that of the drawings.
        teacher: Name of its teacher.
        fingerprint: Of the teacher's denoiser.
        version: Of Skipstone.
        settings, training: How it was trained, and what that took.
        guidance_range: Least and greatest weight that it takes as an input; empty where one was distilled into it.
    """

    format: int
    method: Literal["progressive", "consistency"]
    steps: int
    weights: Literal["lora", "full"]
    part: Literal["unet", "transformer"]
    guidance: float
    teacher: str
    fingerprint: str
    version: str = __version__
    settings: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    guidance_range: tuple[float, ...] = ()

    @staticmethod
    def read(path: str | Path) -> StudentCard:
        """The card of a student, see `find_student`. Raises ModelError where there is none, or it is damaged."""
        file = find_student(path) / CARD
        card: StudentCard = _READER.convert(StudentCard, _READER.read(file), str(file))
        if card.format != FORMAT or not 1 <= card.steps <= 64:
            raise ModelError(f"{file}: expected format {FORMAT} and 1 to 64 steps, got {card.format} and {card.steps}.")
        known = card.guidance_range
        if known and (len(known) != 2 or not known[0] < known[1] or card.weights != "full"):
            raise ModelError(
                f"{file}: expected two rising numbers as guidance_range, of full weights. Distil it again."
            )
        return card

    def check_guidance(self, weight: float) -> None:
        """Raise SpecError where a weight of guidance is outside the range that the student was trained for."""
        if not self.guidance_range:
            return
        low, high = self.guidance_range
        if not low <= weight <= high:
            raise SpecError(
                f"student: expected guidance in [{low:g}, {high:g}], as it was trained, got {weight:g}; try "
                f"guidance={min(max(weight, low), high):g}."
            )


def shipped_students() -> dict[str, Path]:
    """Names of the students that packages of models bring, and their folders."""
    packages = (point.load() for point in list_entry_points("models"))
    return {name: folder for package in packages for name, folder in getattr(package, "students", {}).items()}


def find_student(path: str | Path) -> Path:
    """The folder of a student: itself, or that of a shipped one's name. Raises ModelError where there is none."""
    folder = Path(path).expanduser()
    if (folder / CARD).is_file():
        return folder
    shipped = shipped_students()
    if str(path) in shipped:
        return shipped[str(path)]
    names = ", ".join(map(repr, shipped)) or "none"
    raise ModelError(
        f"Expected a folder of skipstone distill, found no {folder / CARD}. Shipped students: {names}. Train one: "
        f"skipstone distill --out {shorten(str(path))}."
    )


@register("policy")
@dataclass(frozen=True)
class Student(Policy):
    """Run a student, a network that was distilled to need few steps, in place of the model that taught it.

    Where `compare` and `bench` run it, its weights are those of the folder, and a call is one row: half of a guided
    one. A student that takes guidance as an input is given that of the model. In a pipeline of your own load it as its
    README says; `adapt` does not change weights.

    Args:
        path: Folder of `skipstone distill`, or the name of a shipped student. "" runs the model itself, in all steps
            of the grid.
        steps: Equal steps of the grid `trailing`, in 0..64; 0 is as many as it was trained for. A consistency student
            takes any multiple of these, a progressive one no other number.

    Raises:
        SpecError: a number of steps that the student was not trained for.
        ModelError: the folder holds no student.

    References: Salimans & Ho 2022, arXiv 2202.00512; Luo et al. 2023, arXiv 2310.04378.
    """

    path: str = ""
    steps: int = 0
    name: ClassVar[str] = "student"
    neutral: ClassVar[Mapping[str, Any]] = {"path": ""}
    may_spend_more: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"steps": (0, 64)}

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.path:
            return
        trained, progressive = self.card.steps, self.card.method == "progressive"
        if (progressive and self.num_steps != trained) or self.num_steps % trained:
            wanted = f"{trained}" if progressive else f"a multiple of {trained}"
            raise SpecError(
                f"student: expected steps to be {wanted}, as {self.path} was trained, got {self.steps}; try "
                f"steps={trained}."
            )

    @cached_property
    def card(self) -> StudentCard:
        """What the folder says of the student."""
        return StudentCard.read(self.path)

    @property
    def num_steps(self) -> int:
        """Steps that are taken."""
        return self.steps or self.card.steps

    @property
    def solver(self) -> str:
        return "ddim" if self.path else ""

    @property
    def network(self) -> str:
        return self.path

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not self.path or not proposal.is_unamended or run.next_start <= run.t_end:
            return proposal
        steps = self.num_steps
        ahead = (k / steps for k in range(steps - 1, 0, -1) if k / steps < run.next_start - 1e-9)
        return replace(proposal, t_next=max(run.t_end, next(ahead, run.t_end)))
