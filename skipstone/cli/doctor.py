"""`skipstone doctor`: what is installed here, what it runs on, and which certificates are valid here."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SkipstoneError
from . import options
from .grouping import grouped

if TYPE_CHECKING:
    from ..evaluation.subject import Subject
    from ..policies.certified import Certified

PACKAGES = ("skipstone-pebble", "skipstone-bench", "skipstone-train")
GIB = 2**30


@dataclass
class Findings:
    """What was found; `problems` are sentences that say what to do."""

    versions: dict[str, str | None] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, float | None] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    certificates: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@grouped
def doctor(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Certificates: folders of skipstone calibrate. Those in this folder by default.", show_default=False
        ),
    ] = None,
    *,
    model: options.ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what is installed, what it runs on, and which certificates are valid here.

    The model is looked up, not loaded. A certificate is held against the model
    that it names, which is loaded for that: same weights, same sampler, no
    alarm of an audit. Exit code 1 where there is a problem.

    [bold]Examples[/bold]

      skipstone doctor
      skipstone doctor mine --model org/name --device cuda
      skipstone doctor --json | jq .problems
    """
    from rich.console import Console

    found = Findings()
    with Console(stderr=True).status("Looking ..."):
        _find_versions(found)
        _find_machine(found)
        _find_model(found, model)
        named = list(folders or [])
        for folder in named or _folders_here():
            found.certificates.append(_find_certificate(folder, model.device, found.problems))
    typer.echo(json.dumps(vars(found), ensure_ascii=False) if as_json else "\n".join(_format(found)))
    if found.problems:
        raise typer.Exit(1)


def _find_versions(found: Findings) -> None:
    """Versions of what the library needs and of its packages; a problem for each that does not meet what it asks."""
    from packaging.requirements import Requirement

    found.versions["python"] = platform.python_version()
    needed = [Requirement(text) for text in requires("skipstone") or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for name in ("skipstone", *(one.name for one in needed), *PACKAGES):
        found.versions[name] = _version(name)
    for one in needed:
        there = found.versions[one.name]
        if there is None or not one.specifier.contains(there, prereleases=True):
            found.problems.append(f"{one.name} {there or 'is not installed'}: pip install '{one.name}{one.specifier}'.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_machine(found: Findings) -> None:
    """The processor, its memory, and the accelerator where there is one. Memory is in GiB."""
    import torch

    from ..evaluation.fingerprint import processor_name

    found.device = {"default": "cuda" if torch.cuda.is_available() else "cpu"}
    found.device |= {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found.device |= {"system": f"{platform.system()} {platform.machine()}"}
    found.device["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found.device["mps"] = torch.backends.mps.is_available()
    found.memory = dict(zip(("total", "available"), _memory(), strict=True))
    for i in range(len(found.device["cuda"])):
        free, total = torch.cuda.mem_get_info(i)
        found.memory |= {f"cuda:{i} total": total / GIB, f"cuda:{i} available": free / GIB}


def _memory() -> tuple[float | None, float | None]:
    """All memory and what is free of it, in GiB; None where the system does not say it."""
    lines = Path("/proc/meminfo")
    if lines.is_file():
        kib = {line.split(":")[0]: line.split()[1] for line in lines.read_text(encoding="utf-8").splitlines()}
        return int(kib["MemTotal"]) * 1024 / GIB, int(kib["MemAvailable"]) * 1024 / GIB
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, None
    except (AttributeError, ValueError, OSError):
        return None, None


def _find_model(found: Findings, chosen: options.ModelOptions) -> None:
    """What the model is and how it would be run; a problem where it cannot be found."""
    from ..evaluation.columns import format_component

    try:
        subject = chosen.subject()
    except SkipstoneError as e:
        found.problems.append(str(e))
        return
    solver, grid, steps = subject.default_sampler
    found.model = {
        "name": subject.name,
        "pipeline": _pipeline_name(subject),
        "steps": steps,
        "solver": format_component(solver),
        "grid": format_component(grid),
        "guidance": subject.guidance,
        "policy": subject.policy,
    }


def _pipeline_name(subject: Subject) -> str | None:
    """The class of a diffusers pipeline; None of a model that runs in the engine's own loop."""
    checkpoint = getattr(subject, "checkpoint", None)
    return checkpoint.kind.__name__ if checkpoint else None


def _folders_here() -> list[Path]:
    """The folders with a certificate in the working folder, and itself where it is one."""
    from ..policies.certificate_files import read_saved_policy
    from ..policies.certified import FILE

    found = []
    for path in sorted([*Path().glob(FILE), *Path().glob(f"*/{FILE}")]):
        try:
            certified = read_saved_policy(str(path)).certificate is not None
        except SkipstoneError:
            certified = True  # damaged: the user is told why
        found += [path.parent] if certified else []
    return found


def _find_certificate(folder: Path, device: str | None, problems: list[str]) -> dict[str, Any]:
    """What a certificate promises and whether it is valid here; a problem where it is not."""
    from ..calibration.audit import has_alarm, load_certified
    from ..calibration.certificate import versions

    found: dict[str, Any] = {"folder": str(folder), "valid": False}
    try:
        certified = load_certified(folder)
        promised = certified.certificate
        found |= {"promise": promised.promise, "confidence": promised.confidence, "model": promised.model}
        found |= {"setting": certified.point.label, "sampler": certified.point.way, "date": promised.date}
        now = versions()
        found["made with"] = {name: was for name, was in promised.versions.items() if now.get(name) != was}
        if has_alarm(folder):
            raise SkipstoneError("An audit has raised the alarm: the promise does not hold any more. Calibrate again.")
        _hold_against_model(certified, folder, device)
    except SkipstoneError as e:
        problems.append(f"{folder}: {e}")
    else:
        found["valid"] = True
    return found


def _hold_against_model(certified: Certified, folder: Path, device: str | None) -> None:
    """Load the model that the certificate names. Raises CertificateError where it is another one by now."""
    from ..evaluation.columns import parse_column
    from .calibrate import certified_subject

    subject = certified_subject(certified, None, device)
    subject.load([subject.resolve_column(parse_column(str(folder), *subject.default_sampler))])


def _format(found: Findings) -> Iterator[str]:
    """The findings as lines of text."""
    installed = {name: there for name, there in found.versions.items() if there is not None}
    yield from _table("versions", installed)
    for name in found.versions.keys() - installed.keys() & set(PACKAGES):
        yield f"  {name}  not installed: pip install 'skipstone[{name.removeprefix('skipstone-')}]'"
    cuda, mps = ", ".join(found.device["cuda"]) or "none", "yes" if found.device["mps"] else "no"
    yield from _table("device", {**found.device, "cuda": cuda, "mps": mps})
    yield from _table("memory", {k: "unknown" if v is None else f"{v:.1f} GiB" for k, v in found.memory.items()})
    yield from _table("model", {k: v for k, v in found.model.items() if v is not None})
    yield "certificates"
    if not found.certificates:
        yield "  none in this folder"
    for one in found.certificates:
        yield f"  {one['folder']}  {'valid' if one['valid'] else 'NOT VALID'}  {one.get('promise', '')}"
        if changed := one.get("made with"):
            yield f"    made with {', '.join(f'{name} {was}' for name, was in changed.items())}"
    yield "problems"
    yield from (f"  {problem}" for problem in found.problems or ("none",))


def _table(title: str, facts: Mapping[str, Any]) -> Sequence[str]:
    """A title, and a line for each fact below it."""
    width = max(map(len, facts), default=0)
    return [title, *(f"  {name:{width}}  {value}" for name, value in facts.items())]
