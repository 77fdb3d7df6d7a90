"""A bandit for each domain of prompts: which of a few given settings to use, learnt from audits as they come in.

It chooses among settings that were certified before, and makes none. Its memory is a file that processes share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...errors import OutputError, SpecError
from ...evaluation.files import write_file
from ...json_files import JsonReader
from ...settings import Ranges, check_settings

FORMAT = 1
LOCK_SECONDS = 10.0  # for which another process is waited for
MAX_ARMS, MAX_DOMAINS, MAX_BYTES = 64, 1000, 10_000_000
PSEUDO_AUDITS, PSEUDO_PICTURES = 10.0, 1.0  # that what calibration measured of an arm counts as much as
LEAST_SPREAD = 0.02  # of the share of calls that an arm saves
_READER = JsonReader(SpecError, "Remove the file, and the bandit begins anew.", max_bytes=MAX_BYTES)


@dataclass(frozen=True)
class Arm:
    """A setting that may be chosen.

    Args:
        name: What it is called: a spec, or the name of a certificate.
        saved: Share of calls that it saves, as calibration measured it, in [-10, 1].
        failed: Share of prompts on which it missed the target in the calibration, in [0, 1].

    Raises:
        SpecError: a number out of range.
    """

    name: str
    saved: float = 0.0
    failed: float = 0.1
    ranges: ClassVar[Ranges] = {"saved": (-10, 1), "failed": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class ArmCounts:
    """What was seen of an arm in one domain.

    Args:
        pictures: Drawn with it.
        saved, squares: Sums of the shares of calls that they saved, and of the squares.
        audits, failures: Pictures that were held against the full run, and those that missed the target; shares of a
            failure are added where a target is of means.
    """

    pictures: int = 0
    saved: float = 0.0
    squares: float = 0.0
    audits: int = 0
    failures: float = 0.0


@dataclass(frozen=True)
class BanditState:
    """All that a bandit has seen.

    Args:
        counts: Domain -> what was seen of each arm.
        choices: How many were made: the place in the random stream.
    """

    counts: Mapping[str, Sequence[ArmCounts]] = field(default_factory=dict)
    choices: int = 0


@dataclass(frozen=True)
class DomainBandit:
    """Thompson sampling for each domain by itself.

    An arm is worth the share of calls that it saves, less `price` for each picture that misses its target: at 1 a
    picture that fails costs all calls of a full run, as if it were drawn again. A choice draws the worth of every arm
    from what is known of it (a normal mean of savings, a beta share of failures; what calibration measured counts as
    1 picture and 10 audits) and takes the greatest.

    Args:
        arms: At least one; the first of equals is taken.
        price: Of a picture that misses its target, in shares of a full run, in [0, 100].
        seed: Of the choices, >= 0.

    Raises:
        SpecError: no arms, two of one name, or a number out of range.

    References: Thompson 1933; Chapelle & Li 2011, NeurIPS (An empirical evaluation of Thompson sampling).
    """

    arms: tuple[Arm, ...]
    price: float = 1.0
    seed: int = 0
    name: ClassVar[str] = "bandit"

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not 1 <= len(names) <= MAX_ARMS or len(set(names)) < len(names):
            raise SpecError(
                f"bandit: expected 1 to {MAX_ARMS} arms of different names, got {', '.join(names)[:200] or 'none'}."
            )
        if not 0 <= self.price <= 100 or not 0 <= self.seed < 2**63:
            raise SpecError(f"bandit: expected a price in [0, 100] and a seed >= 0, got {self.price} and {self.seed}.")

    def choose(self, state: BanditState, domain: str, among: Sequence[str] = ()) -> tuple[Arm, BanditState]:
        """The arm for the next picture of a domain, and the state after the choice.

        Args:
            state: What was seen.
            domain: Of the prompt; "" where it is not known, which is a domain as any other.
            among: Names of the arms that may be chosen now, others having been withdrawn; () is all.

        Raises:
            SpecError: no arm of these names.
        """
        import numpy as np

        allowed = [k for k, arm in enumerate(self.arms) if not among or arm.name in among]
        if not allowed:
            raise SpecError(
                f"bandit: expected one of the arms {', '.join(arm.name for arm in self.arms)}, got {among!r}."
            )
        random = np.random.Generator(np.random.Philox(key=[self.seed, state.choices]))
        drawn = [self._draw(arm, seen, random) for arm, seen in zip(self.arms, self.seen(state, domain), strict=True)]
        best = max(allowed, key=lambda k: drawn[k])
        return self.arms[best], replace(state, choices=state.choices + 1)

    def record(
        self, state: BanditState, domain: str, arm: str, saved: float | None = None, loss: float | None = None
    ) -> BanditState:
        """The state after one more picture of a domain, or after its audit.

        Args:
            state: What was seen.
            domain: Of the prompt.
            arm: The name of the one that has drawn it.
            saved: Share of calls that it saved; None where the picture was counted before.
            loss: Of the audit, in [0, 1]: 0 where it met the target, 1 where not; None where it was not audited.

        Raises:
            SpecError: an unknown arm, or a number out of range.
        """
        k = next((k for k, one in enumerate(self.arms) if one.name == arm), None)
        if k is None:
            raise SpecError(f"bandit: expected one of the arms {', '.join(a.name for a in self.arms)}, got {arm!r}.")
        if (saved is not None and not -10 <= saved <= 1) or (loss is not None and not 0 <= loss <= 1):
            raise SpecError(f"bandit: expected savings of at most 1 and a loss in [0, 1], got {saved} and {loss}.")
        seen = list(self.seen(state, domain))
        one = seen[k]
        if saved is not None:
            one = replace(one, pictures=one.pictures + 1, saved=one.saved + saved, squares=one.squares + saved**2)
        if loss is not None:
            one = replace(one, audits=one.audits + 1, failures=one.failures + loss)
        seen[k] = one
        return replace(state, counts={**state.counts, domain: tuple(seen)})

    def seen(self, state: BanditState, domain: str) -> tuple[ArmCounts, ...]:
        """What was seen of each arm in a domain."""
        return tuple(state.counts.get(domain, ())) or (ArmCounts(),) * len(self.arms)

    def worth(self, arm: Arm, seen: ArmCounts) -> float:
        """What an arm is expected to be worth, in shares of a full run."""
        failures = (PSEUDO_AUDITS * arm.failed + seen.failures) / (PSEUDO_AUDITS + seen.audits)
        return _mean_saved(arm, seen) - self.price * failures

    def _draw(self, arm: Arm, seen: ArmCounts, random: Any) -> float:
        failed = 0.5 + PSEUDO_AUDITS * arm.failed + seen.failures
        passed = 0.5 + PSEUDO_AUDITS * (1 - arm.failed) + seen.audits - seen.failures
        spread = LEAST_SPREAD
        if seen.pictures > 1:
            variance = (seen.squares - seen.saved**2 / seen.pictures) / (seen.pictures - 1)
            spread = max(LEAST_SPREAD, math.sqrt(max(0.0, variance)))
        saved = random.normal(_mean_saved(arm, seen), spread / math.sqrt(PSEUDO_PICTURES + seen.pictures))
        return float(saved - self.price * random.beta(failed, passed))


def _mean_saved(arm: Arm, seen: ArmCounts) -> float:
    return (PSEUDO_PICTURES * arm.saved + seen.saved) / (PSEUDO_PICTURES + seen.pictures)


# -- the file -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Document:
    format: int
    bandit: DomainBandit
    state: BanditState


@dataclass(frozen=True)
class BanditFile:
    """A bandit whose memory is a file; processes that name the same file share it.

        bandit = BanditFile(Path("bandit.json"), DomainBandit((Arm("high", 0.5), Arm("low", 0.7))))
        arm = bandit.choose("texture")
        bandit.record("texture", arm.name, saved=0.68)
        bandit.record("texture", arm.name, loss=0.0)  # when an audit has looked at it

    Args:
        path: Of the file; made with the first choice.
        bandit: That chooses. A file of another one is refused.
    """

    path: Path
    bandit: DomainBandit

    def read(self) -> BanditState:
        """All that was seen. Raises SpecError where the file is damaged, or of another bandit."""
        if not self.path.exists():
            return BanditState()
        where = str(self.path)
        found: _Document = _READER.convert(_Document, _READER.read(self.path), where)
        if found.format != FORMAT:
            raise _READER.fault(f"{where}: expected format {FORMAT}, got {found.format}.")
        if found.bandit != self.bandit:
            raise _READER.fault(
                f"{where}: expected the memory of this bandit, got that of one with other arms or prices."
            )
        _check_state(found.state, self.bandit, where)
        return found.state

    def choose(self, domain: str, among: Sequence[str] = ()) -> Arm:
        """As of `DomainBandit`, with the file. Raises SpecError, OutputError where it cannot be written."""
        with self._locked():
            arm, state = self.bandit.choose(self.read(), domain, among)
            self._write(state)
        return arm

    def record(self, domain: str, arm: str, saved: float | None = None, loss: float | None = None) -> None:
        """As of `DomainBandit`, with the file. Raises SpecError, OutputError where it cannot be written."""
        with self._locked():
            self._write(self.bandit.record(self.read(), domain, arm, saved, loss))

    def _write(self, state: BanditState) -> None:
        if len(state.counts) > MAX_DOMAINS:
            raise SpecError(f"bandit: expected at most {MAX_DOMAINS} domains, got one more.")
        text = json.dumps(asdict(_Document(FORMAT, self.bandit, state)), indent=1, allow_nan=False)
        write_file(self.path, (text + "\n").encode())

    def _locked(self) -> Any:
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS).acquire()
        except (OSError, TimeoutError) as e:
            raise OutputError(f"Cannot write {self.path}: {e}. Choose another place for the bandit's file.") from None


def _check_state(state: BanditState, bandit: DomainBandit, where: str) -> None:
    """Raise SpecError for counts that cannot be."""
    good = state.choices >= 0
    for counts in state.counts.values():
        good = good and len(counts) == len(bandit.arms)
        for one in counts:
            good = good and one.pictures >= 0 and 0 <= one.failures <= one.audits and one.squares >= 0
    if not good:
        raise _READER.fault(f"{where}: expected counts of {len(bandit.arms)} arms in each domain, got others.")
