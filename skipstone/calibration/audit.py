"""Whether a promise still holds: a few samples now and then, and a test that may be looked at after each."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..deprecation import old_attributes, old_keywords
from ..errors import CertificateError, OutputError, SpecError
from ..evaluation.columns import Sampler, parse_column
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.folder_lock import lock_folder
from ..evaluation.json_lines import format_line, read_lines, repair_lines
from ..evaluation.pipeline_subject import RESERVED_ARGUMENTS, PipelineSubject
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample, samples_from_seeds
from ..evaluation.subject import Subject
from ..integrations.coverage import DIGEST, describe_uncovered
from ..json_files import JsonReader
from ..policies.certified import Certificate, Certified
from ..policies.storage import read_policy
from . import cache as caches
from . import certificate as certificate_module
from .cache import Cache
from .prompt_split import PromptSource, hashed_seed, load_unique_prompts, promised_of
from .scores import CachedScores, PictureMeasure
from .sequential import AuditResult, Watchdog
from .subjects import make_subject
from .target import Target, user_metric

AUDIT_FILE, PROMPTS = "audit.jsonl", "prompts.jsonl"


@dataclass(frozen=True)
class AuditReport:
    """Result of an audit.

    Args:
        each: The sequential test after all samples so far, of each group that was promised the target; of all samples
            under the name "" where no groups were.
        target: What was promised.
        false_alarm: Chance of ever raising any alarm although the promise holds.
        new: Samples that were drawn now.
        used_own_prompts: Whether prompts were those of the calibration.
        repeated_prompts: Whether some of them had been audited before.
        tests: Groups that share `false_alarm`.
        of: What the promise is about: "prompts", or "seeds" of a model that takes no prompts, which are always new.
    """

    each: Mapping[str, AuditResult]
    target: Target
    false_alarm: float
    new: int
    used_own_prompts: bool
    repeated_prompts: bool
    tests: int = 1
    of: str = "prompts"

    @property
    def found(self) -> AuditResult:
        """The result with the largest peak e-value among the groups."""
        return max(self.each.values(), key=lambda found: found.peak)

    @property
    def alarm(self) -> bool:
        """Whether a test found that the promise no longer holds."""
        return any(found.alarm for found in self.each.values())

    @property
    def words(self) -> list[str]:
        """The report as lines of text."""
        count = sum(found.n for found in self.each.values())
        whose = "the calibration's own prompts under new seeds" if self.used_own_prompts else f"{self.of} of your own"
        whose = "new random seeds" if self.of == "seeds" else whose
        lines = [
            f"Promised: {self.target.promise(self.of)}.",
            f"{self.new} samples were drawn now, {count} in all ({whose}).",
        ]
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
        if self.used_own_prompts or self.repeated_prompts:
            lines.append(
                "Prompts were audited that the calibration or an audit had seen before: the result holds for these "
                "prompts only. To audit current traffic, pass its prompts: --prompts FILE."
            )
        return lines

    def _said(self, name: str, found: AuditResult) -> str:
        """One test's result as a line of text."""
        missed = sum(loss > 0 for loss in found.state)
        met = f"{found.n - missed} of {found.n} samples meet it" if self.target.fraction is not None else _mean(found)
        bound = self.tests / self.false_alarm
        group = f"{name}: " if name else ""
        e_value = f"e-value {found.e_value:.3g}, {found.peak:.3g} at most"
        return f"{group}{met}; {e_value}, of the {bound:g} that raise an alarm."


old_attributes(AuditReport, {"own": "used_own_prompts", "again": "repeated_prompts"})


def _mean(found: AuditResult) -> str:
    span = found.interval
    return f"{span.value:.4g} in the mean, between {span.low:.4g} and {span.high:.4g}"


@dataclass(frozen=True)
class AuditOptions:
    """Options of `skipstone.audit` beyond the usual ones.

    Args:
        metric, better: The function that the target names, as in `CalibrationOptions`.
        batch: Samples of one call, >= 1.
        prompt_format: Of a file of prompts: txt, csv, tsv, json or jsonl; the end of its name by default.
    """

    metric: Callable[[Any, Any], float] | None = None
    better: str = "higher"
    batch: int = 8
    prompt_format: str | None = None


