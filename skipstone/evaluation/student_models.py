"""Students of embedded models: the same words, pictures and noise under a network that was distilled from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..engine.paired import PairedBackbone
from ..errors import SpecError
from ..integrations.students import call_at_guidance, load_student
from ..policies.student import StudentCard
from .models import EmbeddedModel


def student_model(model: EmbeddedModel, folder: str) -> EmbeddedModel:
    """The model with a student's network, in one branch; costs count in calls of its teacher.

    A student that takes the weight of guidance as an input is given the model's own.

    Raises:
        ModelError: the folder holds no student of this model.
        SpecError: the model's guidance is not in the range that the student was trained for.
    """
    card = StudentCard.read(folder)
    card.check_guidance(model.guidance)
    teacher: Any = model
    made: Any = replace(teacher, unet=load_student(folder, model.unet), guidance=1.0)
    changes: dict[str, Any] = {"full_branches": model.backbone.branches, "network": folder}
    if card.guidance_range:
        changes["forward"] = call_at_guidance(model.guidance)
    vars(made)["backbone"] = replace(made.backbone, **changes)  # where `cached_property` looks
    student: EmbeddedModel = made
    return student


def paired_model(model: EmbeddedModel, folder: str, student: EmbeddedModel) -> EmbeddedModel:
    """The model with a student beside it, for policies that run both.

    Args:
        model: The teacher.
        folder: Of the student.
        student: The same, loaded by `student_model`.

    Raises:
        SpecError: the student was distilled with another weight of guidance than the model's.
    """
    card = StudentCard.read(folder)
    if not card.guidance_range and card.guidance != model.guidance:
        raise SpecError(
            f"cascade: expected the guidance that {folder} was distilled with, {card.guidance:g}, for its pictures "
            f"stand beside the model's; got {model.guidance:g}. Give --guidance {card.guidance:g}, or distil another."
        )
    whole: Any = model
    made: Any = replace(whole)
    vars(made)["backbone"] = PairedBackbone(model.backbone, student.backbone, folder)  # where `cached_property` looks
    pair: EmbeddedModel = made
    return pair
