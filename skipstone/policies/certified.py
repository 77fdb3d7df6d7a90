"""A policy with a certificate: what calibration measured, and the configuration it holds for."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .. import __version__, registry
from ..engine.contracts import Chain, Policy
from ..errors import CertificateError, OutputError
from .certificate import FIXED_POLICY
from .certificate import CalibrationPoint as CalibrationPoint
from .certificate import Certificate as Certificate
from .certificate_files import saved_document

FILE = "policy.json"
VOCABULARY = "vocabulary."  # how facts of tokenizers begin
ATTENTION_SCALE = "attention_scale."  # how facts of attention processors with a scale begin, those of IP-Adapters
MLX = "MLX "  # how "pipeline" begins in the identity of a pipeline whose networks run on MLX
LATER = (VOCABULARY, ATTENTION_SCALE)  # certificates of version 0.1.0 lack these, also where the model has them
SHOWN = 40  # characters of a value in a message


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

    @property
    def is_of_mlx(self) -> bool:
        """Whether the certificate was made for networks on MLX, and not on torch."""
        return str(self.certificate.identity.get("pipeline", "")).startswith(MLX)

    def differences(self, identity: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> list[str]:
        """What a model has otherwise than the certificate's, in words; empty where the promise holds for it.

        Args:
            identity: Of what it is to run on: names of `Certificate.identity`, and "scheduler..." of its scheduler.
            known: Facts that the model had when it was held against the certificate, for those the certificate lacks.
        """
        if self.is_unrestricted:
            return []
        certified = {**self.certificate.identity, **prefix_keys("scheduler", self.point.scheduler)}
        mine = {**(known or {}), **certified}
        theirs = {k: v for k, v in identity.items() if k in mine or not k.startswith(LATER)}
        if self.replacement_scheduler:  # the scheduler there is ignored: it brings its own
            mine, theirs = ({k: v for k, v in one.items() if "scheduler." not in k} for one in (mine, theirs))
        return describe_differences(mine, theirs)

    def check(self, identity: Mapping[str, Any], what: str) -> None:
        """Raise CertificateError where this is another model or configuration than the certificate's.

        Args:
            identity: As in `differences`.
            what: To call it in the message.
        """
        if found := self.differences(identity):
            raise CertificateError(
                f"The certificate was made for {self.certificate.model}, and {what} is something else: "
                f"{'; '.join(found)}. Nothing is promised of it. {self._advice(identity)}; or use the bare setting "
                f"{self.point.setting!r}, or skipstone.load_policy(folder, force=True), without a promise."
            )

    def _advice(self, identity: Mapping[str, Any]) -> str:
        """What to type so that a certificate covers a model with this identity."""
        source = self.certificate.source
        if self.is_of_mlx != str(identity.get("pipeline", "")).startswith(MLX):
            return "It was made on " + ("MLX: --backend mlx" if self.is_of_mlx else "torch: leave --backend mlx out")
        from_pipeline = bool(self.point.scheduler)  # the engine's loop has none
        to_pipeline = any(name.startswith("scheduler.") for name in identity)
        if from_pipeline and not to_pipeline:
            return (
                "It was made in a diffusers pipeline. Run it there: --as-guest, in Python skipstone.adapt(pipe, policy)"
            )
        guest = " --as-guest" if source.get("as_guest") or not from_pipeline else ""
        sampler = f"{guest} --solver own --grid own" if to_pipeline else ""
        command = (
            f"skipstone calibrate --model {source.get('model', self.certificate.model)}{sampler} --prompts FILE "
            f"--target {self.certificate.target!r} --out DIR"
        )
        if to_pipeline and not from_pipeline:
            return f"It was made in the engine's loop: leave --as-guest out. To make one of the pipeline: {command}"
        return f"Calibrate there{', which keeps the scheduler of the pipeline' * to_pipeline}: {command}"

    def check_sampler(self, way: str, what: str) -> None:
        """Raise CertificateError for other solver, grid or steps; `way` is spelt as that of a `CalibrationPoint`."""
        if not self.is_unrestricted and way != self.point.way:
            raise CertificateError(
                f"The certificate was made for {self.point.way} (solver / grid / steps), and {what} would run "
                f"{way}: the certificate does not cover it. Leave --solver, --grid and --steps out, which takes the "
                f"certified sampler, or use the uncertified setting {self.point.setting!r}."
            )

    def call_differences(self, call: Mapping[str, Any], changed: Collection[str] = ()) -> list[str]:
        """What a pipeline's call has otherwise than those of the calibration, in words.

        Args:
            call: Its arguments as `describe_argument` gives them, defaults among them.
            changed: Names of those that are not at their defaults, and that pictures depend on.
        """
        if self.is_unrestricted:
            return []
        mine = dict(self.certificate.call)
        if "num_inference_steps" in mine:
            mine["num_inference_steps"] = self.point.steps
        there = {name: call[name] for name in call if name in mine or name in changed}
        return describe_differences({k: v for k, v in mine.items() if k in there}, there)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the policy, its certificate and its card into a folder; returns it.

        Raises:
            OutputError: the folder cannot be written.
        """
        notes = {"target": self.certificate.target}
        document = saved_document(registry.spell(self), __version__, notes, self.certificate)
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
    found = [_describe_difference(n, plain[0].get(n), plain[1].get(n)) for n in names]
    return found[:most] + ([f"and {len(found) - most} more"] if len(found) > most else [])


def _describe_difference(name: str, mine: Any, theirs: Any) -> str:
    if name == "weights" and isinstance(mine, str) and isinstance(theirs, str):
        return f"the weights differ (sha256 {mine[:12]}... in the certificate, {theirs[:12]}... here)"
    return f"{name} is {_format_value(mine)} in the certificate and {_format_value(theirs)} here"


def _format_value(value: Any) -> str:
    text = "not there" if value is None else json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