@old_keywords(renamed={"tell": "on_progress"}, moved={"options": (AuditOptions, ("metric", "better", "batch"))})
def audit(
    folder: str | os.PathLike[str],
    pipe: Any = None,
    *,
    samples: int = 20,
    prompts: PromptSource | None = None,
    false_alarm: float = 0.05,
    cache: str | os.PathLike[str] | None = None,
    on_progress: ProgressCallback = no_progress,
    options: AuditOptions | None = None,
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
        cache: Folder of full runs.
        on_progress: Called with (what is being done, calls done, calls in all).
        options: All else; see `AuditOptions`.

    Raises:
        SpecError: no certificate in the folder, or a number out of range.
        CertificateError: another model or configuration than the certificate's.
        OutputError: another audit of the folder is running: both would draw, and count, the same samples.
    """
    if samples < 1:
        raise SpecError(f"audit: expected at least 1 sample, got {samples}.")
    options = options or AuditOptions()
    with lock_folder(Path(folder), "folder"):
        run = _AuditRun.open(Path(folder), options, false_alarm)
        eval_samples = run.next_samples(prompts, samples, options.prompt_format)
        audited = {line["prompt"] for line in run.lines}
        subject = _subject(pipe, run.certified.certificate)
        scores = _scores(subject, run.certified, run.target, options, caches.folder(cache), on_progress)
        run.draw(eval_samples, scores)
    texts = [eval_sample.prompt.text for eval_sample in eval_samples if eval_sample.prompt.text]
    again = len(set(texts)) < len(texts) or not audited.isdisjoint(texts)
    tests = len(run.groups or [""])
    own = prompts is None and run.of == "prompts"
    return AuditReport(run.test(), run.target, false_alarm, samples, own, again, tests, run.of)


@dataclass
class _AuditRun:
    """The promise under audit, and the samples of all audits so far."""

    folder: Path
    certified: Certified
    target: Target
    false_alarm: float
    lines: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path, options: AuditOptions, false_alarm: float) -> _AuditRun:
        """Return an audit that continues the earlier ones. Raises SpecError."""
        certified = load_certified(folder)
        target = Target.parse(certified.certificate.target, user_metric(options.metric, options.better))
        lines = _load_earlier(folder / AUDIT_FILE, false_alarm)
        Watchdog(target, false_alarm)  # holds the number against its range before anything is drawn
        return cls(folder, certified, target, false_alarm, lines)

    @property
    def groups(self) -> list[str] | None:
        """Groups for each of which the target was promised; None if there are none."""
        return sorted(self.certified.point.groups) or None

    @property
    def of(self) -> str:
        """What the promise is about: "prompts", or "seeds"."""
        return promised_of(self.certified.certificate.prompts)

    def next_samples(
        self, prompts: PromptSource | None, samples: int, prompt_format: str | None = None
    ) -> list[EvaluationSample]:
        """The samples to audit now, in random order: prompts that were audited least come first, each with a new seed.

        Raises:
            SpecError: a prompt of no group that was promised anything, or any where seeds alone were promised it.
        """
        if self.of == "seeds":
            return self._next_seeds(prompts, samples)
        if prompts is None:
            prompts, prompt_format = self.folder / PROMPTS, None
        found, _, _ = load_unique_prompts(prompts, prompt_format=prompt_format)
        groups, seed = self.groups, self.certified.certificate.seed
        if groups is not None and (other := next((p for p in found if p.category not in groups), None)):
            raise SpecError(
                f"audit: the promise is to each of {', '.join(groups)}; the category of {other.text!r} is "
                f"{other.category!r}. Give prompts with one of these categories each."
            )
        uses = Counter(line["prompt"] for line in self.lines)
        order = {prompt.text: hashed_seed(seed, "audit", prompt.text) for prompt in found}
        eval_samples = []
        for k in range(len(self.lines), len(self.lines) + samples):
            prompt = min(found, key=lambda p: (uses[p.text], order[p.text]))
            uses[prompt.text] += 1
            eval_samples.append(EvaluationSample(prompt, hashed_seed(seed, "audit", str(k), prompt.text)))
        return eval_samples

    def _next_seeds(self, prompts: PromptSource | None, samples: int) -> list[EvaluationSample]:
        if prompts is not None:
            raise SpecError("audit: the promise is about seeds, as the model takes no prompts. Leave --prompts out.")
        seed, first = self.certified.certificate.seed, len(self.lines)
        return samples_from_seeds(hashed_seed(seed, "audit", str(first + k)) for k in range(samples))

    def draw(self, eval_samples: Sequence[EvaluationSample], scores: CachedScores) -> None:
        """Draw samples by the calibrated policy and write their lines, batch by batch."""
        point, full_calls = self.certified.point, self.certified.certificate.full_calls
        way = parse_column(f"{point.setting} @ {point.way}", *Sampler())
        column = replace(scores.subject.resolve_column(way), policy=self.certified)
        scores.subject.load([column])
        called = certificate_module.call_arguments_of(scores.subject, column)
        if found := self.certified.call_differences(called):
            raise CertificateError(f"audit: {describe_uncovered(found)}")
        scores.total = len(eval_samples) * (point.calls + full_calls)
        for i in range(0, len(eval_samples), scores.batch):
            part = eval_samples[i : i + scores.batch]
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
            about = {"false_alarm": self.false_alarm, "date": certificate_module.today()}
            _append_lines(self.folder / AUDIT_FILE, [{**line, **about} for line in lines])
            self.lines += lines

    def test(self) -> dict[str, AuditResult]:
        """The sequential test of each group after all samples so far; of all under "" where there are no groups."""
        names = self.groups or [""]
        watch = Watchdog(self.target, self.false_alarm / len(names))
        parts = {
            name: [line["value"] for line in self.lines if self.groups is None or line["category"] == name]
            for name in names
        }
        return {name: watch.update(values) for name, values in parts.items() if values}


def has_alarm(folder: str | os.PathLike[str]) -> bool:
    """Whether the audits of a folder so far have raised the alarm; False where there were none. Draws nothing.

    Raises:
        SpecError: no certificate in the folder, or damaged audits.
    """
    first = next(iter(read_lines(Path(folder) / AUDIT_FILE)), None)
    if first is None:
        return False
    given = first.get("false_alarm")  # where it is damaged, opening the audit says so
    false_alarm = float(given) if isinstance(given, int | float) else 0.05
    run = _AuditRun.open(Path(folder), AuditOptions(), false_alarm)
    return any(found.alarm for found in run.test().values())


def load_certified(folder: str | os.PathLike[str]) -> Certified:
    """The calibrated policy of a folder. Raises SpecError where there is none."""
    policy = read_policy(folder, allow_sampler=True)
    if not isinstance(policy, Certified):
        raise SpecError(f"{folder} holds a policy without a certificate: nothing was promised that could be audited.")
    return policy


def _subject(pipe: Any, certificate: Certificate) -> Subject:
    if isinstance(pipe, EngineSubject | PipelineSubject):
        return pipe
    source = certificate.source
    if pipe is None and "model" not in source:
        raise SpecError("audit: the certificate does not say where its model is: give the pipeline.")
    guidance = certificate.call.get("guidance_scale", source.get("guidance"))
    subject = make_subject(source["model"] if pipe is None else pipe, guidance, source.get("arguments"))
    if not isinstance(subject, PipelineSubject):
        return subject
    return replace(subject, arguments=_arguments(subject, certificate))


def _arguments(subject: PipelineSubject, certificate: Certificate) -> dict[str, Any]:
    """The arguments of the certificate's calls that are not at their defaults, as far as it holds more than digests."""
    own = subject.checkpoint
    names = certificate.call.keys() & own.arguments.keys() - RESERVED_ARGUMENTS.keys()
    said = {name: certificate.call[name] for name in names if certificate.call[name] != own.default(name)}
    return {name: value for name, value in said.items() if not str(value).startswith(DIGEST)} | dict(subject.arguments)


def _scores(
    subject: Subject,
    certified: Certified,
    target: Target,
    options: AuditOptions,
    root: Path,
    on_progress: ProgressCallback,
) -> CachedScores:
    """Scores to draw and measure with, against the reference of the calibration; none is taken from a cache."""
    said = certified.certificate.reference or certified.certificate.full
    reference = subject.resolve_column(parse_column(said, *Sampler()))
    full = subject.resolve_column(parse_column(certified.certificate.full, *Sampler()))
    subject.load([full])
    kept, _ = Cache.open(root, certificate_module.configuration(subject, full))
    measure = replace(PictureMeasure.of(target.metric, subject, options.metric), is_cacheable=False)
    scores = CachedScores(subject, reference, measure, kept, options.batch, on_progress)
    scores.spent["audit"] = 0.0
    return scores


@dataclass(frozen=True)
class AuditLine:
    """One line of audit.jsonl: a sample that was audited.

    Args:
        prompt, category, seed: Of the sample.
        value: Of the target's metric; None where it is not a number.
        calls: Of the sample.
        false_alarm, date: Of the audit.
    """

    prompt: str
    seed: int
    value: float | None
    calls: float
    false_alarm: float
    date: str
    category: str = ""


def _load_earlier(path: Path, false_alarm: float) -> list[dict[str, Any]]:
    """The samples of earlier audits. Raises SpecError where a line is none or had another chance of a false alarm."""
    repair_lines(path)
    reader = JsonReader(SpecError, "Restore the file, or move it away to begin anew.")
    lines = [reader.convert(AuditLine, line, f"{path}: line {i}") for i, line in enumerate(read_lines(path), 1)]
    found = [{**asdict(line), "value": math.nan if line.value is None else line.value} for line in lines]
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
