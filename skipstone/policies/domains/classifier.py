"""The domain classifier: a prompt in, its domain out with a confidence, or that none is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ... import __version__
from ...errors import SkipstoneError, SpecError
from ...json_files import JsonReader
from .features import ClipFeatures, Features, StateFeatures, WordFeatures

CLASSIFIER_FILE = "domains.safetensors"
FORMAT = 1
MAX_BYTES = 256 * 2**20  # of a file
MAX_DOMAINS = 64
MAX_NAME = 80  # characters of a domain's name
CSR = ("data", "indices", "indptr")  # arrays of a sparse matrix
_ADVICE = "Make the classifier again: skipstone tune --domains."
_READER = JsonReader(SpecError, _ADVICE, max_bytes=MAX_BYTES)


class DomainGuess(NamedTuple):
    """What a classifier says of a prompt.

    Args:
        domain: Its domain; "" where that is not sure, or the prompt is unlike those it has learnt from.
        best: The most probable domain, sure or not; "" where the prompt is not known.
        confidence: The calibrated probability of `best`, in [0, 1].
        distance: To the prompts that it has learnt from: 1 less the greatest cosine, in [0, 2].
    """

    domain: str
    best: str = ""
    confidence: float = 0.0
    distance: float = 2.0


@dataclass(frozen=True)
class Limits:
    """What a guess must keep to be believed.

    Args:
        confidence: The least, in [0, 1].
        distance: The greatest, in [0, 2].
    """

    confidence: float
    distance: float


@dataclass(frozen=True)
class _Header:
    """The text of a file: everything but its arrays."""

    format: int
    kind: str
    domains: tuple[str, ...]
    temperature: float
    limits: Limits
    features: Mapping[str, Any]
    skipstone: str = __version__
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DomainClassifier:
    """Logistic regression on features of a prompt, its probabilities calibrated by a temperature.

    Args:
        domains: Their names, 2 to 64 of them.
        features: Of prompts.
        weights, bias: (domains, width) and (domains,).
        anchors: (anchors, width) rows of prompts that it has learnt from, of unit length, dense or in scipy's CSR: who
            is far from all of them is of no domain.
        temperature: That logits are divided by, > 0.
        limits: Below which confidence, and beyond which distance, a prompt is of no domain.
        notes: What its maker noted: prompts, errors.

    Raises:
        SpecError: arrays that do not fit together, or numbers out of range.

    References: Guo et al. 2017, arXiv 1706.04599 (temperature); Sun et al. 2022, arXiv 2204.06507 (distance to the
    nearest known example).
    """

    domains: tuple[str, ...]
    features: Features
    weights: Any
    bias: Any
    anchors: Any
    temperature: float
    limits: Limits
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.domains)
        count, width = len(self.domains), self.features.width
        shapes = [tuple(one.shape) for one in (self.weights, self.bias, self.anchors)]
        if shapes[:2] != [(count, width), (count,)] or len(shapes[2]) != 2 or shapes[2][1] != width or not shapes[2][0]:
            raise SpecError(f"Expected arrays for {count} domains and {width} features, got shapes {shapes}. {_ADVICE}")
        if not (0 < self.temperature < 1e6 and 0 <= self.limits.confidence <= 1 and 0 <= self.limits.distance <= 2):
            raise SpecError(
                f"Expected a temperature > 0, a confidence in [0, 1] and a distance in [0, 2], got {self.temperature}, "
                f"{self.limits.confidence} and {self.limits.distance}. {_ADVICE}"
            )

    @property
    def reads_states(self) -> bool:
        """Whether it reads the model's text states, and not the text itself."""
        return self.features.kind == "states"

    def logits(self, row: Any) -> Any:
        """Logits (domains,) of the features of a prompt, before the temperature."""
        return (self.weights * row).sum(1) + self.bias  # not by BLAS, whose last bits go by where arrays lie

    def classify(self, text: str = "", states: Sequence[float] = ()) -> DomainGuess:
        """The domain of a prompt.

        Args:
            text: The prompt.
            states: The mean of its text states, as `Run.prompt` has it.

        Raises:
            SpecError: states of another model.
            ModelError: it reads CLIP's features, and the CLIP is gone.
            MissingPackage: it reads n-grams, and scikit-learn is not installed.
        """
        return self._classified(text if not self.reads_states else "", tuple(states) if self.reads_states else ())

    @cached_property
    def _classified(self) -> Callable[[str, tuple[float, ...]], DomainGuess]:
        return lru_cache(maxsize=4096)(self._guess)

    def _guess(self, text: str, states: tuple[float, ...]) -> DomainGuess:
        row = self.features.row(text, states)
        if row is None:
            return DomainGuess("")
        probabilities = softmax(self.logits(row) / self.temperature)
        k = int(probabilities.argmax())
        near = self.anchors @ row if hasattr(self.anchors, "indptr") else (self.anchors * row).sum(1)
        confidence, distance = float(probabilities[k]), 1.0 - float(near.max())
        sure = confidence >= self.limits.confidence and distance <= self.limits.distance
        return DomainGuess(self.domains[k] if sure else "", self.domains[k], confidence, distance)

    # -- on disk ----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """A file: safetensors, with JSON beside the arrays."""
        import numpy as np
        from safetensors.numpy import save

        arrays = {"weights": self.weights, "bias": self.bias}
        if hasattr(self.anchors, "indptr"):
            arrays |= {f"anchors.{name}": getattr(self.anchors, name) for name in CSR}
        else:
            arrays["anchors"] = self.anchors
        arrays |= {f"features.{name}": value for name, value in self.features.arrays.items()}
        header = {
            "format": FORMAT,
            "kind": self.features.kind,
            "domains": list(self.domains),
            "temperature": self.temperature,
            "limits": vars(self.limits),
            "features": dict(self.features.about),
            "skipstone": __version__,
            "notes": dict(self.notes),
        }
        plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        return bytes(save(plain, {"domains": json.dumps(header, allow_nan=False)}))

    @classmethod
    def load(cls, folder: str | Path) -> DomainClassifier:
        """Read the file in a folder. Raises SpecError where there is none, or it is damaged."""
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / CLASSIFIER_FILE
        try:
            if path.stat().st_size > MAX_BYTES:
                raise SpecError(f"{path}: expected a file of at most {MAX_BYTES:,} bytes, got a larger one. {_ADVICE}")
            with safe_open(str(path), "numpy") as file:
                said = (file.metadata() or {})["domains"]
                arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118  (no mapping)
            return cls._read(_READER.convert(_Header, _READER.parse(said, str(path)), str(path)), arrays, str(path))
        except SkipstoneError:
            raise
        except OSError:
            raise SpecError(f"Expected a domain classifier, found no {path}. {_ADVICE}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            raise SpecError(f"{path} is damaged: no domain classifier can be read from it. {_ADVICE}") from None

    @classmethod
    def _read(cls, header: _Header, arrays: Mapping[str, Any], where: str) -> DomainClassifier:
        if header.format != FORMAT:
            raise SpecError(f"{where}: expected format {FORMAT}, got {header.format}. {_ADVICE}")
        _check_arrays(arrays, where)
        try:
            check_names(header.domains)
        except SpecError as e:
            raise SpecError(f"{where}: {e} {_ADVICE}") from None
        features = _features(header, arrays, where)
        return cls(
            header.domains,
            features,
            arrays["weights"],
            arrays["bias"],
            _read_anchors(arrays, features.width),
            header.temperature,
            header.limits,
            header.notes,
        )


def check_names(domains: Sequence[str]) -> None:
    """Raise SpecError for names of domains that are too few, too many, too long, or not told apart."""
    if not 2 <= len(domains) <= MAX_DOMAINS or len(set(domains)) < len(domains):
        raise SpecError(
            f"Expected 2 to {MAX_DOMAINS} different domains, got {len(domains)}: {', '.join(domains)[:200]}."
        )
    for name in domains:
        if not 0 < len(name.strip()) <= MAX_NAME or not name.isprintable():
            raise SpecError(f"Expected a domain's name of 1 to {MAX_NAME} characters, got {name[: MAX_NAME + 1]!r}.")


def softmax(logits: Any) -> Any:
    """Probabilities (..., classes) of logits."""
    import numpy as np

    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _check_arrays(arrays: Mapping[str, Any], where: str) -> None:
    import numpy as np

    for name, value in arrays.items():
        whole = name.rpartition(".")[2] in CSR[1:]
        if (
            value.dtype not in ((np.int32, np.int64) if whole else (np.float32, np.float64))
            or not np.isfinite(value).all()
        ):
            raise SpecError(f"{where}: expected finite numbers in {name}, got others. {_ADVICE}")


def _read_anchors(arrays: Mapping[str, Any], width: int) -> Any:
    """The anchors of a file. Raises KeyError, or ValueError where they are no matrix."""
    if "anchors" in arrays:
        return arrays["anchors"]
    from scipy.sparse import csr_array

    data, indices, indptr = (arrays[f"anchors.{name}"] for name in CSR)
    found = csr_array((data, indices, indptr), shape=(len(indptr) - 1, width))
    found.check_format(full_check=True)
    return found


def _features(header: _Header, arrays: Mapping[str, Any], where: str) -> Features:
    """The features that a file has. Raises SpecError of a kind that is not known, KeyError of what is missing."""
    about = header.features
    if header.kind == "states":
        return StateFeatures(arrays["features.centre"], arrays["features.spread"])
    if header.kind == "clip":
        weights = _READER.convert(str, about.get("weights"), f"{where}: features.weights")
        return ClipFeatures(weights, arrays["features.centre"], arrays["features.spread"])
    if header.kind == "words":
        named = [
            _READER.convert(tuple[str, ...], about.get(name), f"{where}: features.{name}")
            for name in ("characters", "words")
        ]
        if sum(map(len, named)) != len(arrays["features.idf"]) or any(len(set(one)) < len(one) for one in named):
            raise SpecError(f"{where}: expected as many weights as n-grams, each once. {_ADVICE}")
        return WordFeatures(named[0], named[1], arrays["features.idf"])
    raise SpecError(f"{where}: expected features states, clip or words, got {header.kind!r}. {_ADVICE}")
