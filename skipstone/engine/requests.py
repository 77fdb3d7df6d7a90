"""What solvers ask and backbones answer, what the engine is given and what it gives back.

A solver yields a `Query` (or `Noise`), a backbone answers with an `Estimate`; a `Problem` becomes a `Result`. The flow
ties them to the `Run` and the `Plan` of `contracts.py` and calls none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from ..deprecation import adopt_old_declarations, old_attributes
from ..numerics.array import host_view
from ..numerics.parametrize import from_x0
from ..numerics.schedule import Schedule
from .contracts import INFINITY, Evaluate, Full, PredictionType, Run


@dataclass(frozen=True, slots=True)
class Query:
    """A request for an estimate at (x, t). The engine never calls a network itself."""

    x: Any
    t: float
    cond: Any = None
    known_outputs: Mapping[str, Any] = field(default_factory=dict)  # outputs to use for these sites
    wanted_sites: frozenset[str] = frozenset()  # sites whose outputs to return, and ATTENTION for the map of it
    by_student: bool = False  # whether the student is asked, in place of the network


@dataclass(frozen=True, slots=True)
class Noise:
    """A request for a standard normal array like this one, the next of the run's own stream."""

    like: Any


@dataclass(frozen=True, slots=True)
class ScalarsRequest:
    """A request for 0-d arrays as floats, so that a driver can fetch a whole batch's at once."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A backbone's answer to a query.

    `x0` is the currency of solvers. `output`, of the kind `prediction`, is what the network returned,
    so that a forecast of that kind works on untouched values; without it, other predictions are made from `x0`.
    `memo` saves work where a step is taken again. What is found there may be of other arrays, and is checked: a copy
    with another `x0` has the same memo.
    """

    x0: Any
    cost: float = 1.0  # rows that entered the network, over the branches of a full call
    output: Any = None
    prediction: PredictionType = "x0"
    features: Mapping[str, Any] = field(default_factory=dict)  # outputs of the wanted sites it computed
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what solvers have made of it


@dataclass(frozen=True, slots=True)
class LatentRequest:
    """A request for the sample at t, asked where a pipeline owns the loop and may have changed it.

    The flow writes in what has been planned there, so that the owner knows what to compute before it arrives:
    `evaluate`, and the outputs `known_outputs` for the sites that are not to be computed.
    """

    x: Any  # where the flow believes the sample to be
    t: float
    evaluate: Evaluate = field(default_factory=Full)
    known_outputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A request for the sample at t_next, the estimate being the one at (x, t), where a scheduler makes the step."""

    x: Any
    t: float
    t_next: float
    estimate: Estimate


class Node(NamedTuple):
    """An estimate on the run's timeline."""

    t: float
    x: Any
    estimate: Estimate
    real: bool = True  # False where it was forecast
    by_student: bool = False  # whether it is a student's answer


def get_prediction(node: Node, of: PredictionType, schedule: Schedule) -> Any:
    """The network's prediction at a node, as `of`."""
    e = node.estimate
    if e.output is not None and e.prediction == of:
        return e.output
    return from_x0(of, e.x0, node.x, schedule.alpha(node.t), schedule.sigma(node.t))


def view_clean(node: Node) -> Any:
    """`host_view` of the clean estimate, made once for each call."""
    e = node.estimate
    found = e.memo.get("view")
    if found is None or found[0] is not e.x0:
        found = e.memo["view"] = e.x0, host_view(e.x0)
    return found[1]


def view_prediction(node: Node, of: PredictionType, schedule: Schedule) -> Any:
    """`host_view` of `get_prediction`, made once for each call."""
    e = node.estimate
    found = e.memo.get(of)
    if found is not None and found[0] is e.x0 and found[1] is e.output and found[2] is node.x and found[3] == node.t:
        return found[4]
    view = host_view(get_prediction(node, of, schedule))
    e.memo[of] = e.x0, e.output, node.x, node.t, view
    return view


SolverRequest: TypeAlias = Query | Noise | LatentRequest | StepRequest  # what a step may ask for


