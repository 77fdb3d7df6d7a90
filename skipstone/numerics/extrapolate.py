"""Polynomial extrapolation of past predictions."""

from __future__ import annotations

from collections.abc import Sequence


def lagrange_weights(nodes: Sequence[float], at: float) -> list[float]:
    """Weights w with sum_j w[j] f(nodes[j]) = p(at), p the polynomial through the nodes.

    Args:
        nodes: Distinct clock values, at least one; their number less one is the order.
        at: Where the polynomial is wanted, on the same clock.
    """
    weights = []
    for j, node in enumerate(nodes):
        w = 1.0
        for k, other in enumerate(nodes):
            if k != j:
                w *= (at - other) / (node - other)
        weights.append(w)
    return weights
