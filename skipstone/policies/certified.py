"""A policy with a certificate: what calibration measured, and the configuration it holds for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .. import __version__, registry
from ..engine.contracts import Chain, Policy
from ..errors import CertificateError, OutputError

FILE = "policy.json"
FIXED_POLICY = "fixed"  # the policy that changes nothing


@dataclass(frozen=True)
class CalibrationPoint:
    """One setting as calibration has measured it.

    Args:
        setting: Spec of the policy.
        way: Solver, grid and steps that it ran on, "adams / trailing / 50".
        steps: Of the grid.
        calls: Mean over the prompts.
        value: Share of prompts that meet the target, or the mean of the metric where the target is a mean.
        low, high: Interval of `value` at the certificate's confidence.
        n: Prompts that it was measured on.
        failures: Prompts that miss the level; None where the target is a mean.
        p: Of the final test; None of a setting that only the search has seen.
        accepted: Whether the promise holds for it.
        fixed: Whether it is a sampler in place of the pipeline's own, not a policy on top of it.
        scheduler: Class and configuration of the scheduler that it ran under, in a diffusers pipeline.
        groups: Group -> {"n", "failures", "p"}, where every group is promised the target.
    """

    setting: str
    way: str
    steps: int
    calls: float
    value: float
    low: float
    high: float
    n: int
    failures: int | None = None
    p: float | None = None
    accepted: bool = False
    fixed: bool = False
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The setting as tables and messages show it."""
        return f"{self.steps} steps of {self.way.rpartition(' / ')[0]}" if self.fixed else self.setting


@dataclass(frozen=True)
class Certificate:
    """What is promised, how it was found, and for what.

    Args:
        target: As it was asked for: "psnr >= 30 @ 90%".
        promise: The same as a sentence.
        confidence: That the promise holds, in (0, 1), over the draw of the calibration prompts; None where it holds in
            the mean over calibrations.
        method: Test and control of errors.
        reference: Spec of the run that pictures are compared with; empty where the metric compares with none.
        full: Spec of the run without a policy.
        points: All that was measured, fastest first.
        full_calls: Of a run without any policy.
        model: What tables call it.
        identity: Name -> what must be the same: weights, pipeline, dtype.
        call: Arguments of the pipeline's call that the promise is made for, steps among them.
        prompts: {"source", "count", "sha256", "search", "test"}.
        seed: Of the split and of the samples.
        spent: Calls by what they were spent on.
        versions: Of the libraries.
        date: Of the calibration.
        source: How a command finds the model again: {"model", "guidance", ...}.
    """

    target: str
    promise: str
    confidence: float | None
    method: str
    reference: str
    full: str
    points: tuple[CalibrationPoint, ...]
    full_calls: float
    model: str
    identity: Mapping[str, Any]
    call: Mapping[str, Any]
    prompts: Mapping[str, Any]
    seed: int
    spent: Mapping[str, float]
    versions: Mapping[str, str]
    date: str
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Certificate:
        """Build a certificate from the output of `asdict`. Raises TypeError or KeyError for anything else."""
        known = {f.name: document[f.name] for f in fields(cls)}
        return cls(**{**known, "points": tuple(CalibrationPoint(**point) for point in document["points"])})

    @property
    def best(self) -> CalibrationPoint:
        """The fastest accepted setting."""
        return self.choose_point(allow_sampler=True)[0]

    def choose_point(self, allow_sampler: bool) -> tuple[CalibrationPoint, str]:
        """The fastest accepted point that may be used, and a warning if a faster one needs `allow_sampler=True`."""
        accepted = sorted((p for p in self.points if p.accepted), key=lambda p: (p.calls, p.fixed))
        best = accepted[0]
        usable = next((p for p in accepted if allow_sampler or not p.fixed), None)
        if usable is best:
            return best, ""
        instead = f"{usable.label}, {usable.calls:.1f} calls" if usable else f"no change, {self.full_calls:g} calls"
        return usable or self._nothing(), (
            f"{best.label} serves you better than any policy here: {best.calls:.1f} calls meet the target; now using "
            f"{instead}. Pass allow_sampler=True to replace the pipeline's scheduler and steps."
        )

    def _nothing(self) -> CalibrationPoint:
        steps = round(self.full_calls)
        return CalibrationPoint(FIXED_POLICY, self.full.partition(" @ ")[2], steps, self.full_calls, 1.0, 1.0, 1.0, 0)


