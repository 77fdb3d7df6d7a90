"""Certificates as files have them: every field held against its type, and contradictions refused.

A file has no signature: whoever changes all of its numbers so that they agree forges a certificate, and nothing here
notices. What is noticed is a file that is damaged, or changed in one place and not in the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import registry
from ..errors import SpecError
from ..json_files import JsonReader
from .certificate import FIXED_POLICY, CalibrationPoint, Certificate

READER = JsonReader(SpecError, "Restore the file, or make it again: skipstone calibrate, or skipstone.save_policy.")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TARGET = re.compile(rf".*(?P<relation>[<>]=)\s*(?P<level>{NUMBER})\s*@\s*(?:(?P<percent>{NUMBER})\s*%|mean.*)\s*")
SOURCE: Mapping[str, Any] = {  # the fields of `Certificate.source` that commands read
    "model": str,
    "guidance": float | None,
    "settings": tuple[str, ...],
    "dtype": str,
    "image": str | None,
    "as_guest": bool,
    "arguments": Mapping[str, Any] | None,
}
MAX_TARGET, MAX_MESSAGE = 200, 400  # characters
P_TOLERANCE = 1e-6  # relative, between p-values computed by different versions of scipy


@dataclass(frozen=True)
class SavedPolicy:
    """The contents of a policy.json.

    Args:
        policy: Spec.
        skipstone: Version that wrote it.
        notes: Of its maker.
        certificate: Of a calibrated policy.
        digest: `digest` of policy and certificate; "" of files that version 0.1.0 wrote.
        fallback: Spec of the policy for pipelines whose loop `policy` cannot take over; "" for none.
        domains: Domain -> spec, of a folder of `by_domain`, whose general setting is `policy`.
    """

    policy: str
    skipstone: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None
    digest: str = ""
    fallback: str = ""
    domains: Mapping[str, str] = field(default_factory=dict)


def digest(policy: str, certificate: Mapping[str, Any]) -> str:
    """SHA-256 of a policy and its certificate, so that a change of one number by hand is noticed."""
    text = json.dumps([policy, certificate], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_saved_policy(path: str) -> SavedPolicy:
    """The contents of a policy.json.

    Raises:
        SpecError: the file is damaged, or its certificate contradicts itself or its policy.
    """
    document = READER.read(path)
    saved: SavedPolicy = READER.convert(SavedPolicy, document, path)
    certificate = saved.certificate
    if certificate is None:
        return saved
    if saved.domains:
        raise READER.fault(f"{path}: expected a certificate or settings of domains, got both.")
    for name, kind in SOURCE.items():
        if name in certificate.source:
            READER.convert(kind, certificate.source[name], f"{path}: certificate.source.{name}")
    if saved.digest and saved.digest != digest(saved.policy, document["certificate"]):
        raise READER.fault(
            f"{path} was changed after skipstone had written it: its digest is of another policy or certificate."
        )
    if found := next(_contradictions(certificate, saved.policy), ""):
        raise READER.fault(f"{path}: the certificate contradicts itself: {found[:MAX_MESSAGE]}.")
    return saved


def _contradictions(certificate: Certificate, policy: str) -> Iterator[str]:
    """What cannot be true together, in words."""
    target = TARGET.fullmatch(certificate.target) if len(certificate.target) <= MAX_TARGET else None
    if target is None:
        yield f"target: expected 'METRIC >= LEVEL @ PERCENT%' or '@ mean', got {certificate.target!r}"
        return
    if certificate.confidence is not None and not 0.5 < certificate.confidence < 1:
        yield f"confidence: expected a number in (0.5, 1), got {certificate.confidence}"
    if not certificate.full_calls > 0:
        yield f"full_calls: expected a number above 0, got {certificate.full_calls}"
    for i, point in enumerate(certificate.points):
        yield from (f"points[{i}], {point.setting!r}: {said}" for said in _of_point(point, certificate, target))
    if not any(point.accepted for point in certificate.points):
        yield "points: expected an accepted setting, got none"
        return
    chosen = [certificate.choose_point(allowed)[0].setting for allowed in (True, False)]
    spelled = registry.spell(registry.parse("policy", policy))
    if spelled not in [registry.spell(registry.parse("policy", setting)) for setting in chosen]:
        yield f"the policy is {policy!r}, and the promise is made for {chosen[0]!r}"


def _of_point(point: CalibrationPoint, certificate: Certificate, target: re.Match[str]) -> Iterator[str]:
    """Contradictions within one measured setting."""
    steps = point.way.rpartition("/")[2].strip()
    if point.steps < 1 or steps != str(point.steps):
        yield f"{point.steps} steps, and the sampler is {point.way!r}"
    if point.n < 1 or not point.calls >= 0 or not point.low <= point.value <= point.high:
        yield f"{point.n} prompts, {point.calls} calls, a value of {point.value} in {point.low} to {point.high}"
    if point.fixed and point.setting != FIXED_POLICY:
        yield f"a sampler in place of the pipeline's own has the policy {FIXED_POLICY!r}"
    if point.p is not None and point.n != certificate.prompts.get("test", point.n):
        yield f"it was tested on {point.n} prompts, and the test had {certificate.prompts['test']}"
    if (target["percent"] is None) is not (point.failures is None):
        yield f"{point.failures} failures under the target {certificate.target!r}"
        return
    if point.failures is not None:
        yield from _of_share(point, 1 - float(target["percent"]) / 100)
    if point.accepted:
        yield from _of_acceptance(point, certificate.confidence, target)


def _of_share(point: CalibrationPoint, risk: float) -> Iterator[str]:
    """Contradictions of the counts of a share of prompts; its test is made again."""
    assert point.failures is not None
    if not math.isclose(point.value, 1 - point.failures / max(1, point.n), abs_tol=1e-9):
        yield f"{point.failures} failures of {point.n} prompts, and a share of {point.value}"
    groups = list(point.groups.values())
    if any(not {"n", "failures", "p"} <= group.keys() for group in groups):
        yield "groups: expected n, failures and p of each"
        return
    if groups and [sum(g[name] for g in groups) for name in ("n", "failures")] != [point.n, point.failures]:
        yield f"{point.failures} failures of {point.n} prompts, and other sums over its groups"
    if point.p is not None:
        tests = [(g["failures"], g["n"], g["p"]) for g in groups] or [(point.failures, point.n, point.p)]
        for failures, n, p in tests:
            right = _binomial_p(failures, n, risk)
            if not math.isclose(p, right, rel_tol=P_TOLERANCE, abs_tol=1e-300):
                yield f"p = {p} of {failures} failures of {n} prompts, whose exact test has p = {right:.6g}"
        if not math.isclose(point.p, max(p for _, _, p in tests), rel_tol=P_TOLERANCE):
            yield f"p = {point.p}, and another one is the largest of its groups"


def _of_acceptance(point: CalibrationPoint, confidence: float | None, target: re.Match[str]) -> Iterator[str]:
    """Contradictions of a setting that is accepted."""
    if confidence is not None and (point.p is None or not 0 <= point.p <= 1 - confidence + 1e-9):
        yield f"accepted with p = {point.p} at a confidence of {confidence}"
    if target["percent"] is None:
        level, better = float(target["level"]), target["relation"] == ">="
        if point.value < level - 1e-9 * (1 + abs(level)) if better else point.value > level + 1e-9 * (1 + abs(level)):
            yield f"accepted with a mean of {point.value} under a target of {target['relation']} {level:g}"


def _binomial_p(failures: float, n: float, risk: float) -> float:
    """P(Binomial(n, risk) <= failures), the exact p-value of a share of prompts."""
    from scipy.special import bdtr

    return float(bdtr(failures, n, risk)) if n >= 1 and 0 <= failures <= n else math.nan


def saved_document(policy: str, version: str, notes: Mapping[str, Any], certificate: Certificate) -> dict[str, Any]:
    """What a calibrated policy is saved as; `read_saved_policy` inverts it."""
    plain = json.loads(json.dumps(asdict(certificate), allow_nan=False))
    return {
        "policy": policy,
        "skipstone": version,
        "notes": dict(notes),
        "certificate": plain,
        "digest": digest(policy, plain),
    }
