"""Short names: read everywhere as what they stand for, and never written."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import skipstone
from skipstone import registry
from skipstone.cli import app
from skipstone.errors import SpecError, UnknownNameError


@pytest.mark.parametrize("name", registry.list_presets("policy"))
def test_a_preset_is_its_spec(name: str) -> None:
    spec, about = registry.list_presets("policy")[name]
    assert registry.parse("policy", name) == registry.parse("policy", spec)
    assert registry.spell(registry.parse("policy", f"{name} | budget")) == f"{spec} | budget"
    assert about.endswith(".")
    assert name not in registry.names("policy")


def test_a_misspelt_preset_is_found() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'balanced'"):
        registry.parse("policy", "balancd")


def test_presets_are_listed() -> None:
    shown = CliRunner().invoke(app, ["list", "policies"]).output
    for name, (spec, about) in registry.list_presets("policy").items():
        assert f"{name} " in shown
        assert about in shown
        assert spec in shown


@pytest.mark.parametrize("name", ["balanced", "error_control"])
def test_whoever_loads_a_policy_by_its_name_is_told_what_to_type(name: str) -> None:
    with pytest.raises(SpecError, match=rf"skipstone\.policy\('{name}'\)"):
        skipstone.load_policy(name)
