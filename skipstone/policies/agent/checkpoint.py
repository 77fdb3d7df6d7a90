"""The small network of an agent: an observation in, a score for each action out. Numbers only, no framework."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import OutputError, SpecError

FORMAT = 1
ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True, eq=False)
class ActionScorer:
    """scores = W_n act(... act(W_1 (o - centre) / spread + b_1) ...) + b_n, the best allowed action being chosen.

    Learners of every kind end as one of these: the logits of a policy network, the values of fitted Q, a linear
    stopping rule. One layer is a linear rule.

    Args:
        centre, spread: (inputs,) what observations are standardised by; spread > 0.
        layers: (outputs, inputs) weights and (outputs,) biases, first layer first; float32.
        activation: Between layers: tanh or relu.
        about: What its maker notes beside it; plain JSON values.

    Raises:
        SpecError: arrays that do not fit together.
    """

    centre: Any
    spread: Any
    layers: tuple[tuple[Any, Any], ...]
    activation: str = "tanh"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        width = len(self.centre)
        fits = self.activation in ACTIVATIONS and len(self.spread) == width and self.layers
        for weight, bias in self.layers:
            fits = fits and weight.shape == (len(bias), width)
            width = len(bias)
        if not fits:
            shapes = [(tuple(w.shape), tuple(b.shape)) for w, b in self.layers]
            raise SpecError(f"Expected layers that fit {len(self.centre)} inputs and each other, got {shapes}.")

    @property
    def inputs(self) -> int:
        """Length of an observation."""
        return len(self.centre)

    @property
    def actions(self) -> int:
        """Number of scores."""
        return len(self.layers[-1][1])

    def scores(self, observation: Any) -> Any:
        """Scores (actions,) of one observation (inputs,). One at a time, so that no sample depends on its batch."""
        import numpy as np

        h = (np.asarray(observation, np.float32) - self.centre) / self.spread
        for weight, bias in self.layers[:-1]:
            h = weight @ h + bias
            h = np.tanh(h) if self.activation == "tanh" else np.maximum(h, 0)
        weight, bias = self.layers[-1]
        return weight @ h + bias

    def choose(self, observation: Any, mask: Any) -> int:
        """The allowed action of the highest score; the first of equals. `mask` (actions,) is true where allowed."""
        import numpy as np

        return int(np.where(np.asarray(mask, bool), self.scores(observation), -np.inf).argmax())

    def save(self, path: str | Path) -> Path:
        """Write one file (safetensors), complete or not at all. Raises OutputError where that cannot be."""
        import os

        import numpy as np
        from safetensors.numpy import save

        arrays = {"centre": self.centre, "spread": self.spread}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight{i}": weight, f"bias{i}": bias}
        plain = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            about = json.dumps({"format": FORMAT, "activation": self.activation, "about": dict(self.about)})
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save(plain, {"brain": about}))
            os.replace(part, target)
        except (OSError, TypeError, ValueError) as e:
            raise OutputError(f"Cannot write the agent to {target}: {e}.") from None
        return target

    @classmethod
    def load(cls, path: str | Path) -> ActionScorer:
        """Read a file that `save` wrote. Raises SpecError if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                said = json.loads((file.metadata() or {})["brain"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if said["format"] != FORMAT:
                raise SpecError(f"{path} is an agent of format {said['format']}, expected {FORMAT}: train it again.")
            count = sum(name.startswith("weight") for name in arrays)
            layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(count))
            return cls(arrays["centre"], arrays["spread"], layers, said["activation"], said["about"])
        except (OSError, SafetensorError):
            raise SpecError(f"Expected an agent's file, as `skipstone train agent` writes it, got {path}.") from None
        except (KeyError, ValueError, TypeError) as e:
            if isinstance(e, SpecError):
                raise
            raise SpecError(f"{path} is damaged: no agent can be read from it. Train it again.") from None
