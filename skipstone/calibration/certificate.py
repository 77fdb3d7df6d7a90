"""Output of a calibration: the certificate, and a README that says in words what it promises, and what not."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..evaluation.columns import Column
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.fingerprint import RESULTS_VERSION, numbers_of, picture_hashes
from ..evaluation.pipeline_subject import RESERVED_ARGUMENTS, PipelineSubject
from ..evaluation.references import EvaluationSample
from ..evaluation.samplers import ddim_eta
from ..evaluation.subject import Subject, local_model
from ..integrations.coverage import describe_argument
from ..integrations.identity import identity, scheduler_to_config
from ..policies.certified import VOCABULARY, CalibrationPoint, Certificate, prefix_keys
from .cache import SampleScore
from .candidates import CandidateSetting
from .prompt_split import promised_of
from .risk import p_value_by_group, risk_interval, split_by_group
from .scores import format_spent, mean_calls
from .target import Target

SHOWN = 0.9  # confidence of intervals where none is asked for


def model_identity(subject: Subject) -> dict[str, Any]:
    """Return the identity of the model, which must be loaded."""
    subject = local_model(subject)
    if isinstance(subject, EngineSubject):
        return identity(subject.embedded)
    assert isinstance(subject, PipelineSubject)
    return identity(subject.pipe)


def scheduler_config_of(subject: Subject, column: Column) -> dict[str, Any]:
    """The scheduler's configuration under this column; empty in the engine, where the column says all."""
    subject = local_model(subject)
    if not isinstance(subject, PipelineSubject):
        return {}
    with subject.adapted(column):
        return scheduler_to_config(subject.pipe.scheduler)


