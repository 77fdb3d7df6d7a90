"""Davidson's model of paired comparisons in which ties are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipstone.errors import SpecError

PSEUDO = 0.5  # answers of each kind that are added to every pair where the likelihood has no maximum
STEPS, CLOSE, FAR = 100, 1e-14, 30.0  # of Newton's method; |log| beyond which it runs to infinity
SEPARATED = (
    "the likelihood has no maximum (a row or group of rows never loses, or all are ties): half an answer of each kind "
    "was added to every pair, so that strengths are finite; their size is a matter of that half answer"
)


@dataclass(frozen=True)
class DavidsonFit:
    """Strengths of rows.

    Args:
        log_strengths: log pi of each row; their mean is 0. pi_i / pi_j is wins of i over j for each win of j over i.
        nu: How often there are ties, >= 0; two equal rows tie with chance nu / (2 + nu).
        log_likelihood: Of the answers, without the multinomial coefficients.
        note: Of the fit; empty where there is none.
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


def fit_davidson(counts: Sequence[tuple[int, int, float, float, float]], rows: int) -> DavidsonFit:
    """The maximum likelihood of strengths and of the tie parameter.

        P(i wins) = pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)),  P(tie) = nu sqrt(pi_i pi_j) / (...)

    In log pi and log nu this is a multinomial logit: concave, so that Newton's method finds the one maximum. Without
    any tie nu is 0 and the model is Bradley and Terry's. The likelihood has no maximum where a direction makes no
    answer less and some answer more likely for ever; that is decided exactly, by a linear programme.

    Args:
        counts: (i, j, wins of i, wins of j, ties) of each pair that was compared, weights >= 0.
        rows: How many there are, >= 2.

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
    if not is_connected(pairs, rows):
        raise SpecError("Expected rows that a chain of comparisons connects: others have no common scale.")
    kinds = 3 if n[:, 2].any() else 2
    separated = _is_separated(_features(pairs, rows, kinds), n[:, :kinds])
    if separated:
        kinds, n = 3, n + PSEUDO
    X = _features(pairs, rows, kinds)
    found = _maximize(X, n[None, :, :kinds])[0]
    if np.isnan(found).any():
        raise SpecError("Davidson's model could not be fitted: are some counts thousands of times as large as others?")
    likelihood = float((n[:, :kinds] * _log_chances(X, found)).sum())
    theta, nu = _centred(found[None], rows, kinds)
    return DavidsonFit(tuple(map(float, theta[0])), float(nu[0]), likelihood, SEPARATED if separated else "")


def fit_resamples(pairs: Sequence[tuple[int, int]], tables: Any, rows: int) -> tuple[Any, Any]:
    """The same fit of many tables of counts at once, for a bootstrap: log pi of each row, then nu; and which had none.

    A likelihood without a maximum shows in estimates beyond exp(+-30), and is fitted with half an answer of each kind,
    as by `fit_davidson`. NaN where no chain of comparisons connects the rows.

    Args:
        pairs: Of rows.
        tables: Wins of the first, wins of the second and ties: tables x pairs x 3.
        rows: How many there are.

    Returns:
        Tables x (rows + 1), and whether half answers were added to each table.
    """
    import numpy as np

    n = np.asarray(tables, float)
    found = np.full((len(n), rows + 1), np.nan)
    asked = n.sum(-1) > 0
    linked = [all(a) or is_connected([p for p, held in zip(pairs, a, strict=True) if held], rows) for a in asked]
    whole = np.array(linked, bool)
    tied = n[:, :, 2].any(1)
    for kinds, those in ((2, whole & ~tied), (3, whole & tied)):
        b = _maximize(_features(pairs, rows, kinds), n[those][:, :, :kinds])
        found[those] = np.column_stack(_centred(b, rows, kinds))
    lost = whole & np.isnan(found).any(1)
    b = _maximize(_features(pairs, rows, 3), n[lost] + PSEUDO * asked[lost][:, :, None])
    found[lost] = np.column_stack(_centred(b, rows, 3))
    return found, lost


def _centred(b: Any, rows: int, kinds: int) -> tuple[Any, Any]:
    """log pi with mean 0, and nu, of many estimates."""
    import numpy as np

    theta = np.concatenate([np.zeros((len(b), 1)), b[:, : rows - 1]], axis=1)
    nu = np.exp(b[:, -1]) if kinds == 3 else np.where(np.isnan(b).any(1), np.nan, 0.0)
    return theta - theta.mean(1, keepdims=True), nu


def is_connected(pairs: Sequence[tuple[int, int]], rows: int) -> bool:
    """Whether comparisons lead from every row to every other."""
    group = list(range(rows))
    for i, j in pairs:
        old, new = group[i], group[j]
        group = [new if g == old else g for g in group]
    return len(set(group)) == 1


def _features(pairs: Sequence[tuple[int, int]], rows: int, kinds: int) -> Any:
    """Of each pair and outcome (2: no ties): what log chances are linear in; the first row's log pi is 0."""
    import numpy as np

    X = np.zeros((len(pairs), 3, rows + 1))
    for k, (i, j) in enumerate(pairs):
        X[k, 0, i] = X[k, 1, j] = X[k, 2, rows] = 1.0
        X[k, 2, [i, j]] = 0.5
    return X[:, :, 1:] if kinds == 3 else X[:, :2, 1:rows]


