"""`skipstone check`: the public conformance checks on one policy."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    spec: Annotated[
        str, typer.Argument(help="A policy, e.g. 'third_order(tol=0.05) | budget(calls=20)' or ./mine.py:Mine.")
    ],
) -> None:
    """Hold a policy to what policies promise: purity, exact replay, honest cost.

    They are the checks of skipstone.testing, which any package can run on
    policies of its own. A failure leaves exit code 1.

    [bold]Examples[/bold]

      skipstone check "third_order(tol=0.05)"
      skipstone check ./mine.py:Mine
    """
    from .. import registry
    from ..policies.from_file import is_file_spec, load_policy_from_file
    from ..testing import check_id, policy_checks

    policy = load_policy_from_file(spec) if is_file_spec(spec) else registry.parse("policy", spec)
    failed = 0
    for one in policy_checks(policy):
        try:
            one()
        except Exception as e:  # a policy of somebody else may raise anything
            failed += 1
            reason = str(e) if isinstance(e, AssertionError) else f"{type(e).__name__}: {e}"
            typer.echo(f"FAILED  {check_id(one)}: {reason}")
        else:
            typer.echo(f"ok      {check_id(one)}")
    if failed:
        raise typer.Exit(1)
