"""Regret of the bandit of each domain, on Pebble: `python -m research.domains.bandit`.

Every setting is run once on every prompt (`--draw`; at most some minutes of one core), and the bandit is then played on
the outcomes: pictures are drawn from the test prompts with replacement, a share of them is audited. A picture is worth
the share of calls that it saves, less 1 where it misses the target (it would be drawn again in full). What is known of
the settings beforehand is from the tuning prompts, as a calibration would know it. Regret is per picture, against the
one setting that is best for all prompts of the play in hindsight, and against the best one of each domain. Each of the
plays has prompts of its own, drawn with replacement, so that intervals (2.5 to 97.5 %) hold the choice of prompts too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.tuning.domains.bandit import Arm, BanditState, DomainBandit
from skipstone.tuning.grids import mse_to_psnr

HERE = Path(__file__).parent
OUTCOMES = HERE / "bandit_outcomes.json"
FULL = "fixed @ unipc / trailing / 50"
CALLS = (6, 8, 10, 12, 15, 20)  # of `adaptive_grid`
LEVELS = (35.0, 40.0)  # dB to the full run: those of Pebble's certificates `medium` and `high`
KEPT = 0.9  # share of tuning prompts that a setting must bring to the level, to be among the certified ones
TUNING, TEST, BATCH = 64, 160, 8
PLAYS, PICTURES = 100, 1000
SHARES = (1.0, 0.1)  # of pictures that are audited


class Outcomes(NamedTuple):
    """Of every setting on every prompt.

    Args:
        domains: (prompts,) of the prompts.
        saved, failed: (prompts, settings).
    """

    domains: Any
    saved: Any
    failed: Any

    @property
    def worth(self) -> Any:
        """(prompts, settings)."""
        return self.saved - self.failed

    def take(self, places: Any, settings: Any = slice(None)) -> Outcomes:
        """Some prompts, and some settings."""
        return Outcomes(self.domains[places], self.saved[places][:, settings], self.failed[places][:, settings])


def draw() -> dict[str, Any]:
    """Run every setting on the prompts."""
    subject = EngineSubject("pebble", "pebble")
    found: dict[str, Any] = {"full": FULL, "calls": CALLS}
    for part, count, first in (("pebble-tuning", TUNING, 0), ("pebble", TEST, 1000)):
        prompts = load_prompts(part, limit=count)
        requests = [SampleRequest(prompt.text, first + k) for k, prompt in enumerate(prompts)]
        full, _ = _run(subject, requests, FULL)
        rows = []
        for calls in CALLS:
            pictures, spent = _run(subject, requests, f"adaptive_grid(calls={calls})")
            psnr = [mse_to_psnr(float(((a - b) ** 2).mean())) for a, b in zip(pictures, full, strict=True)]
            rows.append({"calls": spent, "psnr": psnr})
            print(part, calls, round(float(np.mean(spent)), 2), round(float(np.median(psnr)), 1), flush=True)
        found[part] = {"domains": [prompt.category for prompt in prompts], "settings": rows}
    return found


def _run(subject: EngineSubject, requests: Sequence[SampleRequest], spec: str) -> tuple[list[Any], list[float]]:
    column = parse_column(spec, *subject.default_sampler)
    pictures: list[Any] = []
    calls: list[float] = []
    for first in range(0, len(requests), BATCH):
        generated, _ = subject.draw(requests[first : first + BATCH], column)
        pictures += subject.pictures(generated)
        calls += [one.calls for one in generated]
    return pictures, calls


def read(found: Mapping[str, Any], part: str, level: float) -> Outcomes:
    """The outcomes of a part under a target."""
    rows = found[part]["settings"]
    calls, psnr = (np.array([row[name] for row in rows]).T for name in ("calls", "psnr"))
    return Outcomes(np.array(found[part]["domains"]), 1.0 - calls / 50.0, (psnr < level).astype(float))


def play(bandit: DomainBandit, test: Outcomes, share: float, by_domain: bool, seed: int) -> Any:
    """The worth of what a bandit draws for each of `PICTURES` prompts, and the prompts."""
    random = np.random.default_rng(seed)
    state, places, gained = BanditState(), random.integers(0, len(test.domains), PICTURES), []
    audited = random.random(PICTURES) < share
    for place, audit in zip(places, audited, strict=True):
        domain = str(test.domains[place]) if by_domain else ""
        arm, state = bandit.choose(state, domain)
        k = int(arm.name)
        loss = float(test.failed[place, k]) if audit else None
        state = bandit.record(state, domain, arm.name, saved=float(test.saved[place, k]), loss=loss)
        gained.append(test.worth[place, k])
    return np.array(gained), places


def regrets(gained: Any, places: Any, test: Outcomes) -> tuple[float, float]:
    """Per picture, against the best setting for all, and against the best of each domain."""
    worth = test.worth[places]
    one = worth.mean(0).max()
    each = sum(worth[test.domains[places] == d].sum(0).max() for d in np.unique(test.domains[places])) / len(places)
    return float(one - gained.mean()), float(each - gained.mean())


Chooser = Callable[[Outcomes, float, int], tuple[Any, Any]]


def choosers(tuning: Outcomes) -> dict[str, Chooser]:
    """What is compared: bandits, and settings that the tuning prompts have chosen."""
    arms = tuple(
        Arm(str(k), float(tuning.saved[:, k].mean()), float(tuning.failed[:, k].mean()))
        for k in range(tuning.saved.shape[1])
    )

    def bandit(by_domain: bool) -> Chooser:
        return lambda test, share, seed: play(DomainBandit(arms, seed=seed), test, share, by_domain, seed)

    def fixed(by_domain: bool) -> Chooser:
        def choose(test: Outcomes, share: float, seed: int) -> tuple[Any, Any]:
            places = np.random.default_rng(seed).integers(0, len(test.domains), PICTURES)
            best = {
                d: int(tuning.worth[(tuning.domains == d) | (not by_domain)].mean(0).argmax())
                for d in np.unique(test.domains)
            }
            return np.array([test.worth[p, best[test.domains[p]]] for p in places]), places

        return choose

    def blind(test: Outcomes, share: float, seed: int) -> tuple[Any, Any]:
        random = np.random.default_rng(seed)
        places = random.integers(0, len(test.domains), PICTURES)
        return test.worth[places, random.integers(0, test.saved.shape[1], PICTURES)], places

    return {
        "bandit of each domain": bandit(True),
        "one bandit for all": bandit(False),
        "best of the tuning prompts, of each domain": fixed(True),
        "best of the tuning prompts, one for all": fixed(False),
        "any, by chance": blind,
    }


def simulate(tuning: Outcomes, test: Outcomes) -> list[list[str]]:
    """The table of one set of settings."""
    rows = [["", "audited", "worth of a picture", "regret against one setting", "regret against one of each domain"]]
    for name, choose in choosers(tuning).items():
        for share in SHARES if "bandit" in name else (0.0,):
            found = []
            for seed in range(PLAYS):
                places = np.random.default_rng(10_000 + seed).integers(0, len(test.domains), len(test.domains))
                some = test.take(places)
                gained, drawn = choose(some, share, seed)
                found.append([float(gained.mean()), *regrets(gained, drawn, some)])
            shown = [_interval([one[k] for one in found]) for k in range(3)]
            rows.append([name, f"{share:.0%}" if share else "", *shown])
    return rows


def _interval(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
    return f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


def page(found: Mapping[str, Any]) -> str:
    """The tables."""
    lines = ["# The bandit of each domain on Pebble", "", (__doc__ or "").partition("\n\n")[2].strip()]
    for level in LEVELS:
        tuning, test = (read(found, part, level) for part in ("pebble-tuning", "pebble"))
        lines += ["", f"## Target: {level:g} dB", "", *_settings(test, level)]
        certified = np.flatnonzero(1 - tuning.failed.mean(0) >= KEPT)
        for title, chosen in (
            (f"Among the settings that bring {KEPT:.0%} of the tuning prompts to {level:g} dB", certified),
            ("Among all settings", np.arange(len(CALLS))),
        ):
            if len(chosen) < 2:
                lines += ["", f"{title} there are fewer than two."]
                continue
            names = ", ".join(str(CALLS[k]) for k in chosen)
            lines += ["", f"### {title}", "", f"`adaptive_grid(calls=n)` for n = {names}.", ""]
            known, played = (one.take(np.arange(len(one.domains)), chosen) for one in (tuning, test))
            lines += format_table(simulate(known, played), [":--", *["--:"] * 4])
    return "\n".join(lines) + "\n\n    python -m research.domains.bandit --draw\n"


def _settings(test: Outcomes, level: float) -> list[str]:
    rows = [["calls", "domain", "prompts", "calls saved", f"below {level:g} dB", "worth"]]
    for domain in np.unique(test.domains):
        own = test.take(test.domains == domain)
        for k, calls in enumerate(CALLS):
            saved, failed = float(own.saved[:, k].mean()), float(own.failed[:, k].mean())
            rows.append([str(calls), str(domain), str(len(own.domains)), f"{saved:.1%}", f"{failed:.1%}",
                         f"{saved - failed:+.3f}"])  # fmt: skip
    return format_table(rows, ["--:", ":--", *["--:"] * 4])


def main() -> None:
    """Draw where asked, play, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="Run the settings again.")
    asked = parser.parse_args()
    if asked.draw:
        OUTCOMES.write_text(json.dumps(draw()) + "\n", encoding="utf-8")
    text = page(json.loads(OUTCOMES.read_text(encoding="utf-8")))
    (HERE / "bandit.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
