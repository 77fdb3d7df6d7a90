"""Public conformance checks: what every policy, solver, metric and backbone must satisfy.

A policy of another package is held to the same standard by three lines:

    @pytest.mark.parametrize("check", policy_checks(MyPolicy()), ids=check_id)
    def test_my_policy(check):
        check()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..engine.trace import letters as letters
from .decisions import Comparison as Comparison
from .decisions import compare_decisions as compare_decisions
from .decisions import states as states
from .policies import check_id as check_id
from .policies import policy_checks as policy_checks

if TYPE_CHECKING:
    from .solvers import solver_checks as solver_checks


def __getattr__(name: str) -> Any:
    if name == "solver_checks":  # its checks measure orders with NumPy: loaded when asked for
        from .solvers import solver_checks

        return solver_checks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
