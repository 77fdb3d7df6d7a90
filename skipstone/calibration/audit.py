"""Whether a promise still holds: a few samples now and then, and a test that may be looked at after each."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, SpecError
from ..evaluation.columns import Sampler, parse_column
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.json_lines import format_line, read_lines, repair_lines
from ..evaluation.pipeline_subject import PipelineSubject
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.prompts import Prompt
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from ..policies.certified import Certified
from ..policies.saved import load_policy
from . import cache as caches
from . import certificate as papers
from .cache import Cache
from .samples import PromptSource, hashed_seed, load_unique_prompts
from .scores import CachedScores, PictureMeasure
from .sequential import AuditResult, Watchdog
from .subjects import make_subject
from .target import MetricFacts, Target

AUDIT_FILE, PROMPTS = "audit.jsonl", "prompts.jsonl"


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Args:
        each: The sequential test after all samples so far, of each group that was promised the target; of all samples
            under the name "" where no groups were.
        target: What was promised.
        false_alarm: Chance of ever raising any alarm although the promise holds.
        new: Samples that were drawn now.
        own: Whether prompts were those of the calibration.
        again: Whether some of them had been audited before.
        tests: Groups that share `false_alarm`.
    """

    each: Mapping[str, AuditResult]
    target: Target
    false_alarm: float
    new: int
    own: bool
    again: bool
    tests: int = 1

    @property
    def found(self) -> AuditResult:
        """The test that speaks loudest."""
        return max(self.each.values(), key=lambda found: found.peak)

    @property
    def alarm(self) -> bool:
        """Whether the promise does not hold any more."""
        return any(found.alarm for found in self.each.values())

    @property
    def words(self) -> list[str]:
        """For people."""
        count = sum(found.n for found in self.each.values())
        whose = "the calibration's own prompts under new seeds" if self.own else "prompts of your own"
        lines = [f"Promised: {self.target.words}.", f"{self.new} samples were drawn now, {count} in all ({whose})."]
        lines += [self._said(name, found) for name, found in self.each.items()]
        if self.alarm:
            lines.append(
                f"ALARM: the promise does not hold any more. Calibrate again. (Where it holds, the chance of this is "
                f"at most {self.false_alarm:.0%}.)"
            )
        else:
            lines.append(
                "No alarm. That is no proof that the promise holds, but not enough speaks against it. Audit again "
                "whenever you like."
            )
        if self.own or self.again:
            lines.append(
                "Prompts were audited that the calibration or an audit had seen before: what is said is about these "
                "prompts. For what is asked today, give prompts of today: --prompts FILE."
            )
        return lines

    def _said(self, name: str, found: AuditResult) -> str:
        """One test."""
        missed = sum(loss > 0 for loss in found.state)
        met = f"{found.n - missed} of {found.n} samples meet it" if self.target.fraction is not None else _mean(found)
        bound = self.tests / self.false_alarm
        group = f"{name}: " if name else ""
        e_value = f"e-value {found.e_value:.3g}, {found.peak:.3g} at most"
        return f"{group}{met}; {e_value}, of the {bound:g} that raise an alarm."


def _mean(found: AuditResult) -> str:
    span = found.interval
    return f"{span.value:.4g} in the mean, between {span.low:.4g} and {span.high:.4g}"


