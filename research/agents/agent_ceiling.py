"""What the signals of an agent tell of the pace that a sample needs, and what pacing by them adds to pacing all alike.

    python research/agents/agent_ceiling.py --out ceiling            # some ten minutes on one core; resumes
    python research/agents/agent_ceiling.py --out ceiling --write research/agents/agent_ceiling.md

Every sample of the log is run on the network along one fixed schedule up to a certain call, and from there at several
paces: on with the schedule, in shorter steps, in longer ones. That is what an agent could do there, and these are real
outcomes. Then the pace of each sample is chosen by a ridge regression of each pace's utility on what the agent sees at
that call (ranks of all observations, the prompt's axes among them), fitted on other prompts only. Beside it: the best
pace for all, chosen on the same other prompts; and an oracle that knows each sample's outcomes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.actions import ActionSpace
from skipstone_train.agents.environment import Environment
from skipstone_train.agents.episodes import DecisionProcess, SamplePool
from skipstone_train.agents.settings import EnvironmentSettings, build_live_pool
from skipstone_train.agents.trajectory_log import TrajectoryLog

PACES = ("short 0.5", "short 0.75", "continue", "skip 1.5", "skip 2")
PRICES = (0.25, 0.5, 1.0, 2.0)
FOLDS, RIDGE = 12, 200.0
FLOOR, CAP = 10.0, 50.0


def run_at_pace(
    pool: SamplePool, settings: EnvironmentSettings, calls: int, until: int, pace: str
) -> tuple[Any, Any, Any]:
    """Observations at call `until`, qualities and calls of samples that go on at a pace from there."""
    guide = settings.trajectory_log.base_schedules[calls]
    moves = ActionSpace((*PACES, "stop 1"), first=1, calls=3.0)
    solver, utility = settings.trajectory_log.build_solver(), Utility(1.0, FLOOR, CAP)
    process = DecisionProcess(pool, solver, moves, settings.observation, [(1.0, guide)], utility)
    env = Environment(process, len(pool), True)
    seen, _ = env.reset(seed=0)
    shown = np.zeros_like(seen)
    quality, cost = np.full(len(pool), np.nan), np.zeros(len(pool))
    decisions = 0
    while np.isnan(quality).any():
        decisions += 1
        if decisions == until:
            shown = seen.copy()
        masks = env.action_masks()
        wanted = moves.names.index(pace if decisions >= until else "continue")
        actions = np.where(masks[:, wanted], wanted, masks.argmax(1))
        seen, _, ended, _, info = env.step(actions)
        fresh = ended & np.isnan(quality)
        if fresh.any():
            quality[fresh], cost[fresh] = info["final_info"]["quality"][fresh], info["final_info"]["calls"][fresh]
    return shown, quality, cost


def load_or_run(
    out: Path, pool: SamplePool, settings: EnvironmentSettings, calls: int, until: int, name: str
) -> dict[str, Any]:
    """Observations (samples, inputs), qualities and calls (samples, paces); kept in a file each."""
    found: dict[str, list[Any]] = {"quality": [], "calls": []}
    shown = None
    for pace in PACES:
        file = out / f"{name}-{calls}-{until}-{pace.replace(' ', '')}.npz"
        if not file.is_file() or len(np.load(file)["calls"]) != len(pool):  # of another --limit
            print(f"{name}: {calls} calls, from call {until} on {pace} ...", flush=True)
            seen, quality, cost = run_at_pace(pool, settings, calls, until, pace)
            np.savez(file, seen=seen, quality=quality, calls=cost)
        with np.load(file) as kept:
            shown = kept["seen"]
            found["quality"].append(kept["quality"])
            found["calls"].append(kept["calls"])
    return {"seen": shown, **{k: np.stack(v, 1) for k, v in found.items()}}


def ranks(values: Any, among: Any) -> Any:
    """Each column as its place among that of `among`, in [-1/2, 1/2]."""
    ordered = np.sort(among, axis=0)
    places = [np.searchsorted(ordered[:, k], values[:, k], side="right") for k in range(values.shape[1])]
    return np.stack(places, 1) / len(among) - 0.5


def predict_utilities(seen: Any, utility: Any, others: Any) -> Any:
    """Utility of each pace for `others`, by ridge regression on ranks."""
    x, new = ranks(seen, seen), ranks(others, seen)
    centre, spread = x.mean(0), x.std(0)
    x, new = ((a - centre) / np.where(spread > 1e-6, spread, np.inf) for a in (x, new))  # constants tell nothing
    mean = utility.mean(0)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (utility - mean))
    return new @ weights + mean


def evaluate_paces(found: dict[str, Any], prompts: Sequence[str], price: float) -> dict[str, float]:
    """Utility of the best pace for all, of the predicted one and of the oracle's, each fold by the others."""
    utility = np.clip(found["quality"], FLOOR, CAP) - price * found["calls"]
    fold = rankdata([stable_hash(p) for p in prompts], method="dense").astype(int) % FOLDS
    fixed, chosen = np.zeros(len(fold)), np.zeros(len(fold))
    for f in range(FOLDS):
        own = fold == f
        fixed[own] = utility[own][:, utility[~own].mean(0).argmax()]
        best = predict_utilities(found["seen"][~own], utility[~own], found["seen"][own]).argmax(1)
        chosen[own] = utility[own][np.arange(own.sum()), best]
    gain = [float((chosen - fixed)[[p == q for q in prompts]].mean()) for p in dict.fromkeys(prompts)]
    return {
        "fixed": float(fixed.mean()), "signals": float(np.mean(gain)),
        "error": float(np.std(gain, ddof=1) / len(gain) ** 0.5), "oracle": float((utility.max(1) - fixed).mean()),
    }  # fmt: skip


