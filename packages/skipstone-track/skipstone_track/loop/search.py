"""The steps `tune`, `distil`, `calibrate` and `verify`: the library's own commands, on the parts of `draw`."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from skipstone.policies.certified import Certified

from .records import KEY, sum_of
from .round import Round, StepFailed, StepResult, run_command

SHOWN = 40  # characters of a setting in a line
LOG = "commands.log"  # in the loop's folder: what commands print


def tune_inputs(at: Round) -> Mapping[str, str]:
    """What `tune` depends on."""
    settings = at.settings.tune
    assert settings is not None
    sums = at.records["draw"].details["sha256"]
    return {"settings": sum_of(asdict(settings)), "prompts": sums["tune"], "weights": at.weights, **at.versions}


def tune(at: Round, folder: Path) -> StepResult:
    """Find a grid for each number of calls."""
    settings = at.settings.tune
    assert settings is not None
    calls = [word for count in settings.calls for word in ("--calls", str(count))]
    prompts = at.folders["draw"] / "tune.jsonl"
    command = run_command(
        at.place / LOG,
        *("tune", "--model", str(at.model), "--prompts", str(prompts), "--limit", "0", *calls),
        *("--fine", str(settings.fine), "--no-rivals", "--out", str(folder), "--force"),
    )
    found = [f"path-{count}" for count in sorted(set(settings.calls))]
    count = at.records["draw"].figures["prompts.tune"]
    return StepResult(
        [f"grids of {', '.join(map(str, settings.calls))} calls, found on {count:g} prompts"],
        {"grids": float(len(found))},
        {"policies": [str(folder / name) for name in found]},
        [command],
        [(at.settings.draw.prompts, at.records["draw"].details["sha256"]["tune"], "tuning")],
    )


def distil_inputs(at: Round) -> Mapping[str, str]:
    """What `distil` depends on."""
    settings = at.settings.distil
    assert settings is not None
    return {"settings": sum_of(asdict(settings)), "weights": at.weights, **at.versions}


def distil(at: Round, folder: Path) -> StepResult:
    """Train a student."""
    settings = at.settings.distil
    assert settings is not None
    more = [*(("--prompts", settings.prompts) if settings.prompts else ()), *settings.options]
    command = run_command(
        at.place / LOG,
        *("distill", "--model", str(at.model), "--method", settings.method, "--steps", str(settings.steps)),
        *("--minutes", f"{settings.minutes:g}", "--out", str(folder), *more),
    )
    policy = f"student(path={str(folder.resolve())!r}, steps={settings.steps})"  # of servers in any folder
    lines = [f"a student of {settings.steps} steps, {settings.minutes:g} minutes of training"]
    return StepResult(lines, {"steps": float(settings.steps)}, {"policies": [policy]}, [command])


def calibrate_inputs(at: Round) -> Mapping[str, str]:
    """What `calibrate` depends on."""
    sums = at.records["draw"].details["sha256"]
    return {
        "settings": sum_of(asdict(at.settings.calibrate)),
        "prompts": sums["calibrate"],
        "weights": at.weights,
        "tune": at.output("tune"),
        "distil": at.output("distil"),
        **at.versions,
    }


def calibrate(at: Round, folder: Path) -> StepResult:
    """Find the fastest setting that keeps each promise."""
    policies, commands, lines = _policies(at), [], []
    figures: dict[str, float] = {}
    for name, target in at.settings.calibrate.qualities.items():
        made = _calibrate(at, target, policies)
        made.save_pretrained(folder / name)
        point, full = made.point, made.certificate.full_calls
        commands.append(_command(at, target, policies, folder / name))
        lines.append(f"{name}, {target}: {point.calls:.1f} of {full:g} calls by {_shorten(point.setting)}")
        figures |= {f"{name}.calls": point.calls, f"{name}.value": point.value, f"{name}.full_calls": full}
    used = (at.settings.draw.prompts, at.records["draw"].details["sha256"]["calibrate"], "calibration")
    return StepResult(lines, figures, {"qualities": dict(at.settings.calibrate.qualities)}, commands, [used])


def _shorten(setting: str) -> str:
    """A setting, or its name where it is long."""
    return setting if len(setting) <= SHOWN else f"{setting.partition('(')[0]}(...)"


def _calibrate(at: Round, target: str, policies: list[str]) -> Certified:
    """The fastest setting that keeps a promise. Raises TargetMissedError."""
    from rich.console import Console

    from skipstone.calibration.calibrate import calibrate as run
    from skipstone.calibration.procedure import CalibrationOptions
    from skipstone.cli.progress import print_warnings, progress_bar

    settings, model, console = at.settings.calibrate, str(at.model), Console(stderr=True)
    options = CalibrationOptions(steps=settings.steps, seed=settings.seed, source={"model": model})
    prompts = at.folders["draw"] / "calibrate.jsonl"
    with print_warnings(console), progress_bar(console) as on_progress:
        return run(
            model, prompts, target, confidence=settings.confidence, settings=policies, cache=cache(at),
            on_progress=on_progress, options=options,
        )  # fmt: skip


def _command(at: Round, target: str, policies: list[str], out: Path) -> str:
    """The command that does the same."""
    settings, prompts = at.settings.calibrate, at.folders["draw"] / "calibrate.jsonl"
    words = ["skipstone", "calibrate", "--model", str(at.model), "--prompts", str(prompts), "--target", target]
    words += [word for spec in policies for word in ("--policy", spec)]
    words += ["--steps", str(settings.steps)] if settings.steps else []
    words += ["--confidence", f"{settings.confidence:g}", "--seed", str(settings.seed)]
    return shlex.join([*words, "--cache", str(cache(at)), "--out", str(out)])


def _policies(at: Round) -> list[str]:
    """The settings that calibration chooses from; none where it is the model's ladder alone."""
    found = [str(one) for step in ("tune", "distil") for one in _offered(at, step)]
    if at.settings.calibrate.policies or not found:
        return [*at.settings.calibrate.policies, *found]
    from skipstone.calibration.candidates import candidates
    from skipstone.cli.options import ModelOptions
    from skipstone.evaluation.subject import resolve_sampler

    subject = ModelOptions(str(at.model)).subject()
    sampler = resolve_sampler(subject, None, None, at.settings.calibrate.steps)
    return [*(one.column.spec for one in candidates(subject, sampler)), *found]


