"""`list`, `check`, `explain`, and the manners of the whole: help without torch, codes, versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from outcome import Shell

import skipstone
from skipstone import registry
from skipstone.settings import describe_setting, field_types


@pytest.mark.parametrize("command", ["", "generate", "compare", "demo", "explain", "list", "check"])
def test_help_teaches_and_loads_no_torch(command: str) -> None:
    code = (
        "import sys\nfrom skipstone import cli\nsys.argv = sys.argv[:1] + sys.argv[1].split() + ['--help']\n"
        "try: cli.main()\nfinally: print(sorted({'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "skipstone" in done.stdout


def test_list_names_what_there_is_with_one_line_each(shell: Shell) -> None:
    done = shell("list", "policies")
    assert done.code == 0
    listed = [*registry.names("policy"), *registry.list_presets("policy")]
    assert [line.split()[0] for line in done.out.splitlines()] == listed
    everything = shell("list").out
    for kind in ("policy", "solver", "grid", "schedule", "metric"):
        for name in registry.names(kind):
            assert f"  {name} " in everything


def test_check_says_ok_for_a_policy_that_keeps_its_promises(shell: Shell) -> None:
    done = shell("check", "third_order(tol=0.05)")
    assert done.code == 0
    assert {line.split()[0] for line in done.out.splitlines()} == {"ok"}


def test_check_takes_a_python_file(shell: Shell, tmp_path: Path) -> None:
    """The policy of the how-to page, as somebody saves it who reads it."""
    page = Path(__file__).parents[2] / "docs" / "howto" / "policy.md"
    (tmp_path / "mine.py").write_text(page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0])
    try:
        done = shell("check", "./mine.py:EveryOther")
    finally:
        registry._KINDS["policy"].pop("every_other", None)
    assert done.code == 0, done.out
    assert {line.split()[0] for line in done.out.splitlines()} == {"ok"}


def test_check_leaves_code_1_for_one_that_does_not(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from skipstone.policies.third_order import ThirdOrder

    monkeypatch.setattr(ThirdOrder, "needs", frozenset())  # a lie: it reads latent_change
    done = shell("check", "third_order(tol=0.5)")
    assert done.code == 1
    assert "FAILED  declares_its_signals" in done.out
    assert "ok      spelling_round_trips" in done.out


@pytest.mark.parametrize("content", [None, "{", '{"format": 99}'])
def test_a_trace_that_cannot_be_read(shell: Shell, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    done = shell("explain", "t.json")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "skipstone generate PROMPT --trace" in done.err


@pytest.mark.parametrize("kind", ["policy", "solver", "grid", "schedule", "metric", "peer"])
def test_list_tells_the_settings_of_every_registered_class(shell: Shell, kind: str) -> None:
    for name in registry.names(kind):
        cls = registry.find_class(kind, name)
        said = shell("list", name).out
        assert registry.first_doc_line(cls) in said
        assert f"Code: {cls.__module__}.{cls.__qualname__}" in said
        for setting, about in field_types(cls).items():
            assert f"  {setting}: {describe_setting(cls, setting)}, " in said, (name, about)
        assert ("Source: " in said) == ("References:" in str(cls.__doc__))


def test_list_has_defaults_meanings_and_whole_sources(shell: Shell) -> None:
    said = shell("list", "stride").out
    assert "tol: a number in [0, 1e9], default 0.004\n      Error of a step allowed" in said
    assert "Source: Hairer, Norsett" in said
    assert "\n  angle); the frame and the blend are ours.\n" in shell("list", "adams").out  # its second line
    assert "preset of policy, stands for adaptive_grid(calls=20)" in shell("list", "safe").out
    assert "fixed @ ddim / own / 20" in shell("list", "addiffusion").out
    assert "certificate: Folder of `skipstone calibrate`." in shell("list", "auto").out
    assert "Did you mean 'stride'?" in shell("list", "strid").err


def test_version_and_unknown_commands(shell: Shell) -> None:
    assert shell("--version").out == f"skipstone {skipstone.__version__}\n"
    assert shell("generat").code == 2