def call_arguments_of(subject: Subject, column: Column) -> dict[str, Any]:
    """Arguments of a pipeline's call that pictures depend on, pictures by a digest; empty in the engine."""
    subject = local_model(subject)
    if not isinstance(subject, PipelineSubject):
        return {}
    defaults = {name: subject.checkpoint.default(name) for name in subject.checkpoint.arguments}
    said = {k: v for k, v in defaults.items() if k not in RESERVED_ARGUMENTS and _plain(v)} | dict(subject.arguments)
    if "guidance_scale" in defaults:
        said["guidance_scale"] = subject.guidance
    if "num_inference_steps" in defaults:
        said["num_inference_steps"] = column.steps
    if subject.image is not None:
        said["image"] = subject.image
    if (eta := ddim_eta(column.solver)) is not None:
        said["eta"] = eta
    return {name: describe_argument(value) for name, value in said.items()}


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def configuration(subject: Subject, column: Column) -> dict[str, Any]:
    """Everything that a full run's pictures depend on, except prompt and seed; the key of a cache."""
    model = {k: v for k, v in model_identity(subject).items() if not k.startswith(VOCABULARY)}  # as 0.1.0 wrote it
    return {
        "model": subject.name,
        **model,
        **prefix_keys("scheduler", scheduler_config_of(subject, column)),
        **prefix_keys("call", call_arguments_of(subject, column)),
        **prefix_keys("settings", subject.settings),
        **picture_hashes(subject),
        "guidance": subject.guidance,
        "full run": column.spec,
        "device": numbers_of(subject.denoisers)[1],
        **versions(),
        "skipstone": RESULTS_VERSION,
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that pictures depend on."""
    return {"skipstone": __version__, "torch": version("torch"), "diffusers": version("diffusers")}


def point(
    candidate: CandidateSetting,
    found: Sequence[SampleScore],
    target: Target,
    confidence: float | None,
    scheduler: Mapping[str, Any],
    tested: bool,
    accepted: bool = False,
    groups: Sequence[str] | None = None,
) -> CalibrationPoint:
    """Return the measured point of a setting, on the prompts that it was drawn on."""
    values = [one.value for one in found]
    span = risk_interval(target, values, confidence or SHOWN)
    failures = sum(not target.meets(value) for value in values) if target.fraction is not None else None
    each: dict[str, dict[str, Any]] = {}
    if groups is not None:
        ps = p_value_by_group(target, values, groups)
        for name, part in split_by_group(values, groups).items():
            each[name] = {"n": len(part), "failures": sum(not target.meets(v) for v in part), "p": ps[name]}
    p = max(p_value_by_group(target, values, groups).values()) if tested and confidence is not None else None
    return CalibrationPoint(
        setting=candidate.column.spec.partition(" @ ")[0],
        way=candidate.column.way,
        steps=candidate.column.steps,
        calls=mean_calls(found),
        value=span.value,
        low=span.low,
        high=span.high,
        n=len(values),
        failures=failures,
        p=p,
        accepted=accepted,
        fixed=candidate.fixed,
        scheduler=scheduler,
        groups=each,
    )


def prompt_lines(search: Sequence[EvaluationSample], test: Sequence[EvaluationSample]) -> bytes:
    """The calibration's own prompts, as JSON Lines that `--prompts` reads."""
    lines = [
        {"id": s.prompt.id, "prompt": s.prompt.text, "category": s.prompt.category, "seed": s.seed, "part": part}
        for part, eval_samples in (("search", search), ("test", test))
        for s in eval_samples
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def today() -> str:
    """Return today's date in the format of certificates."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def describe_measurement(found: CalibrationPoint, target: Target, of: str = "prompts") -> str:
    """'188 of 200 prompts meet it, 94.0 % (at least 90.9 %)', or a mean with its interval."""
    if found.failures is not None:
        return f"{found.n - found.failures} of {found.n} {of} meet it, {found.value:.1%} (at least {found.low:.1%})"
    bound = f"at least {found.low:.4g}" if target.relation == ">=" else f"at most {found.high:.4g}"
    return f"{found.value:.4g} in the mean of {found.n} {of} ({bound})"


def describe_promise(certificate: Certificate) -> str:
    """The promise in one sentence."""
    sure = (
        f"with confidence {certificate.confidence:.0%}"
        if certificate.confidence
        else "in the mean over calibrations, without a confidence"
    )
    draw = ", over the draw of the seeds" if promised_of(certificate.prompts) == "seeds" else ""
    return f"{certificate.best.label}: {certificate.promise}, {sure}{draw}."


def render_card(certificate: Certificate, target: Target) -> bytes:
    """README.md of a certified policy."""
    best, about = certificate.best, certificate.prompts
    saved = 1 - best.calls / certificate.full_calls
    of = promised_of(about)
    same = "seed" if of == "seeds" else "prompt and seed"
    against = f"the run `{certificate.reference}` of the same {same}" if certificate.reference else "nothing"
    p_said = "" if best.p is None else f" p = {best.p:.3g}."
    return f"""# {certificate.target}

**{describe_promise(certificate)}**

`{best.setting}` on {certificate.model}, {best.way} (solver / grid / steps): {best.calls:.1f} calls of the network
instead of {certificate.full_calls:g}, {saved:.0%} saved. On the final test {describe_measurement(best, target, of)}.{
        p_said
    }

![The settings that were tried](front.png)

## What is promised

{_promised_to(about)} On this model, under
this configuration: full run {certificate.full}; {_call_text(certificate)}. Pictures are compared with {against};
the metric of the target, nothing else, is promised.
{_groups_text(best)}
{NOT_PROMISED}
## How it was found

{certificate.method}. {about["search"]} {of} chose the order of the settings, {about["test"]}
others tested them. {format_spent(certificate.spent)} were spent. Seed {certificate.seed}, {certificate.date},
{", ".join(f"{k} {v}" for k, v in certificate.versions.items())}.

| setting | calls | {"meets" if target.fraction is not None else "mean"} | {of} | |
|---|--:|--:|--:|---|
{"".join(map(_table_row, certificate.points))}""".encode()


def _promised_to(about: Mapping[str, Any]) -> str:
    """To whom the promise is made: prompts like those of the final test, or seeds drawn as these."""
    if promised_of(about) == "seeds":
        return f"To samples whose seeds are drawn at random, as the {about['test']} of the final test were."
    return (
        f"To prompts that are exchangeable with the {about['test']} of the final test ({about['source']},\n"
        "see prompts.jsonl), each with a seed drawn at random: drawn from the same source, in any order."
    )


NOT_PROMISED = """\
## What is not promised

- Anything of a single picture, of other prompts than those, or of a subset of them.
- Anything on other weights, schedulers, steps, guidance or sizes: `skipstone.adapt` refuses or warns there.
- That it stays so when libraries or hardware change. `skipstone audit` tells: a test that may be run as often as one
  likes.
- That this was the first attempt: one calibration is one test. Who repeats it with other seeds until it passes has no
  promise.
"""


def _call_text(certificate: Certificate) -> str:
    """The arguments of the pipeline's call: 'guidance=3.0, height=512'."""
    arguments = {"guidance": certificate.identity.get("guidance"), **certificate.call}
    return ", ".join(f"{k}={v!r}" for k, v in arguments.items() if v is not None)


def _groups_text(best: CalibrationPoint) -> str:
    """Text on what was measured of each group with a promise of its own; empty if there are no groups."""
    each = "".join(
        f"- {name or '(none)'}: {g['n'] - g['failures']} of {g['n']} prompts meet it, p = {g['p']:.3g}\n"
        for name, g in best.groups.items()
    )
    return f"\nIt holds for each of these groups by itself:\n\n{each}" if each else ""


def _table_row(found: CalibrationPoint) -> str:
    value = f"{found.value:.1%}" if found.failures is not None else f"{found.value:.4g}"
    return f"| {found.label} | {found.calls:.1f} | {value} | {found.n} | {_verdict(found)} |\n"


def _verdict(found: CalibrationPoint) -> str:
    if found.accepted:
        return "promised"
    return "search only" if found.p is None else "not promised"
