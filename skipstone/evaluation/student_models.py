"""Students of embedded models: the same words, pictures and noise under a network that was distilled from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..engine.paired import PairedBackbone
from ..integrations.students import load_student
from .models import EmbeddedModel


def student_model(model: EmbeddedModel, folder: str) -> EmbeddedModel:
    """The model with a student's network, without guidance; costs count in calls of its teacher.

    Raises:
        ModelError: the folder holds no student of this model.
    """
    teacher: Any = model
    made: Any = replace(teacher, unet=load_student(folder, model.unet), guidance=1.0)
    vars(made)["backbone"] = replace(  # where `cached_property` looks
        made.backbone, full_branches=model.backbone.branches, network=folder
    )
    student: EmbeddedModel = made
    return student


def paired_model(model: EmbeddedModel, folder: str, student: EmbeddedModel) -> EmbeddedModel:
    """The model with a student beside it, for policies that run both.

    Args:
        model: The teacher.
        folder: Of the student.
        student: The same, loaded by `student_model`.
    """
    whole: Any = model
    made: Any = replace(whole)
    vars(made)["backbone"] = PairedBackbone(model.backbone, student.backbone, folder)  # where `cached_property` looks
    pair: EmbeddedModel = made
    return pair
