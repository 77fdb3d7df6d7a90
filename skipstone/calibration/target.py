"""What a user asks for: `psnr >= 30 @ 90%`, as a loss in [0, 1] and the risk that it must not exceed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from .. import registry
from ..errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from typing import Self

Relation: TypeAlias = Literal[">=", "<="]

RELATIONS: dict[str, Relation] = {"higher": ">=", "lower": "<="}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
GRAMMAR = re.compile(
    rf"\s*(?P<metric>[A-Za-z_]\w*)\s*(?P<relation>[<>=≤≥!~]+)\s*(?P<level>{NUMBER})\s*@\s*"
    rf"(?:(?P<percent>{NUMBER})\s*%|(?P<mean>mean)(?:\s+within\s+(?P<low>{NUMBER})\s*\.\.\s*(?P<high>{NUMBER}))?)\s*"
)
EXAMPLES = "'psnr >= 30 @ 90%' (at least 90 % of prompts) or 'ssim >= 0.95 @ mean' (on average)"


class MetricFacts(NamedTuple):
    """Facts about a metric that a promise needs: its direction, and its smallest and largest possible value."""

    better: Literal["higher", "lower"]
    span: tuple[float, float] = (-math.inf, math.inf)


def user_metric(metric: Callable[[Any, Any], float] | None, better: str) -> dict[str, MetricFacts]:
    """A user's function by its name, for `Target.parse`; nothing where there is none. Raises SpecError."""
    if metric is None:
        return {}
    if better not in RELATIONS:
        raise SpecError(f"better: expected 'higher' or 'lower', got {better!r}.")
    return {getattr(metric, "__name__", "metric"): MetricFacts(better)}  # type: ignore[arg-type]  # just checked


@dataclass(frozen=True)
class Target:
    """A quality that future prompts shall have: a metric, a level, and for which share of prompts.

    With a fraction, loss(value) = 0 where `value relation level`, 1 elsewhere, and risk = 1 - fraction: the promise is
    P(meets) >= fraction. Of a mean, with (low, high) = span and the better end called good and the other bad,

        loss(value) = |good - cut(value)| / (high - low),   risk = |good - level| / (high - low),

    cut(value) being the value moved into the span: E[loss] <= risk says that the mean of the cut values meets the
    level. Cutting at the good end only makes values worse, so that the promise holds for the values themselves: the
    psnr of identical pictures is infinite and counts as 99 dB. Cutting at the bad end would flatter them; therefore
    that end is one that no value can pass (0 dB; an ssim of -1), or the one that the user states after `within`, and
    then the promise is about the mean of the values cut there, and must be read so.

    NaN and None never meet, and are the worst loss, 1.

    Args:
        metric: Name of a metric of one picture, or of a user's function.
        relation: ">=" where higher is better, "<=" where lower is.
        level: What is to be met, in the metric's unit; of a mean strictly inside the span.
        fraction: Of prompts, in (0, 1); None promises the mean.
        span: Of a mean, the least and the greatest value that count; None with a fraction.

    Raises:
        SpecError: a setting out of range. `parse` checks the metric's name, direction and range besides.
    """

    metric: str
    relation: Relation
    level: float
    fraction: float | None = None
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS.values():
            raise SpecError(f"target: expected the relation '>=' or '<=', got {self.relation!r}.")
        if not math.isfinite(self.level):
            raise SpecError(f"target: expected a level that is a number, got {self.level}.")
        if self.fraction is not None:
            if not 0 < self.fraction < 1:
                raise SpecError(
                    f"target: expected a share of prompts between 0 and 100 %, both excluded, got "
                    f"{_percent(self.fraction)}. No number of prompts proves 100 %; type 99% or less."
                )
            if self.span is not None:
                raise SpecError("target: a share of prompts needs no span. Leave 'within ...' out.")
            return
        if self.span is None or not all(map(math.isfinite, self.span)) or self.span[0] >= self.span[1]:
            raise SpecError(
                f"target: the mean of {self.metric} needs the least and the greatest value that count, got {self.span}."
                f" Type for example '{self.metric} {self.relation} {_plain(self.level)} @ mean within 0..1'; values "
                "beyond count as these. Or ask for a share of prompts, which needs no bounds: '@ 90%'."
            )
        low, high = self.span
        if not low < self.level < high:
            raise SpecError(
                f"target: expected the mean's level strictly between {_plain(low)} and {_plain(high)}, got "
                f"{_plain(self.level)}."
            )

    @classmethod
    def parse(cls, text: str, known: Mapping[str, MetricFacts] | None = None) -> Self:
        """Read 'METRIC >= LEVEL @ PERCENT%' or 'METRIC >= LEVEL @ mean [within LOW..HIGH]'; `spell` inverts it.

        Args:
            text: The target.
            known: Users' own metrics by name, which come before registered ones.

        Raises:
            SpecError: a text of another form, a relation against the metric's direction, a number out of range.
            UnknownNameError: a metric that is neither registered nor known.
        """
        found = GRAMMAR.fullmatch(text)
        if found is None:
            raise SpecError(f"target: expected {EXAMPLES}, got {text!r}.{_hint(text)}")
        metric, level, mean = found["metric"], float(found["level"]), found["mean"] is not None
        facts = _metric_facts(metric, known or {})
        right = RELATIONS[facts.better]
        if found["relation"] != right:
            raise SpecError(
                f"target: {facts.better} {metric} is better, and a promise says {right!r}, got {found['relation']!r}. "
                f"Type: {metric} {right} {text[found.end('relation') :].strip()}"
            )
        if not facts.span[0] <= level <= facts.span[1] or math.isinf(level):
            ends = " to ".join("any" if math.isinf(end) else _plain(end) for end in facts.span)
            raise SpecError(f"target: expected a level in the range of {metric}, {ends}, got {_plain(level)}.")
        if not mean:
            return cls(metric, right, level, float(Decimal(found["percent"]).scaleb(-2)))
        said = (float(found["low"]), float(found["high"])) if found["low"] is not None else None
        return cls(metric, right, level, None, said or (facts.span if all(map(math.isfinite, facts.span)) else None))

    def spell(self) -> str:
        """The text that `parse` reads as this target; the metric's own span is left out."""
        start = f"{self.metric} {self.relation} {_plain(self.level)} @ "
        if self.fraction is not None:
            return start + _percent(self.fraction)
        assert self.span is not None
        own = _registered(self.metric)
        said = "" if own is not None and own.span == self.span else " within " + "..".join(map(_plain, self.span))
        return f"{start}mean{said}"

    @property
    def words(self) -> str:
        """The promise as a sentence would say it: 'at least 90 % of prompts have psnr >= 30'."""
        return self.promise("prompts")

    def promise(self, of: str) -> str:
        """`words` of something else than prompts: 'at least 90 % of seeds have psnr >= 30'."""
        if self.fraction is not None:
            share = _percent(self.fraction).replace("%", " %")
            return f"at least {share} of {of} have {self.metric} {self.relation} {_plain(self.level)}"
        assert self.span is not None
        cut = f"values outside of {_plain(self.span[0])} to {_plain(self.span[1])} counted as these"
        return f"{of} have {self.metric} {self.relation} {_plain(self.level)} on average, {cut}"

    @property
    def risk(self) -> float:
        """alpha: what the expected loss must not exceed, in (0, 1)."""
        if self.fraction is not None:
            return float(1 - Decimal(repr(self.fraction)))
        return self.loss(self.level)

    def meets(self, value: float | None) -> bool:
        """Whether one value meets the level. NaN and None never do."""
        if value is None or math.isnan(value):
            return False
        return value >= self.level if self.relation == ">=" else value <= self.level

    def loss(self, value: float | None) -> float:
        """Loss of one value, in [0, 1]; 1 for NaN and None."""
        if value is None or math.isnan(value):
            return 1.0
        if self.span is None:
            return 0.0 if self.meets(value) else 1.0
        low, high = self.span
        cut = min(max(value, low), high)
        return (high - cut if self.relation == ">=" else cut - low) / (high - low)

    def value(self, loss: float) -> float:
        """A mean loss in the user's terms: the share of prompts that meet the level, or the mean of the metric."""
        if self.span is None:
            return 1.0 - loss
        low, high = self.span
        return high - loss * (high - low) if self.relation == ">=" else low + loss * (high - low)