def _offered(at: Round, step: str) -> list[str]:
    return list(at.records[step].details["policies"]) if step in at.records else []


def cache(at: Round) -> Path:
    """Folder of full runs of these weights: a certificate's own sum of them looks at a sample of the values only."""
    return at.place / "cache" / at.weights[:KEY]


def certified(folder: Path) -> Certified:
    """The calibrated policy of a folder. Raises SpecError."""
    from skipstone.calibration.audit import load_certified

    return load_certified(folder)


def verify_inputs(at: Round) -> Mapping[str, str]:
    """What `verify` depends on."""
    return {
        "settings": sum_of(asdict(at.settings.verify)),
        "prompts": at.records["draw"].details["sha256"]["held_out"],
        "calibrate": at.output("calibrate"),
        "weights": at.weights,
    }


def verify(at: Round, folder: Path) -> StepResult:
    """Bet against every certificate on prompts that nothing has seen."""
    from rich.console import Console

    from skipstone.calibration.audit import audit
    from skipstone.cli.calibrate import certified_subject
    from skipstone.cli.progress import progress_bar

    prompts = at.folders["draw"] / "held_out.jsonl"
    count = int(at.records["draw"].figures["prompts.held_out"])
    lines, failed = [], list[str]()
    figures: dict[str, float] = {}
    for name in at.settings.calibrate.qualities:
        own = folder / name
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(at.folders["calibrate"] / name, own)
        subject = certified_subject(certified(own), str(at.model), None)
        with progress_bar(Console(stderr=True)) as on_progress:
            found = audit(
                own, subject, samples=count, prompts=str(prompts), false_alarm=at.settings.verify.false_alarm,
                cache=cache(at), on_progress=on_progress,
            )  # fmt: skip
        each = next(iter(found.each.values()))
        met = each.n - sum(loss > 0 for loss in each.state)
        lines.append(f"{name}: {met} of {each.n} held-out prompts meet it, e-value {each.peak:.2g} at most")
        figures |= {f"{name}.e_value": each.peak, f"{name}.met": met / each.n}
        failed += [name] if found.alarm else []
    if failed:
        raise StepFailed(f"{'; '.join(lines)}. The promise of {', '.join(failed)} fails: nothing is registered.")
    used = (at.settings.draw.prompts, at.records["draw"].details["sha256"]["held_out"], "evaluation")
    return StepResult(lines, figures, prompts=[used])