@dataclass(frozen=True)
class Certified(Chain):
    """The policy that calibration chose, with its certificate; it plans as the bare policy does.

    In a chain with others it is the bare policy: the promise is about it alone.

    Args:
        certificate: What is promised.
        point: The setting in use.
        forced: Whether it may run on what the certificate was not made for.
        files: Card and picture that belong to it, by name.
    """

    certificate: Certificate = field(compare=False)
    point: CalibrationPoint = field(compare=False)
    forced: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    name: ClassVar[str] = "certified"

    @classmethod
    def from_certificate(
        cls, certificate: Certificate, allow_sampler: bool = True, **more: Any
    ) -> tuple[Certified, str]:
        """The policy of a certificate, and advice where a sampler that is not allowed would be faster."""
        point, advice = certificate.choose_point(allow_sampler)
        policy: Policy = registry.parse("policy", point.setting)
        return cls((policy,), certificate, point, **more), advice

    @property
    def replacement_scheduler(self) -> Mapping[str, Any]:
        """The scheduler to use in place of the pipeline's; empty where that is kept."""
        return self.point.scheduler if self.point.fixed else {}

    @property
    def is_unrestricted(self) -> bool:
        """Whether the policy may run on any model: the user allowed it, or the policy changes nothing."""
        return self.forced or (self.point.setting == FIXED_POLICY and not self.point.fixed)

    def check(self, identity: Mapping[str, Any], what: str) -> None:
        """Raise CertificateError where this is another model or configuration than the certificate's.

        Args:
            identity: Of what it is to run on: names of `Certificate.identity`, and "scheduler..." of its scheduler.
            what: To call it in the message.
        """
        if self.is_unrestricted:
            return
        mine = {**self.certificate.identity, **prefix_keys("scheduler", self.point.scheduler)}
        theirs = dict(identity)
        if self.replacement_scheduler:  # the scheduler there is of no account: it brings its own
            mine, theirs = ({k: v for k, v in one.items() if "scheduler." not in k} for one in (mine, theirs))
        found = describe_differences(mine, theirs)
        if found:
            raise CertificateError(
                f"The certificate was made for {self.certificate.model}, and {what} is something else: "
                f"{'; '.join(found)}. Nothing is promised of it. Calibrate there: skipstone calibrate; or use the "
                f"bare setting {self.point.setting!r}, or skipstone.load_policy(folder, force=True), without a promise."
            )

    def check_sampler(self, way: str, what: str) -> None:
        """Raise CertificateError for other solver, grid or steps; `way` is spelt as that of a `CalibrationPoint`."""
        if not self.is_unrestricted and way != self.point.way:
            raise CertificateError(
                f"The certificate was made for {self.point.way} (solver / grid / steps), and {what} would run "
                f"{way}: the certificate does not cover it. Use the certified sampler, or the uncertified setting "
                f"{self.point.setting!r}."
            )

    def call_warnings(self, call: Mapping[str, Any]) -> list[str]:
        """Warnings about a call whose arguments differ from the certificate's."""
        mine = dict(self.certificate.call)
        if "num_inference_steps" in mine:
            mine["num_inference_steps"] = self.point.steps
        there = {name: call[name] for name in mine if name in call}
        found = (
            [] if self.is_unrestricted else describe_differences({k: v for k, v in mine.items() if k in there}, there)
        )
        return (
            [f"The certificate does not cover this call: {'; '.join(found)}. Nothing is promised of it."]
            if found
            else []
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the policy, its certificate and its card into a folder; returns it.

        Raises:
            OutputError: the folder cannot be written.
        """
        document = {
            "policy": registry.spell(self),
            "skipstone": __version__,
            "notes": {"target": self.certificate.target},
            "certificate": asdict(self.certificate),
        }
        content = {**self.files, FILE: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()}
        write_files(Path(folder), content)
        return Path(folder)


def write_files(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write files beside their places, and move them there when all are complete. Raises OutputError."""
    parts: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            parts[name] = folder / f".{name}.{os.getpid()}.part"
            parts[name].write_bytes(data)
        for name, part in parts.items():
            os.replace(part, folder / name)
    except OSError as e:
        raise OutputError(f"Cannot save the policy in {folder}: {e.strerror}. Choose another folder.") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def prefix_keys(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """{"scheduler.beta_start": ...} of a scheduler's configuration, which may be empty."""
    return {f"{name}.{key}": value for key, value in found.items()}


def describe_differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], most: int = 3) -> list[str]:
    """'guidance is 3.0 in the certificate and 5.0 here', the first few."""
    plain = [json.loads(json.dumps(dict(one), default=str)) for one in (mine, theirs)]
    names = [n for n in dict.fromkeys((*plain[0], *plain[1])) if plain[0].get(n) != plain[1].get(n)]
    if "pipeline" in names:
        names = ["pipeline"]  # of another kind of model all else is another, too
    found = [
        f"{n} is {_format_value(plain[0].get(n))} in the certificate and {_format_value(plain[1].get(n))} here"
        for n in names
    ]
    return found[:most] + ([f"and {len(found) - most} more"] if len(found) > most else [])


def _format_value(value: Any) -> str:
    text = "not there" if value is None else json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:12]}..."