def _registered(metric: str) -> MetricFacts | None:
    """Facts of a registered metric of one picture; None where there is none of that name."""
    if metric not in registry.names("metric"):
        return None
    from ..metrics import Metric

    cls = registry.find_class("metric", metric)
    return MetricFacts(cls.better, cls.span) if issubclass(cls, Metric) else None


def _metric_facts(metric: str, known: Mapping[str, MetricFacts]) -> MetricFacts:
    """Facts of a metric. Raises UnknownNameError; SpecError for a metric of a set of pictures."""
    if metric in known:
        return known[metric]
    found = _registered(metric)
    if found is not None:
        return found
    usable = sorted({*known, *(name for name in registry.names("metric") if _registered(name) is not None)})
    if metric in registry.names("metric"):
        raise SpecError(
            f"target: {metric} is one number of many pictures, and a promise is about each prompt. "
            f"Metrics of one picture: {', '.join(usable)}."
        )
    raise UnknownNameError(
        f"target: no metric is called {metric!r}.{registry.suggest_spelling(metric, usable)} Known: "
        f"{', '.join(usable)}."
    )


def _hint(text: str) -> str:
    """Hint on the error in a text that is almost a target."""
    share = re.search(rf"@\s*({NUMBER})\s*$", text)
    if share and 0 < float(share[1]) < 1:
        return f" Write the share of prompts in percent: @ {_percent(float(share[1]))}"
    if share:
        return f" A percent sign is missing: @ {share[1]}%"
    return " After '@' say for which share of prompts: '@ 90%'." if "@" not in text else ""


def _plain(number: float) -> str:
    """The shortest text that reads as this number, whole numbers without their point."""
    return repr(int(number)) if abs(number) < 1e15 and number == int(number) else repr(number)


def _percent(fraction: float) -> str:
    """0.9 -> 90%, with as many digits as it takes to be read as the same fraction."""
    return f"{Decimal(repr(fraction)).scaleb(2).normalize():f}%"
