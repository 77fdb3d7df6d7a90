"""What a type checker and an editor see of the public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import skipstone
from skipstone.satellites import EXTRAS

STUB = Path(skipstone.__file__).with_name("__init__.pyi")
PROGRAM = """
import skipstone

reveal_type(skipstone.adapt)
reveal_type(skipstone.policy("fixed"))
reveal_type(skipstone.calibrate)
skipstone.adpat
"""


def test_the_stub_has_every_public_name_and_no_other() -> None:
    names = set()
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    assert names == {*skipstone.__all__, *EXTRAS["name"]}


def test_a_type_checker_sees_functions_and_misspelt_names(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True, cwd=STUB.parent.parent)
    said = done.stdout
    assert 'Revealed type is "def (pipe: Any, policy:' in said, said
    assert "skipstone.engine.contracts.Policy" in said
    assert "skipstone.policies.certified.Certified" in said
    assert 'Module has no attribute "adpat"' in said
    assert done.returncode == 1
