"""Training of the domain classifier: logistic regression, its temperature, and the limits of what it believes.

Temperature, limits and errors come from predictions for prompts that the fitted weights have not seen: each fold is
predicted by a classifier of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import SpecError
from ...evaluation.prompt import Prompt
from ...policies.domains.classifier import DomainClassifier, Limits, softmax
from ...policies.domains.features import ClipFeatures, FeatureKind, Features, StateFeatures, WordFeatures
from ...satellites import require_module

FOLDS = 5
PENALTY = {"states": 100.0, "clip": 100.0, "words": 100.0}  # C of scikit-learn's LogisticRegression
RIGHT = 0.95  # share of prompts above the confidence limit that must be right
OWN = 0.95  # share of the domains' own prompts that each of the limits keeps: others are mostly beyond
BINS = 10  # of the calibration error
MOST_ANCHORS = 2000  # rows


@dataclass(frozen=True, eq=False)
class Inputs:
    """Prompts and what features are made of.

    Args:
        prompts: Their categories are the domains.
        states: (prompts, width) mean text states; None where they are not read.
        kind: Of the features.
        clip: Of "clip": the weights.
    """

    prompts: Sequence[Prompt]
    states: Any = None
    kind: FeatureKind = "words"
    clip: str = ""

    @property
    def texts(self) -> list[str]:
        """The prompts' texts."""
        return [prompt.text for prompt in self.prompts]

    @property
    def labels(self) -> list[str]:
        """The prompts' domains."""
        return [prompt.category for prompt in self.prompts]

    def take(self, places: Sequence[int]) -> Inputs:
        """Some of them."""
        states = None if self.states is None else self.states[places]
        return Inputs([self.prompts[i] for i in places], states, self.kind, self.clip)

    def fit_features(self) -> Features:
        """Features of these prompts."""
        if self.kind == "states":
            if self.states is None:
                raise SpecError("Expected text states of the prompts, got none: this model tells of none. Use words.")
            return StateFeatures.fit(self.states)
        return ClipFeatures.fit(self.clip, self.texts) if self.kind == "clip" else WordFeatures.fit(self.texts)


class HeldOut(NamedTuple):
    """What is predicted for prompts that were not trained on.

    Args:
        logits: (prompts, domains).
        distances: (prompts,) as of `DomainGuess`.
        labels: (prompts,) the number of the right domain.
    """

    logits: Any
    distances: Any
    labels: Any


@dataclass(frozen=True, eq=False)
class FitReport:
    """How well a classifier does on prompts that its weights have not seen.

    Args:
        domains: Their names.
        prompts: How many.
        accuracy: Share that is right.
        ece, raw_ece: Expected calibration error in 10 bins of equal count, with the temperature and without, on the
            half of the prompts that the temperature was not fitted on.
        believed: Share of prompts within both limits.
        accuracy_believed: Share of these that is right; NaN where there is none.
        confusion: (domains, domains) counts, a row for each right domain.
        guesses: What is said of each prompt, "" where it is not believed.
    """

    domains: tuple[str, ...]
    prompts: int
    accuracy: float
    ece: float
    raw_ece: float
    believed: float
    accuracy_believed: float
    confusion: Any
    guesses: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The figures as a sentence."""
        return (
            f"The classifier is right on {self.accuracy:.1%} of {self.prompts} prompts of {len(self.domains)} domains "
            f"that it was not trained on (folds); calibration error {self.ece:.3f} ({self.raw_ece:.3f} without "
            f"temperature). It believes itself on {self.believed:.1%}, of which {self.accuracy_believed:.1%} are right."
        )

    def as_dict(self) -> dict[str, Any]:
        """For a file of results."""
        found = {**vars(self), "confusion": self.confusion.tolist(), "domains": list(self.domains)}
        return {name: value for name, value in found.items() if name != "guesses"}


def fit_classifier(inputs: Inputs, seed: int = 0) -> tuple[DomainClassifier, FitReport]:
    """Train, calibrate and bound a classifier.

    Args:
        inputs: At least 10 prompts of each of 2 to 64 domains.
        seed: Of the folds.

    Raises:
        MissingPackage: scikit-learn is not installed.
        ModelError: there is no such CLIP.
        SpecError: features that these prompts do not have.
    """
    require_module("sklearn", "tune")
    import numpy as np

    held = predict_held_out(inputs, seed)
    half = np.arange(len(held.labels)) % 2 == 0
    temperature = fit_temperature(held.logits, held.labels)
    limits = choose_limits(held, temperature)
    bare = _fit(inputs)
    report = _report(bare.domains, held, half, temperature, limits)
    notes = {"prompts": report.prompts, "accuracy": report.accuracy, "ece": report.ece, "held out": "folds"}
    fitted = DomainClassifier(
        bare.domains, bare.features, bare.weights, bare.bias, bare.anchors, temperature, limits, notes
    )
    return fitted, report


def predict_held_out(inputs: Inputs, seed: int = 0) -> HeldOut:
    """What classifiers of all other folds predict for each fold."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    names = sorted(set(inputs.labels))
    labels = np.array([names.index(label) for label in inputs.labels])
    logits, distances = np.zeros((len(labels), len(names))), np.zeros(len(labels))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels):
        fitted, other = _fit(inputs.take(train)), inputs.take(test)
        rows = fitted.features.matrix(other.texts, other.states)
        logits[test] = rows @ fitted.weights.T + fitted.bias
        near = (rows @ fitted.anchors.T).max(1)
        distances[test] = 1.0 - (near.toarray().ravel() if hasattr(near, "toarray") else near)
    return HeldOut(logits, distances, labels)


