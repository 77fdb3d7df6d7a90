"""The bandit of a domain: finds the best arm, begins where it stopped, and shares its file between processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.tuning.domains.bandit import Arm, BanditFile, BanditState, DomainBandit

ARMS = (Arm("careful", 0.5, 0.02), Arm("middle", 0.65, 0.05), Arm("bold", 0.8, 0.1))
TRUTH = {  # domain -> (saved, failed) of each arm: another arm is best in each
    "easy": ((0.5, 0.0), (0.65, 0.0), (0.8, 0.02)),
    "hard": ((0.5, 0.02), (0.65, 0.5), (0.8, 0.9)),
    "": ((0.5, 0.02), (0.65, 0.05), (0.8, 0.4)),
}
BEST = {"easy": "bold", "hard": "careful", "": "middle"}


def play(
    bandit: DomainBandit, state: BanditState, rounds: int, seed: int = 0
) -> tuple[list[tuple[str, str]], BanditState]:
    """Choices of so many rounds, every picture audited."""
    random, chosen = np.random.default_rng(seed), []
    for k in range(rounds):
        domain = list(TRUTH)[k % len(TRUTH)]
        arm, state = bandit.choose(state, domain)
        saved, failed = TRUTH[domain][ARMS.index(arm)]
        loss = float(random.random() < failed)
        state = bandit.record(state, domain, arm.name, saved=saved + 0.02 * random.standard_normal(), loss=loss)
        chosen.append((domain, arm.name))
    return chosen, state


@pytest.mark.parametrize("seed", range(3))
def test_each_domain_comes_to_its_own_best_arm(seed: int) -> None:
    chosen, state = play(DomainBandit(ARMS, seed=seed), BanditState(), 900, seed)
    late = chosen[600:]
    for domain, best in BEST.items():
        assert np.mean([arm == best for d, arm in late if d == domain]) > 0.8, domain
    assert state.choices == 900
    assert sum(one.pictures for counts in state.counts.values() for one in counts) == 900


def test_the_same_seed_chooses_the_same_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    bandit = DomainBandit(ARMS, seed=7)
    whole, _ = play(bandit, BanditState(), 60)
    first, half = play(bandit, BanditState(), 30)
    file = BanditFile(tmp_path / "b.json", bandit)
    file._write(half)
    assert file.read() == half
    again, _ = play(bandit, file.read(), 30)
    assert first == whole[:30]
    assert len(again) == 30
    assert [bandit.choose(file.read(), d)[0] for d in TRUTH] == [bandit.choose(half, d)[0] for d in TRUTH]
    assert play(DomainBandit(ARMS, seed=8), BanditState(), 60)[0] != whole


def test_only_given_arms_are_chosen() -> None:
    bandit, state = DomainBandit(ARMS), BanditState()
    for _ in range(50):
        arm, state = bandit.choose(state, "easy", among=("careful",))
        assert arm.name == "careful"
    with pytest.raises(SpecError, match="expected one of the arms careful, middle, bold"):
        bandit.choose(state, "easy", among=("other",))


@given(st.floats(0, 1), st.floats(-1, 1), st.integers(1, 30))
def test_what_is_expected_of_an_arm_is_between_the_calibration_and_what_was_seen(
    loss: float, saved: float, times: int
) -> None:
    bandit, arm = DomainBandit((Arm("a", 0.5, 0.1),)), Arm("a", 0.5, 0.1)
    state = BanditState()
    before = bandit.worth(arm, bandit.seen(state, "d")[0])
    for _ in range(times):
        state = bandit.record(state, "d", "a", saved=saved, loss=loss)
    now = bandit.worth(arm, bandit.seen(state, "d")[0])
    low, high = sorted((0.5 - saved, 0.0)), sorted((loss - 0.1, 0.0))
    assert before == pytest.approx(0.4)
    assert before - (low[1] + high[1]) - 1e-9 <= now <= before - (low[0] + high[0]) + 1e-9


def test_domains_do_not_learn_from_each_other() -> None:
    bandit = DomainBandit(ARMS)
    state = bandit.record(BanditState(), "hard", "bold", saved=0.8, loss=1.0)
    assert bandit.seen(state, "easy") == bandit.seen(BanditState(), "easy")
    assert bandit.seen(state, "hard")[2].failures == 1.0
    assert bandit.seen(state, "hard")[0] == bandit.seen(BanditState(), "hard")[0]


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Two at once: no record is lost."""
    code = f"""
from pathlib import Path
from skipstone.tuning.domains.bandit import Arm, BanditFile, DomainBandit
file = BanditFile(Path({str(tmp_path / "b.json")!r}), DomainBandit((Arm("a"), Arm("b"))))
for _ in range(40):
    file.record("d", file.choose("d").name, saved=0.5, loss=0.0)
"""
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    state = BanditFile(tmp_path / "b.json", DomainBandit((Arm("a"), Arm("b")))).read()
    assert state.choices == 80
    assert sum(one.pictures for one in state.counts["d"]) == 80
    assert sum(one.audits for one in state.counts["d"]) == 80
    assert {path.name for path in tmp_path.iterdir()} <= {"b.json", "b.lock"}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: "[",
        lambda d: {**d, "format": 2},
        lambda d: {**d, "state": {**d["state"], "choices": -1}},
        lambda d: {**d, "state": {"counts": {"d": []}, "choices": 1}},
        lambda d: {**d, "state": {"counts": {"d": [{"pictures": 1, "audits": 1, "failures": 2.0}] * 3}, "choices": 1}},
        lambda d: {**d, "state": {"counts": {"d": [{"pictures": "many"}] * 3}, "choices": 1}},
        lambda d: {**d, "bandit": {**d["bandit"], "price": 2.0}},
        lambda d: {**d, "bandit": {**d["bandit"], "arms": []}},
    ],
)
def test_a_damaged_file_is_a_sentence(change: object, tmp_path: Path) -> None:
    file = BanditFile(tmp_path / "b.json", DomainBandit(ARMS))
    file.choose("d")
    found = change(json.loads(file.path.read_text()))  # type: ignore[operator]
    file.path.write_text(found if isinstance(found, str) else json.dumps(found))
    with pytest.raises(SpecError):
        file.read()
    with pytest.raises(SpecError):
        file.record("d", "bold", loss=0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DomainBandit(()),
        lambda: DomainBandit((Arm("a"), Arm("a"))),
        lambda: DomainBandit(ARMS, price=-1.0),
        lambda: DomainBandit(ARMS, price=float("nan")),
        lambda: Arm("a", 2.0),
        lambda: Arm("a", 0.5, 1.5),
        lambda: DomainBandit(ARMS).record(BanditState(), "d", "none"),
        lambda: DomainBandit(ARMS).record(BanditState(), "d", "bold", loss=2.0),
        lambda: DomainBandit(ARMS).record(BanditState(), "d", "bold", saved=float("nan")),
    ],
)
def test_numbers_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(SpecError):
        make()  # type: ignore[operator]
