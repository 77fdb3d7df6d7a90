"""Whether a promise still holds: a few samples now and then, and a test that may be looked at after each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bench.columns import Sampler, parse_column
from ..bench.converged import Shot
from ..bench.engine import Engine
from ..bench.guest import Guest
from ..bench.lines import lines_of, repair, spelt_line
from ..bench.race import Tell, silent
from ..bench.subject import Subject
from ..errors import OutputError, SpecError
from ..policies.certified import Certified
from ..policies.saved import load_policy
from . import cache as caches
from . import certificate as papers
from .cache import Cache
from .samples import Prompts, drawn, listed
from .scores import Gauge, Scores
from .sequential import Audit, Watchdog
from .subjects import subject_of
from .target import Known, Target

FILE, PROMPTS = "audit.jsonl", "prompts.jsonl"


@dataclass(frozen=True)
class Audited:
    """What an audit found.

    Args:
        found: The sequential test after all samples so far.
        target: What was promised.
        false_alarm: Chance of ever raising the alarm although the promise holds.
        new: Samples that were drawn now.
        own: Whether prompts were those of the calibration.
    """

    found: Audit
    target: Target
    false_alarm: float
    new: int
    own: bool

    @property
    def alarm(self) -> bool:
        """Whether the promise does not hold any more."""
        return self.found.alarm

    @property
    def words(self) -> list[str]:
        """For people."""
        found, bound = self.found, 1 / self.false_alarm
        whose = "the calibration's own prompts under new seeds" if self.own else "prompts of your own"
        lines = [f"Promised: {self.target.words}."]
        missed = sum(loss > 0 for loss in found.state)
        met = f"{found.n - missed} of {found.n} samples meet it" if self.target.fraction is not None else _mean(found)
        lines.append(f"{self.new} samples were drawn now, {found.n} in all ({whose}): {met}.")
        if self.alarm:
            lines.append(
                f"ALARM. The e-value has reached {found.peak:.3g}, of {bound:g} that it takes: the promise does not "
                f"hold any more. Calibrate again. (Where it holds, the chance of this alarm is at most "
                f"{self.false_alarm:.0%}.)"
            )
        else:
            lines.append(
                f"No alarm: the e-value is {found.e_value:.3g} and has been {found.peak:.3g} at most, of the "
                f"{bound:g} that it takes. That is no proof that the promise holds, but not enough speaks "
                f"against it. Audit again whenever you like."
            )
        return lines


def _mean(found: Audit) -> str:
    span = found.interval
    return f"{span.value:.4g} in the mean, between {span.low:.4g} and {span.high:.4g}"


def audit(
    folder: str | os.PathLike[str],
    pipe: Any = None,
    *,
    samples: int = 20,
    prompts: Prompts | None = None,
    false_alarm: float = 0.05,
    metric: Callable[[Any, Any], float] | None = None,
    better: str = "higher",
    batch: int = 8,
    cache: str | os.PathLike[str] | None = None,
    tell: Tell = silent,
) -> Audited:
    """Draw a few samples in full and by a calibrated policy, and bet against its promise.

    The test is sequential: an audit goes on from the one before, and may be stopped, repeated and looked at as often as
    one likes; where the promise holds, the chance that it *ever* raises the alarm is at most `false_alarm`.

    Args:
        folder: Of a calibrated policy. What is found is kept in its audit.jsonl.
        pipe: The pipeline or model, as `calibrate` takes it; the model that the certificate names by default.
        samples: To draw now, >= 1.
        prompts: What is drawn now, or like it; the calibration's own by default, under new seeds: that notices changes
            of model, libraries and machine, but none of what people ask for.
        false_alarm: In (0, 0.5); that of the first audit holds for all of them.
        metric, better: The function, where the target has one.
        batch: Samples of one call, >= 1.
        cache: Folder of full runs.
        tell: Is told of the progress.

    Raises:
        SpecError: no certificate in the folder, or a number out of range.
        CertificateError: another model or configuration than the certificate's.
    """
    if samples < 1:
        raise SpecError(f"audit: expected at least 1 sample, got {samples}.")
    certified = certified_of(folder)
    certificate = certified.certificate
    known = {getattr(metric, "__name__", "metric"): Known(better)} if metric else {}  # type: ignore[arg-type]
    target = Target.parse(certificate.target, known)
    path = Path(folder) / FILE
    before = _before(path, false_alarm)
    Watchdog(target, false_alarm)  # holds the number against its range before anything is drawn
    own = prompts is None
    found, _, _ = listed(Path(folder) / PROMPTS if prompts is None else prompts)
    shots = []
    for k in range(len(before), len(before) + samples):
        prompt = found[drawn(certificate.seed, "audit", str(k)) % len(found)]
        shots.append(Shot(prompt, drawn(certificate.seed, "audit", str(k), prompt.text)))
    subject = _subject(pipe, certificate.source)
    scores = _scores(subject, certified, target, metric if known else None, caches.folder(cache), batch, tell)
    way = parse_column(f"{certified.point.setting} @ {certified.point.way}", *Sampler())
    column = replace(subject.admit(way), policy=certified)
    subject.load([column])
    scores.total = len(shots) * (certified.point.calls + certificate.full_calls)
    for i in range(0, len(shots), batch):
        part = shots[i : i + batch]
        lines = [
            {"prompt": shot.prompt.text, "seed": shot.seed, "value": one.value, "calls": one.calls}
            for shot, one in zip(part, scores.of(column, part, "audit"), strict=True)
        ]
        _add(path, [{**line, "false_alarm": false_alarm, "date": papers.today()} for line in lines])
        before += lines
    state = Watchdog(target, false_alarm).update([line["value"] for line in before])
    return Audited(state, target, false_alarm, samples, own)


def certified_of(folder: str | os.PathLike[str]) -> Certified:
    """The calibrated policy of a folder. Raises SpecError where there is none."""
    policy = load_policy(folder, allow_sampler=True)
    if not isinstance(policy, Certified):
        raise SpecError(f"{folder} holds a policy without a certificate: nothing was promised that could be audited.")
    return policy


def _subject(pipe: Any, source: Mapping[str, Any]) -> Subject:
    if isinstance(pipe, Engine | Guest):
        return pipe
    if pipe is None and "model" not in source:
        raise SpecError("audit: the certificate does not say where its model is: give the pipeline.")
    return subject_of(source["model"] if pipe is None else pipe, source.get("guidance"), source.get("arguments"))


def _scores(
    subject: Subject,
    certified: Certified,
    target: Target,
    metric: Callable[[Any, Any], float] | None,
    root: Path,
    batch: int,
    tell: Tell,
) -> Scores:
    """What draws and measures, with a reference like that of the calibration; scores are never taken from a cache."""
    said = certified.certificate.reference or certified.certificate.full
    reference = subject.admit(parse_column(said, *Sampler()))
    full = subject.admit(parse_column(certified.certificate.full, *Sampler()))
    subject.load([full])
    kept, _ = Cache.open(root, papers.configuration(subject, full))
    gauge = replace(Gauge.of(target.metric, subject, metric), kept=False)
    scores = Scores(subject, reference, gauge, kept, batch, tell)
    scores.spent["audit"] = 0.0
    return scores


def _before(path: Path, false_alarm: float) -> list[dict[str, Any]]:
    """The samples of earlier audits. Raises SpecError where they had another chance of a false alarm."""
    repair(path)
    found = [{**line, "value": math.nan if line["value"] is None else line["value"]} for line in lines_of(path)]
    if found and found[0]["false_alarm"] != false_alarm:
        raise SpecError(
            f"{path} was begun with a false alarm of {found[0]['false_alarm']}, not {false_alarm}: a test cannot be "
            f"changed while it runs. Say the former, or move that file away to begin anew."
        )
    return found


def _add(path: Path, lines: list[dict[str, Any]]) -> None:
    plain = [{**line, "value": None if math.isnan(line["value"]) else line["value"]} for line in lines]
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(map(spelt_line, plain)))
    except OSError as e:
        raise OutputError(f"Cannot write {path}: {e.strerror}.") from None
