"""What a request's policy or quality means: specs of strangers are read without opening a file, and held to limits."""

from __future__ import annotations

import ast
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import registry
from ..calibration.target import Target
from ..engine.contracts import Policy
from ..engine.requests import Solver
from ..errors import GuestWarning, SpecError
from ..evaluation.columns import Column, Sampler, parse_column
from ..evaluation.engine_subject import EngineSubject
from ..numerics.grid import Grid
from ..policies.certified import FILE, Certified
from ..policies.storage import is_policy_folder, read_policy
from ..settings import shorten
from .refusals import RequestRefused

STUDENT, CASCADE = "student", "cascade"
FROM_FILES = ("auto", "agent", "by_domain")  # policies made of files: who sends a request must not say which
AUTO = "auto"  # the quality that leaves the choice to the server


@dataclass(frozen=True)
class Setting:
    """How a picture is denoised.

    Args:
        policy, solver, grid, steps: As of a column.
        spec: All of them, to draw the picture again.
        certificate: Name of the certificate that covers it; "" where there is none.
        promise: What the certificate promises, or why there is none.
        target: Of the certificate, in short; "" where there is none.
        calls: Mean that the calibration has measured; infinite where there was none.
        reference: Spec of the run that the certificate compares with; "" where there is none.
        digest: SHA-256 of the certificate's file; "" where there is none.
    """

    policy: Policy
    solver: Solver
    grid: Grid
    steps: int
    spec: str
    certificate: str = ""
    promise: str = ""
    target: str = ""
    calls: float = math.inf
    reference: str = ""
    digest: str = ""

    @property
    def full_calls(self) -> float:
        """What a run without a policy costs."""
        return float(self.steps * self.solver.stages)


@dataclass(frozen=True)
class Choices:
    """What requests may choose from.

    Args:
        default: Of requests that say nothing.
        certificates: Name -> the setting that it covers.
        steps: That a request may ask for at most.
        students: Name -> folder of the students that requests may name.
    """

    subject: EngineSubject
    default: Setting
    certificates: Mapping[str, Setting]
    steps: int
    students: Mapping[str, str] = field(default_factory=dict)

    def choose(self, policy: Policy | str, quality: str) -> Setting:
        """The setting of a request.

        Raises:
            RequestRefused: no such quality or student, a policy made of files, or more steps than are served.
            SpecError: a policy that cannot be understood.
        """
        if quality not in ("", AUTO):
            return self._certified(quality)
        if not policy:
            return self.default
        if isinstance(policy, str):
            found = _make_named_setting(self.subject, policy, self.students)
        else:
            student = policy.network or policy.student
            if student and student not in self.students.values():
                raise _unknown_student(student, self.students)
            found = make_setting(self.subject, policy)
        if found.steps > self.steps:
            raise RequestRefused(f"Expected at most {self.steps} steps, got {found.steps}.", "policy")
        return found

    def withdraw(self, name: str) -> Choices:
        """The choices without a certificate: the fastest other that implies its target stands in, or the full run."""
        left = [one for key, one in self.certificates.items() if one.certificate == key != name]

        def stand_in(setting: Setting) -> Setting:
            if setting.certificate != name:
                return setting
            safer = [one for one in left if _implies(one.target, Target.parse(setting.target))]
            if safer:
                return min(safer, key=lambda one: one.calls)
            why = f"An audit has withdrawn the certificate {name}; this is the run that it compares with."
            return replace(make_setting(self.subject, setting.reference), promise=why, target=setting.target)

        certificates = {key: stand_in(one) for key, one in self.certificates.items()}
        return replace(self, default=stand_in(self.default), certificates=certificates)

    def _certified(self, quality: str) -> Setting:
        """The setting of a certificate by its name, or the fastest that promises a target. Raises RequestRefused."""
        if quality in self.certificates:
            return self.certificates[quality]
        known = ", ".join((AUTO, *(f"{name} ({one.target})" for name, one in self.certificates.items())))
        if "@" not in quality:
            raise RequestRefused(
                f"No certificate is called {shorten(quality)} for this model. Known qualities: {known}. A policy "
                f"without a promise is named by `policy`.",
                "quality",
            )
        asked = Target.parse(quality)
        found = [one for one in self.certificates.values() if one.target and _implies(one.target, asked)]
        if not found:
            raise RequestRefused(f"No certificate promises {shorten(quality)}. Known qualities: {known}.", "quality")
        return min(found, key=lambda one: one.calls)


