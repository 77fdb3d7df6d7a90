"""The step `audit`: the server is asked for pictures, draws them again in full, and bets against its certificates."""

from __future__ import annotations

from pathlib import Path

from skipstone.calibration.prompt_split import hashed_seed
from skipstone.errors import ServingError
from skipstone.evaluation.prompts import load_prompts, sample_prompts
from skipstone.policies.certified import FILE
from skipstone.serving.fingerprint import CERTIFICATES, weights_fingerprint

from .records import sum_of
from .round import Round, StepResult
from .search import certified
from .server import AuditCount, Server, wait_for_audits

BACKLOG = 60  # pictures that a server lets wait for their audit, nearly; more are left out


def watch(at: Round, folder: Path) -> StepResult:
    """Look at what was deployed before this round: its weights, and its certificates by the server's audits."""
    return _look(at, "watch")


def audit(at: Round, folder: Path) -> StepResult:
    """The same of what this round has deployed; where that is what `watch` has looked at, once is enough."""
    seen = at.records.get("watch")
    if seen is None or at.records["deploy"].details["new"]:
        return _look(at, "audit")
    lines = ["nothing new is deployed: see watch"]
    if seen.details["alarm"]:
        lines.append(
            "nothing that a calibration depends on was changed: give draw prompts like those that are asked for"
        )
    return StepResult(lines, seen.figures, seen.details)


def _look(at: Round, step: str) -> StepResult:
    """Ask for pictures under each certificate, and see what the server's audits say; alarms are in `details`."""
    server, settings = at.server, at.settings.audit
    if server is None:
        raise ServingError("audit: no server runs: the step deploy comes first.")
    alarms = list(filter(None, [describe_change(at, server)]))
    promises = promises_of(at.model)
    before = server.audits()
    prompts = _choose(at, step)
    asked, spent = _ask(at, server, list(promises), prompts)
    count = sum(asked.values())
    now, withdrawn = wait_for_audits(server, before, promises, _wanted(at, asked), 60 * settings.minutes)
    lines = [f"{count} pictures were asked for, none was refused, {spent / count:.1f} calls each"] if count else []
    lines += [_describe(name, found) for name, found in now.items()]
    if withdrawn:
        names = ", ".join(withdrawn)
        alarms.append(f"the promise of {names} does not hold for what is asked; the server has withdrawn it")
    figures = {f"{name}.e_value": found.e_value for name, found in now.items()}
    figures |= {f"{name}.audited": float(found.samples) for name, found in now.items()}
    figures |= {"pictures": float(count), "alarm": float(bool(alarms))}
    used = [(settings.prompts, sum_of({"asked": prompts}), "evaluation")] if prompts else []
    lines += [f"ALARM: {one}" for one in alarms]
    return StepResult(lines, figures, {"alarm": "; ".join(alarms)}, prompts=used)


def promises_of(model: Path) -> dict[str, str]:
    """Certificate -> its promise, of those in a model's folder."""
    folders = sorted(file.parent for file in (model / CERTIFICATES).glob(f"*/{FILE}"))
    return {folder.name: certified(folder).certificate.promise for folder in folders}


def describe_change(at: Round, server: Server) -> str:
    """In which way the weights are not those that the certificates were made for; "" where they are."""
    facts = server.describe()
    deployed = at.deployed or str(facts["fingerprint"])
    if facts["fingerprint"] != deployed:
        return f"the server draws with other weights ({facts['fingerprint'][:12]}) than were deployed ({deployed[:12]})"
    if facts["changed"] and weights_fingerprint(at.model) != deployed:
        return f"the weights in {at.model} are not those that the certificates were made for"
    return ""


def _choose(at: Round, step: str) -> list[tuple[str, int]]:
    """Prompts and seeds to ask for, others in each step of each round.

    The audits go on from round to round: a sample that came again and again would be counted again and again.
    """
    settings, words = at.settings.audit, (str(at.number), step)
    if not settings.requests:
        return []
    found = load_prompts(settings.prompts)
    chosen = sample_prompts(found, min(len(found), settings.requests), hashed_seed(settings.seed, *words))
    seeds = [hashed_seed(settings.seed, *words, str(k)) for k in range(settings.requests)]
    return [(chosen[k % len(chosen)].text, seed) for k, seed in enumerate(seeds)]


def _ask(at: Round, server: Server, names: list[str], prompts: list[tuple[str, int]]) -> tuple[dict[str, int], float]:
    """Certificate -> pictures that were drawn where it was asked for, and calls of all of them."""
    counts, spent = {}, 0.0
    for k, name in enumerate(names):
        if facts := server.draw(prompts[k :: len(names)], name, at.settings.audit.together):
            counts[name] = len(facts)
            spent += sum(float(one["calls"]) for one in facts)
    return counts, spent


def _wanted(at: Round, asked: dict[str, int]) -> dict[str, int]:
    """Certificate -> audits to wait for. A server that others have started audits a share that it does not say."""
    deploy = at.settings.deploy
    if deploy.address or not asked:
        return dict.fromkeys(promises_of(at.model), BACKLOG)
    share = 1.0 if deploy.audit == 1 else deploy.audit / 2  # which of them are audited is chosen at random
    return {name: min(BACKLOG, int(share * count)) for name, count in asked.items()}


def _describe(name: str, count: AuditCount) -> str:
    return f"{name}: {count.samples} drawn again in full, e-value {count.e_value:.3g} (20 is an alarm)"