@dataclass(frozen=True, slots=True)
class Step:
    """Result of a solver's step; `error` is the solver's own estimate of the local error, shaped like x."""

    x: Any
    error: Any | None = None


class Solver:
    """Advances x from t to t_next; asks `estimate = yield Query(x, t)` and `noise = yield Noise(x)`.

    Holds settings, never state: `past` is the run's own timeline, oldest first, forecasts included (as
    in every scheduler that a guest meets).
    """

    name: ClassVar[str]
    diffusers_class: ClassVar[str] = ""  # the diffusers class that the tests compare it with
    variants: ClassVar[tuple[str, ...]] = ()  # specs beside the default that the tests check too
    hosted: ClassVar[bool] = False  # whether a pipeline owns the loop, and answers `LatentRequest` and `StepRequest`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_declarations(cls, {"counterpart": "diffusers_class", "convergence": "convergence_order"})

    @property
    def order(self) -> int:
        """The order in the solver's name, as in DPM-Solver++(3M)."""
        return 1

    @property
    def convergence_order(self) -> int:
        """Order of convergence; the tests measure it (for stochastic solvers, of their deterministic part)."""
        return self.order

    @property
    def stages(self) -> int:
        """Queries of one step, at most."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether steps ask for noise."""
        return False

    @property
    def controller(self) -> str:
        """Spec of the policy that this solver requires; empty if it requires none."""
        return ""

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[SolverRequest, Any, Step]:
        """One step, as a generator."""
        raise NotImplementedError


class Backbone(Protocol):
    """A denoiser: answers queries, in one call of the network where it can."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def sites(self) -> tuple[str, ...]: ...  # names of what `Cached` may forecast, () if none
    @property
    def branches(self) -> int: ...  # guidance branches of a full call: 1, or 2 with guidance

    def predict(self, queries: Sequence[Query]) -> Sequence[Estimate]: ...


class FeatureExtractor(Protocol):
    """Features of one sample: of its picture and of its prompt, each an array of one axis."""

    def image_features(self, x0: Any) -> Any:
        """Return the features of the picture that a clean estimate decodes to."""

    def prompt_features(self) -> Any:
        """Return the features of the prompt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One sample to denoise.

    Args:
        schedule: Of the network.
        x: The sample at `grid[0]`, any array type; arithmetic happens in its dtype.
        grid: Times from noise to data, strictly falling, at least two.
        cond: What the backbone wants to know beside x and t; the engine only passes it on.
        seed: Of this sample's own noise stream.
        branches: Guidance branches of a full call.
        budget: Calls after which the rest is forecast, whatever the policy says.
        x0_filter: Applied to every clean estimate, e.g. dynamic thresholding.
        prompt: What policies may know of the prompt: its text states, averaged over tokens. Empty where unknown.
        feature_extractors: Makes the feature extractor for signals of pictures and prompts: the model's own by "",
            others by the name of their weights. None where the sample cannot be decoded.
        text: The prompt itself, for policies that go by its words; "" where unknown.
    """

    schedule: Schedule
    x: Any
    grid: tuple[float, ...]
    cond: Any = None
    seed: int = 0
    branches: int = 1
    budget: float = INFINITY
    x0_filter: Callable[[Any], Any] | None = None
    prompt: tuple[float, ...] = ()
    feature_extractors: Callable[[str], FeatureExtractor] | None = None
    text: str = ""


class Status(Enum):
    """How a run ended."""

    done = "done"
    budget = "The call budget ran out and the rest was forecast. Raise `budget`."
    nonfinite = "The sample became NaN or infinite. Try a smaller tolerance, or float32."


@dataclass(frozen=True, slots=True)
class Result:
    """The sample at the end, the run that led there, and how it ended."""

    x: Any
    run: Run
    status: Status = Status.done


# A Run is answered by a Plan, a Query by an Estimate, a ScalarsRequest by floats, every other request by an array.
Flow: TypeAlias = Generator[Run | SolverRequest | ScalarsRequest, Any, Result]

old_attributes(Query, {"given": "known_outputs", "want": "wanted_sites"})
