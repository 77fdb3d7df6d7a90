"""What this package brings to the library: its models, their prompt sets, and what is known of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipstone.errors import PromptError
from skipstone.evaluation.prompt import Prompt
from skipstone.evaluation.prompts import seeded_key

from . import MANIFEST, SHIPPED, VOCABULARY, unknown_words

if TYPE_CHECKING:
    from .model import Pebble

TUNING_SHARE = 3  # one combination in so many is for tuning


class Package:
    """A `ModelPackage` of the library."""

    names: Sequence[str] = tuple(SHIPPED)
    guidance: float = 3.0
    prompt_sets: Mapping[str, str] = {
        "pebble": "Pebble's test prompts, from combinations that neither training nor tuning has seen",
        "pebble-tuning": "Pebble's prompts for choosing settings; no combination of objects is also in `pebble`",
        "pebble-training": "2048 prompts from combinations that training saw, for students; none is in the other sets",
    }

    @property
    def students(self) -> Mapping[str, Path]:
        """Name -> folder of the students that ship."""
        found = sorted(Path(__file__).with_name("students").glob("*/student.json"))
        return {file.parent.name: file.parent for file in found}

    def owns(self, model: Any) -> bool:
        """Whether it is a shipped name, a folder with a manifest, or a loaded `Pebble`."""
        if isinstance(model, str | Path):
            return str(model) in SHIPPED or (Path(model) / MANIFEST).is_file()
        from .model import Pebble

        return isinstance(model, Pebble)

    def find(self, model: str) -> Path:
        """The folder of a model. Raises ModelError."""
        from .model import find_model

        return find_model(model)

    def load(self, model: str, guidance: float | None = None) -> Pebble:
        """A model by its name or folder. Raises ModelError."""
        from .model import Pebble

        return Pebble.load(model, self.guidance if guidance is None else guidance)

    def copy(self, model: str, folder: Path) -> None:
        """A model in a folder of its own, without its certificates. Raises ModelError."""
        from .copies import copy_model

        copy_model(self.find(model), folder)

    def prompts(self, name: str) -> list[Prompt]:
        """Withheld scenes, divided by what is combined in them, so that no combination is on both sides.

        Those for training are from the scenes that are not withheld.
        """
        from .scenes import training_prompts, withheld_prompts

        if name == "pebble-training":
            seen = [(kind, text) for kind in ("single", "pair") for text in training_prompts(kind)]
            return [Prompt(text.replace(" ", "-"), text, kind) for kind, text in seen]
        tuning = name == "pebble-tuning"
        kinds = [
            [Prompt(t.replace(" ", "-"), t, kind) for t in withheld_prompts(kind) if _is_for_tuning(t) is tuning]
            for kind in ("single", "pair")
        ]
        return [prompt for turn in zip_longest(*kinds) for prompt in turn if prompt is not None]

    def warning(self, model: str, prompts: Sequence[str]) -> str:
        """Words that Pebble was not trained on, and those that it knows."""
        unknown = sorted({word for prompt in prompts for word in unknown_words(prompt)})
        if not unknown:
            return ""
        known = (f"{kind}: {', '.join(words)}" for kind, words in VOCABULARY.items())
        said = f"Pebble does not know {', '.join(map(repr, unknown))} and will draw something else. It knows"
        return "\n".join((said, *known))

    def facts(self, prompt: str) -> int | None:
        """Facts that a sentence of Pebble's grammar states; None of any other text."""
        from .scenes import parse_prompt

        scene = parse_prompt(prompt)
        if scene is None:
            return None
        said = (scene.relation is not None, scene.background is not None, scene.size != "normal")
        return len(scene.objects) + sum(said)


def _is_for_tuning(text: str) -> bool:
    from .scenes import parse_prompt

    scene = parse_prompt(text)
    if scene is None:
        raise PromptError(f"{text!r} is not a sentence of Pebble's grammar.")
    combined = scene.objects if scene.relation else (*scene.objects, str(scene.background))
    return seeded_key(0, *sorted(combined))[0] % TUNING_SHARE == 0


PACKAGE = Package()