def _fit(inputs: Inputs) -> DomainClassifier:
    """A classifier without temperature that believes everything."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = inputs.fit_features()
    rows, names = features.matrix(inputs.texts, inputs.states), tuple(sorted(set(inputs.labels)))
    found = LogisticRegression(C=PENALTY[inputs.kind], max_iter=2000).fit(rows, inputs.labels)
    weights, bias = found.coef_, found.intercept_
    if len(names) == 2:  # scikit-learn keeps one row then: the logit of the second
        weights, bias = np.stack([0 * weights[0], weights[0]]), np.array([0.0, bias[0]])
    anchors = rows[:: -(-rows.shape[0] // MOST_ANCHORS)]
    return DomainClassifier(names, features, np.ascontiguousarray(weights), bias, anchors, 1.0, Limits(0.0, 2.0))


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature of the least negative log-likelihood, in [0.01, 100].

    Labels are smoothed by one prompt in n + 2, as Platt's are, so that where all are right nobody is certain.

    References: Platt 1999, Probabilistic outputs for support vector machines.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(1, keepdims=True)
        normaliser = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
        right = scaled[np.arange(len(labels)), labels]
        return float((normaliser - (1.0 - doubt) * right - doubt * scaled.mean(1)).mean())

    doubt = 1.0 / (len(labels) + 2)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))


def calibration_error(probabilities: Any, labels: Any) -> float:
    """Expected calibration error of the most probable domain: 10 bins of equal count, weighed by count."""
    import numpy as np

    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [abs(float(confidence[part].mean() - right[part].mean())) * len(part) for part in bins]
    return sum(gaps) / len(labels)


def choose_limits(held: HeldOut, temperature: float) -> Limits:
    """The confidence that `OWN` of the prompts reach and above which `RIGHT` of them are, and the distance of `OWN`."""
    import numpy as np

    probabilities = softmax(held.logits / temperature)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == held.labels
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(share >= RIGHT)
    least = float(confidence[order[good[-1]]]) if len(good) else 1.0
    reached = float(np.quantile(confidence, 1.0 - OWN))
    return Limits(max(least, reached), float(min(2.0, max(0.0, np.quantile(held.distances, OWN)))))


def _report(domains: tuple[str, ...], held: HeldOut, half: Any, temperature: float, limits: Limits) -> FitReport:
    import numpy as np

    other = HeldOut(*(one[~half] for one in held))
    own = fit_temperature(held.logits[half], held.labels[half])
    probabilities = softmax(held.logits / temperature)
    best, confidence = probabilities.argmax(1), probabilities.max(1)
    believed = (confidence >= limits.confidence) & (held.distances <= limits.distance)
    right = best == held.labels
    confusion = np.zeros((len(domains), len(domains)), int)
    np.add.at(confusion, (held.labels, best), 1)
    return FitReport(
        domains,
        len(right),
        float(right.mean()),
        calibration_error(softmax(other.logits / own), other.labels),
        calibration_error(softmax(other.logits), other.labels),
        float(believed.mean()),
        float(right[believed].mean()) if believed.any() else float("nan"),
        confusion,
        tuple(domains[k] if sure else "" for k, sure in zip(best, believed, strict=True)),
    )
