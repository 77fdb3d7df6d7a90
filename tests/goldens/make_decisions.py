"""Regenerate decisions.json: python tests/goldens/make_decisions.py

The decisions of every policy of the package at its default settings on one exact problem. A change of the file is
a change of behaviour: read it before committing it, and say why in the commit message.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skipstone import registry
from skipstone.testing import letters
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

FILE = Path(__file__).with_name("decisions.json")


def decisions() -> dict[str, Any]:
    """Of each policy: one letter an attempt, the calls, and where it landed if not on the next time of the grid."""
    setup = PolicySetup(registry.parse("solver", "ddim"), Mixture(guidance=3.0), 50)
    golden = {}
    for name in registry.names("policy"):
        if registry.find_class("policy", name).__module__.startswith("skipstone."):
            run = setup.run(registry.parse("policy", name)).run
            jumps = {
                str(i): round(a.t_next, 6)
                for i, a in enumerate(run.past)
                if a.t_next != max(g for g in run.grid if g < a.t)
            }
            golden[name] = {"decisions": letters(run), "calls": run.cost, "jumps": jumps}
    return golden


if __name__ == "__main__":
    FILE.write_text(json.dumps(decisions(), indent=1) + "\n", encoding="utf-8")