def audit(
    folder: str | os.PathLike[str],
    pipe: Any = None,
    *,
    samples: int = 20,
    prompts: PromptSource | None = None,
    false_alarm: float = 0.05,
    metric: Callable[[Any, Any], float] | None = None,
    better: str = "higher",
    batch: int = 8,
    cache: str | os.PathLike[str] | None = None,
    on_progress: ProgressCallback = no_progress,
) -> AuditReport:
    """Draw a few samples in full and by a calibrated policy, and bet against its promise.

    Each group that was promised the target has a test of its own, at its share of `false_alarm`. Prompts that were not
    audited yet come first; once all of them were, the test is about these prompts.

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
    certified = load_certified(folder)
    certificate = certified.certificate
    known = {getattr(metric, "__name__", "metric"): MetricFacts(better)} if metric else {}  # type: ignore[arg-type]
    target = Target.parse(certificate.target, known)
    path = Path(folder) / AUDIT_FILE
    before = _load_earlier(path, false_alarm)
    Watchdog(target, false_alarm)  # holds the number against its range before anything is drawn
    own = prompts is None
    found, _, _ = load_unique_prompts(Path(folder) / PROMPTS if prompts is None else prompts)
    groups = sorted(certified.point.groups) or None
    eval_samples = _next_samples(found, before, samples, certificate.seed, groups)
    used = {line["prompt"] for line in before}
    subject = _subject(pipe, certificate.source)
    scores = _scores(subject, certified, target, metric if known else None, caches.folder(cache), batch, on_progress)
    way = parse_column(f"{certified.point.setting} @ {certified.point.way}", *Sampler())
    column = replace(subject.resolve_column(way), policy=certified)
    subject.load([column])
    scores.total = len(eval_samples) * (certified.point.calls + certificate.full_calls)
    for i in range(0, len(eval_samples), batch):
        part = eval_samples[i : i + batch]
        lines = [
            {
                "prompt": eval_sample.prompt.text,
                "category": eval_sample.prompt.category,
                "seed": eval_sample.seed,
                "value": one.value,
                "calls": one.calls,
            }
            for eval_sample, one in zip(part, scores.of(column, part, "audit"), strict=True)
        ]
        _append_lines(path, [{**line, "false_alarm": false_alarm, "date": papers.today()} for line in lines])
        before += lines
    parts = {
        name: [line["value"] for line in before if groups is None or line["category"] == name]
        for name in groups or [""]
    }
    watch = Watchdog(target, false_alarm / len(parts))
    each = {name: watch.update(values) for name, values in parts.items() if values}
    again = any(eval_sample.prompt.text in used for eval_sample in eval_samples) or len(
        {s.prompt.text for s in eval_samples}
    ) < len(eval_samples)
    return AuditReport(each, target, false_alarm, samples, own, again, len(parts))


def _next_samples(
    prompts: Sequence[Prompt], before: Sequence[Mapping[str, Any]], samples: int, seed: int, groups: list[str] | None
) -> list[EvaluationSample]:
    """The samples to audit now, in random order: prompts that were audited least come first, each with a new seed.

    Raises:
        SpecError: a prompt of no group that was promised anything.
    """
    if groups is not None and (other := next((p for p in prompts if p.category not in groups), None)):
        raise SpecError(
            f"audit: the promise is to each of {', '.join(groups)}; the category of {other.text!r} is "
            f"{other.category!r}. Give prompts with one of these categories each."
        )
    uses = Counter(line["prompt"] for line in before)
    order = {prompt.text: hashed_seed(seed, "audit", prompt.text) for prompt in prompts}
    eval_samples = []
    for k in range(len(before), len(before) + samples):
        prompt = min(prompts, key=lambda p: (uses[p.text], order[p.text]))
        uses[prompt.text] += 1
        eval_samples.append(EvaluationSample(prompt, hashed_seed(seed, "audit", str(k), prompt.text)))
    return eval_samples


def load_certified(folder: str | os.PathLike[str]) -> Certified:
    """The calibrated policy of a folder. Raises SpecError where there is none."""
    policy = load_policy(folder, allow_sampler=True)
    if not isinstance(policy, Certified):
        raise SpecError(f"{folder} holds a policy without a certificate: nothing was promised that could be audited.")
    return policy


def _subject(pipe: Any, source: Mapping[str, Any]) -> Subject:
    if isinstance(pipe, EngineSubject | PipelineSubject):
        return pipe
    if pipe is None and "model" not in source:
        raise SpecError("audit: the certificate does not say where its model is: give the pipeline.")
    return make_subject(source["model"] if pipe is None else pipe, source.get("guidance"), source.get("arguments"))


def _scores(
    subject: Subject,
    certified: Certified,
    target: Target,
    metric: Callable[[Any, Any], float] | None,
    root: Path,
    batch: int,
    on_progress: ProgressCallback,
) -> CachedScores:
    """What draws and measures, with a reference like that of the calibration; scores are never taken from a cache."""
    said = certified.certificate.reference or certified.certificate.full
    reference = subject.resolve_column(parse_column(said, *Sampler()))
    full = subject.resolve_column(parse_column(certified.certificate.full, *Sampler()))
    subject.load([full])
    kept, _ = Cache.open(root, papers.configuration(subject, full))
    gauge = replace(PictureMeasure.of(target.metric, subject, metric), is_cacheable=False)
    scores = CachedScores(subject, reference, gauge, kept, batch, on_progress)
    scores.spent["audit"] = 0.0
    return scores


def _load_earlier(path: Path, false_alarm: float) -> list[dict[str, Any]]:
    """The samples of earlier audits. Raises SpecError where they had another chance of a false alarm."""
    repair_lines(path)
    found = [{**line, "value": math.nan if line["value"] is None else line["value"]} for line in read_lines(path)]
    if found and found[0]["false_alarm"] != false_alarm:
        raise SpecError(
            f"{path} was begun with a false alarm of {found[0]['false_alarm']}, not {false_alarm}: a test cannot be "
            f"changed while it runs. Say the former, or move that file away to begin anew."
        )
    return found


def _append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    plain = [{**line, "value": None if math.isnan(line["value"]) else line["value"]} for line in lines]
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(map(format_line, plain)))
    except OSError as e:
        raise OutputError(f"Cannot write {path}: {e.strerror}.") from None
