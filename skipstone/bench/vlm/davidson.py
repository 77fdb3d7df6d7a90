"""Davidson's model of paired comparisons in which ties are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import SpecError

PSEUDO = 0.5  # answers of each kind that are added to every pair where the likelihood has no maximum
STEPS, CLOSE, FAR = 100, 1e-10, 30.0  # of Newton's method; |log| beyond which it runs to infinity
SEPARATED = (
    "the likelihood has no maximum (a row or group of rows never loses, or all are ties): half an answer of each kind "
    "was added to every pair, so that strengths are finite; their size is a matter of that half answer"
)


@dataclass(frozen=True)
class Davidson:
    """Strengths of rows.

    Args:
        log_strengths: log pi of each row; their mean is 0. pi_i / pi_j is wins of i over j for each win of j over i.
        nu: How often there are ties, >= 0; two equal rows tie with chance nu / (2 + nu).
        log_likelihood: Of the answers, without the multinomial coefficients.
        note: What has to be said of the fit; empty where nothing has.
    """

    log_strengths: tuple[float, ...]
    nu: float
    log_likelihood: float
    note: str = ""

    @property
    def strengths(self) -> tuple[float, ...]:
        """pi of each row; their sum is 1."""
        import numpy as np

        pi = np.exp(np.array(self.log_strengths) - max(self.log_strengths))
        return tuple(float(p) for p in pi / pi.sum())

    def chances(self, i: int, j: int) -> tuple[float, float, float]:
        """Chances that i wins, that j wins, and of a tie."""
        import numpy as np

        half = (self.log_strengths[i] - self.log_strengths[j]) / 2
        a, b = np.exp(half - abs(half)), np.exp(-half - abs(half))
        tie = self.nu * np.exp(-abs(half))
        return float(a / (a + b + tie)), float(b / (a + b + tie)), float(tie / (a + b + tie))


def davidson(counts: Sequence[tuple[int, int, float, float, float]], rows: int, *, check: bool = True) -> Davidson:
    """The maximum likelihood of strengths and of the tie parameter.

        P(i wins) = pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)),  P(tie) = nu sqrt(pi_i pi_j) / (...)

    In log pi and log nu this is a multinomial logit: concave, so that Newton's method finds the one maximum. Without
    any tie nu is 0 and the model is Bradley and Terry's. The likelihood has no maximum where a direction makes no
    answer less and some answer more likely for ever; that is decided exactly, by a linear programme.

    Args:
        counts: (i, j, wins of i, wins of j, ties) of each pair that was compared, weights >= 0.
        rows: How many there are, >= 2.
        check: False leaves out the linear programme, for resamples: a likelihood without a maximum is then told by
            estimates beyond exp(+-30).

    Raises:
        SpecError: fewer than two rows, a count below 0, or rows that no chain of comparisons connects.

    References: Davidson 1970, doi 10.1080/01621459.1970.10481082; Albert, Anderson 1984, doi 10.1093/biomet/71.1.1.
    """
    import numpy as np

    n = np.array([pair[2:] for pair in counts], float).reshape(-1, 3)
    if rows < 2 or (n < 0).any():
        raise SpecError(f"Expected at least 2 rows and counts of at least 0, got {rows} rows and {n.tolist()}.")
    asked = n.sum(1) > 0
    pairs, n = [(int(c[0]), int(c[1])) for c, held in zip(counts, asked, strict=True) if held], n[asked]
    if not connected(pairs, rows):
        raise SpecError("Expected rows that a chain of comparisons connects: others have no common scale.")
    ties = bool(n[:, 2].sum())
    X = _features(pairs, rows, ties)
    found = None
    if not check or not _separated(X, n[:, : X.shape[1]]):
        found = _maximum(X, n[:, : X.shape[1]])
    note = ""
    if found is None:
        note, ties, n = SEPARATED, True, n + PSEUDO
        X = _features(pairs, rows, True)
        found = _maximum(X, n)
    if found is None:  # with all outcomes of all pairs there is a maximum
        raise SpecError("Davidson's model could not be fitted: are there counts of very different size?")
    theta = np.concatenate([[0.0], found[: rows - 1]])
    theta -= theta.mean()
    likelihood = float((n[:, : X.shape[1]] * _log_chances(X, found)).sum())
    return Davidson(tuple(float(t) for t in theta), float(np.exp(found[-1])) if ties else 0.0, likelihood, note)


def connected(pairs: Sequence[tuple[int, int]], rows: int) -> bool:
    """Whether comparisons lead from every row to every other."""
    group = list(range(rows))
    for i, j in pairs:
        old, new = group[i], group[j]
        group = [new if g == old else g for g in group]
    return len(set(group)) == 1


def _features(pairs: Sequence[tuple[int, int]], rows: int, ties: bool) -> Any:
    """Of each pair and outcome: what log chances are linear in; the first row's log pi is 0."""
    import numpy as np

    X = np.zeros((len(pairs), 3, rows + 1))
    for k, (i, j) in enumerate(pairs):
        X[k, 0, i] = X[k, 1, j] = X[k, 2, rows] = 1.0
        X[k, 2, [i, j]] = 0.5
    return X[:, :, 1:] if ties else X[:, :2, 1:rows]


def _log_chances(X: Any, b: Any) -> Any:
    from scipy.special import log_softmax

    return log_softmax(X @ b, axis=1)


def _separated(X: Any, n: Any) -> bool:
    """Whether some direction d has (x_seen - x_other) d >= 0 for all answers that were seen, and > 0 for one."""
    import numpy as np
    from scipy.optimize import linprog

    steps = np.array([X[k, o] - X[k, p] for k, o in np.argwhere(n > 0) for p in range(X.shape[1]) if p != o])
    A = np.concatenate([-steps, steps])
    b = np.concatenate([np.zeros(len(steps)), np.ones(len(steps))])
    found = linprog(-steps.sum(0), A_ub=A, b_ub=b, bounds=(None, None), method="highs")
    return bool(-found.fun > 1e-6)


def _maximum(X: Any, n: Any) -> Any:
    """Newton's method with halved steps; None where it runs away."""
    import numpy as np

    b, total = np.zeros(X.shape[2]), n.sum(1)
    value = (n * _log_chances(X, b)).sum()
    for _ in range(STEPS):
        P = np.exp(_log_chances(X, b))
        mean = np.einsum("ko,kod->kd", P, X)
        slope = np.einsum("ko,kod->d", n, X) - total @ mean
        curve = np.einsum("k,ko,kod,koe->de", total, P, X, X) - np.einsum("k,kd,ke->de", total, mean, mean)
        try:
            step = np.linalg.solve(curve, slope)
        except np.linalg.LinAlgError:
            return None
        gain, size = float(slope @ step), 1.0
        if gain < CLOSE * CLOSE * max(1.0, total.sum()) or not np.isfinite(gain):
            return b if np.isfinite(gain) else None
        while (better := (n * _log_chances(X, b + size * step)).sum()) < value and size > 1e-8:
            size /= 2
        if better <= value and gain < 1e-9 * max(1.0, total.sum()):
            return b  # rounding: nothing is left to gain
        b, value = b + size * step, max(better, value)
        if np.abs(b).max() > FAR:
            return None
    return None