def stable_hash(text: str) -> int:
    """The same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def test_pool(settings: EnvironmentSettings, limit: int) -> tuple[SamplePool, list[str]]:
    """Test prompts on the network, and the ids that `skipstone evaluate agent` gives their samples."""
    from skipstone.engine.drivers import denoise_many
    from skipstone.tuning.grids import path_policy
    from skipstone_train.agents.recording import fine_times

    log, model = settings.trajectory_log, settings.model
    prompts = load_prompts("pebble", limit=limit)
    problems = [model.problem(p.text, 0, grid=log.grid) for p in prompts]
    fine = path_policy(fine_times(model.schedule, log.grid[0], int(log.provenance["fine"])))
    ends = [r.x for r in denoise_many(model.backbone, problems, log.build_solver(), fine)]
    pool = SamplePool(
        model.backbone, problems, ends, log.peak, [p.text for p in prompts], np.ones(len(ends), np.float32)
    )
    return pool, [f"{p.id}:0" for p in prompts]


def report(rows: list[dict[str, Any]], log: TrajectoryLog) -> str:
    """The page."""
    command = (
        "python research/agents/agent_ceiling.py --out ceiling --limit 40 --write research/agents/agent_ceiling.md"
    )
    size = f"{len(log)} samples of {len(set(log.prompts))} tuning prompts"
    head = f"""# What the signals of an agent tell of the pace that a sample needs, on Pebble

`{command}`

{size}, real runs on the network. Utility is
clip(quality, {FLOOR:g}, {CAP:g}) - price x calls, in dB. `signals`: what choosing each sample's pace by the agent's
observations at that call adds to the best pace for all (fitted on other prompts; standard error over prompts).
`oracle`: what knowing each sample's outcomes would add. One decision and one regression are no proof that nothing more
can be told; they are what was tried, on real outcomes.

| schedule | decided at call | price | best pace for all | signals | oracle |
|--|--|--|--|--|--|
"""
    lines = [
        f"| {r['calls']} calls | {r['until']} | {r['price']:g} | {r['fixed']:.2f} | {r['signals']:+.2f} "
        f"(se {r['error']:.2f}) | {r['oracle']:+.2f} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="test prompts to write ceiling.jsonl for; 0 writes none")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = replace(EnvironmentSettings(), guides_from="logged", live=True, relative=False)
    log = settings.trajectory_log
    pool = build_live_pool(settings.model, log, range(len(log)))
    rows, kept = [], {}
    for calls, until in ((11, 4), (11, 6)):
        found = load_or_run(given.out, pool, settings, calls, until, "log")
        kept[calls, until] = found
        rows += [{"calls": calls, "until": until, "price": p, **evaluate_paces(found, log.prompts, p)} for p in PRICES]
    page = report(rows, log)
    print(page)
    (given.out / "ceiling.json").write_text(json.dumps(rows, indent=1) + "\n")
    if given.write:
        given.write.write_text(page)
        given.write.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    if given.limit:
        others, ids = test_pool(settings, given.limit)
        found = load_or_run(given.out, others, settings, 11, 4, "test")
        lines = []
        for price in PRICES:
            train = kept[11, 4]
            utility = np.clip(train["quality"], FLOOR, CAP) - price * train["calls"]
            best = predict_utilities(train["seen"], utility, found["seen"]).argmax(1)
            for i, k in enumerate(best):
                quality, cost = float(found["quality"][i, k]), float(found["calls"][i, k])
                lines.append(json.dumps({"sample": ids[i], "calls": cost, "psnr": quality, "price": price}))
        (given.out / "ceiling.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