def cover(setting: Setting, differences: Sequence[str]) -> Setting:
    """The setting of a request that differs from the calibration's in these: no certificate covers it."""
    if not setting.certificate or not differences:
        return setting
    why = f"The certificate {setting.certificate} does not cover this request's {' and '.join(differences)}."
    return replace(setting, certificate="", promise=why)


def _implies(target: str, asked: Target) -> bool:
    """Whether who keeps a target keeps another one, too."""
    try:
        mine = Target.parse(target)
    except SpecError:  # of a metric that the user of `calibrate` brought
        return False
    if (mine.metric, mine.span) != (asked.metric, asked.span) or (mine.fraction is None) != (asked.fraction is None):
        return False
    better = mine.level >= asked.level if asked.relation == ">=" else mine.level <= asked.level
    return better and (mine.fraction or 0.0) >= (asked.fraction or 0.0)


def make_setting(subject: EngineSubject, policy: Policy | str) -> Setting:
    """The setting of a policy or a spec. Raises SpecError."""
    own = subject.default_sampler
    if isinstance(policy, Certified):
        return make_certified_setting(subject, policy, policy.certificate.target)
    column = parse_column(policy if isinstance(policy, str) else registry.spell(policy), *own, read_folders=False)
    if not isinstance(policy, str):
        column = replace(column, policy=policy)
    column = subject.resolve_column(column)
    subject.check_policy(column.effective_policy)
    if column.effective_policy.network or column.effective_policy.student:
        subject.load([column])
    return _from_column(column, "", f"{column.policy_spec} has no certificate.")


def make_certified_setting(subject: EngineSubject, policy: Certified, name: str) -> Setting:
    """The setting that a certificate covers. Raises CertificateError where it is for another model."""
    point = policy.point
    column = replace(parse_column(f"{point.setting} @ {point.way}", *subject.default_sampler), policy=policy)
    subject.load([column])
    setting = _from_column(column, name, policy.certificate.promise)
    certificate = policy.certificate
    return replace(setting, target=certificate.target, calls=point.calls, reference=certificate.reference)


def _from_column(column: Column, certificate: str, promise: str) -> Setting:
    if column.solver is None or column.grid is None or column.policy is None:
        raise SpecError(f"Expected a policy with its own number of steps, got {column.spec!r}.")
    return Setting(column.effective_policy, column.solver, column.grid, column.steps, column.spec, certificate, promise)


def check_default(policy: str) -> None:
    """Raise SpecError for a spec or folder that `read_default` would refuse whatever the model."""
    if is_policy_folder(policy):
        read_policy(policy, allow_sampler=True)
    else:
        parse_column(policy, *Sampler())


def read_default(subject: EngineSubject, policy: str, students: Mapping[str, str] | None = None) -> Setting:
    """The setting of the one who runs the server, who may also name the folder of a policy. Raises SkipstoneError.

    Args:
        subject: The model.
        policy: Spec, name of a student or folder.
        students: Name -> folder.
    """
    if policy in (students or {}):
        return _make_named_setting(subject, policy, students or {})
    if is_policy_folder(policy):
        return make_setting(subject, read_policy(policy, allow_sampler=True))
    return make_setting(subject, policy)


def read_certificates(subject: EngineSubject, folder: Path) -> dict[str, Setting]:
    """The settings of the certificates in the folders of a folder, by the names of these.

    Those that were made on another backend than the model's are left out, with a warning.

    Raises:
        SpecError: one is damaged.
        CertificateError: one is for another model.
    """
    found: dict[str, Setting] = {}
    others: list[str] = []
    on_mlx = subject.settings.get("backend") == "mlx"
    for file in sorted(folder.glob(f"*/{FILE}")):
        policy = read_policy(file.parent, allow_sampler=True)
        if not isinstance(policy, Certified):
            continue
        if policy.is_of_mlx != on_mlx and not policy.is_unrestricted:
            others.append(file.parent.name)
            continue
        setting = make_certified_setting(subject, policy, file.parent.name)
        found[file.parent.name] = replace(setting, digest=hashlib.sha256(file.read_bytes()).hexdigest())
    if others:
        _warn_of_others(subject, others, folder, on_mlx)
    return found