def _log_chances(X: Any, b: Any) -> Any:
    """Of each pair and outcome, for each estimate on the leading axes of b."""
    from scipy.special import log_softmax

    return log_softmax((X.reshape(-1, X.shape[-1]) @ b[..., None])[..., 0].reshape(*b.shape[:-1], *X.shape[:2]), -1)


def _is_separated(X: Any, n: Any) -> bool:
    """Whether some direction d has (x_seen - x_other) d >= 0 for all answers that were given, and > 0 for one."""
    import numpy as np
    from scipy.optimize import linprog

    steps = np.array([X[k, o] - X[k, p] for k, o in np.argwhere(n > 0) for p in range(X.shape[1]) if p != o])
    A = np.concatenate([-steps, steps])
    b = np.concatenate([np.zeros(len(steps)), np.ones(len(steps))])
    found = linprog(-steps.sum(0), A_ub=A, b_ub=b, bounds=(None, None), method="highs")
    return bool(-found.fun > 1e-6)


def _maximize(X: Any, n: Any) -> Any:
    """Newton's method with halved steps, for many tables of counts at once; NaN where it runs away."""
    import numpy as np

    b, found = np.zeros((len(n), X.shape[2])), np.full((len(n), X.shape[2]), np.nan)
    left, total = np.arange(len(n)), n.sum(-1)
    tiny = 1e-14 * np.eye(X.shape[2])
    for _ in range(STEPS):
        if not len(left):
            break
        at, counts, weight = b[left], n[left], total[left]
        P = np.exp(_log_chances(X, at))
        mean = np.einsum("bko,kod->bkd", P, X)
        slope = np.einsum("bko,kod->bd", counts, X) - np.einsum("bk,bkd->bd", weight, mean)
        spread = X[None] - mean[:, :, None]
        curve = np.einsum("bko,bkod,bkoe->bde", weight[:, :, None] * P, spread, spread)
        scale = weight.sum(1)
        step = np.linalg.solve(curve + scale[:, None, None] * tiny, slope[..., None])[..., 0]
        gain = (slope * step).sum(1)
        b[left] = at + _step_factor(X, counts, at, step)[:, None] * step
        done, gone = gain < CLOSE * scale, np.abs(b[left]).max(1) > FAR
        found[left[done & ~gone]] = b[left[done & ~gone]]
        left = left[~done & ~gone]
    return found


def _step_factor(X: Any, n: Any, at: Any, step: Any) -> Any:
    """How much of each step to take so that the likelihood does not fall."""
    import numpy as np

    def value(b: Any) -> Any:
        return (n * _log_chances(X, b)).sum((1, 2))

    size, least = np.ones(len(at)), value(at) - 1e-9
    for _ in range(30):
        falls = value(at + size[:, None] * step) < least
        if not falls.any():
            break
        size[falls] /= 2
    return size
