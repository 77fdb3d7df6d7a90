"""Public conformance checks: what every policy, solver, metric and backbone must satisfy."""