def _warn_of_others(subject: EngineSubject, names: Sequence[str], folder: Path, on_mlx: bool) -> None:
    """Say which certificates are left out, and what to type to have one."""
    made, runs, option = ("torch", "MLX", " --backend mlx") if on_mlx else ("MLX", "torch", "")
    warnings.warn(
        f"Left out, for they were made on {made} and {subject.name} runs on {runs}: the certificates "
        f"{', '.join(names)}. To make one: skipstone calibrate{option} --model {subject.model} --prompts FILE "
        f"--target 'psnr >= 35 @ 90%' --out {folder / 'NAME'}",
        GuestWarning,
        stacklevel=2,
    )


def _make_named_setting(subject: EngineSubject, spec: str, students: Mapping[str, str]) -> Setting:
    """The setting of a spec of a stranger: folders of students stand in it by their names, and come back so.

    Raises:
        RequestRefused: a student that is none of these, or a policy made of files.
        SpecError: a spec that cannot be understood.
    """
    name = spec.partition("@")[0].strip()
    if name in students:
        spec = spec.replace(name, f"{STUDENT}(path={name!r})", 1)
    head, at, way = spec.partition("@")
    used = _check_names(head, students)
    if not used:
        return make_setting(subject, spec)
    folder = students[used]
    inside = ast.unparse(_ReplacePath(folder).visit(registry.parse_expression(head)))
    try:
        found = make_setting(subject, f"{inside}{' @' if at else ''}{way}")
    except SpecError as e:
        raise SpecError(str(e).replace(folder, used)) from None
    hidden = {part: getattr(found, part).replace(repr(folder), repr(used)) for part in ("spec", "promise")}
    return replace(found, **hidden)


class _ReplacePath(ast.NodeTransformer):
    """Puts a folder in place of the name of a student."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        return ast.keyword("path", ast.Constant(self.folder)) if node.arg == "path" else node


def _check_names(head: str, students: Mapping[str, str]) -> str:
    """The student that a spec names, "" for none.

    Raises:
        RequestRefused: a policy that is made of files, or an unknown student.
        SpecError: a policy that is not registered.
    """
    known = (*registry.list_presets("policy"), *registry.names("policy"))
    used: list[str] = []
    for part in registry.split_chain(registry.parse_expression(head), head):
        name = part.func if isinstance(part, ast.Call) else part
        if not isinstance(name, ast.Name):
            raise registry.grammar_error(head)
        if name.id in FROM_FILES:
            raise RequestRefused(f"{name.id} is made of files, which a request cannot name.", "policy")
        if name.id not in known:
            registry.find_class("policy", name.id)
        if name.id in (STUDENT, CASCADE) and isinstance(part, ast.Call):
            used += _texts(part, "path", head)
            for then in _texts(part, "then", head):
                _check_then(then)
    if not used:
        return ""
    if len(set(used)) > 1 or used[0] not in students:
        raise _unknown_student(", ".join(used), students)
    return used[0]


def _check_then(then: str) -> None:
    """Raise RequestRefused for a `then` that runs a student or is made of files; SpecError of an unknown policy."""
    try:
        _check_names(then, {})
    except RequestRefused as e:
        raise RequestRefused(f"cascade: expected `then` to run the model alone. {e}", "policy") from None


def _texts(part: ast.Call, argument: str, head: str) -> list[str]:
    """What a call of `student` or `cascade` has for an argument that is a text. Raises SpecError."""
    if part.args or any(one.arg is None for one in part.keywords):
        raise registry.grammar_error(head)
    given = [one.value for one in part.keywords if one.arg == argument]
    if not all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in given):
        raise registry.grammar_error(head)
    return [str(one.value) for one in given if isinstance(one, ast.Constant)]


def _unknown_student(name: str, students: Mapping[str, str]) -> RequestRefused:
    known = ", ".join(students) or "none"
    return RequestRefused(f"No student {shorten(name)} of this model is served. Known: {known}.", "policy")
