"""What is generated or shown must be true: the reference page, and the commands and names of the README."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from skipstone import registry

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["reference", "guest"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = runpy.run_path(str(ROOT / "docs" / f"make_{name}.py"))["page"]()
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == page, "run `make docs`"


@pytest.mark.parametrize("kind", ["policy", "solver", "grid", "schedule", "signal", "metric"])
def test_every_registered_class_says_what_it_is(kind: str) -> None:
    for name in registry.names(kind):
        line = registry.first_doc_line(registry.find_class(kind, name))
        assert line.endswith((".", ":")), f"{kind} {name}: {line!r}"
        assert not line.startswith(registry.find_class(kind, name).__name__ + "("), f"{kind} {name} has no docstring"


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", *PAGES],
)
def test_pages_link_to_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 600


def test_the_five_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(code.group(1), "README.md", "exec"), {})
    assert list(tmp_path.glob("*.png"))


def test_the_example_of_a_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """All of its blocks, one after another, as a reader types them."""
    text = (ROOT / "docs" / "module_backbone.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "module_backbone.md", "exec"), names)
    assert names["counter"].rows < 0.9 * 8 * 2 * 50
    assert all(0.5 < float(result.x.norm()) < 2.0 for result in names["full"])  # points near the circle
    assert max(names["distances"]) < 0.05
    assert "calls a sample in place of 50" in capsys.readouterr().out


def test_the_python_page_has_every_public_name() -> None:
    import skipstone

    named = set(
        re.findall(r"^::: skipstone\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named == set(skipstone.__all__)


def test_the_navigation_of_the_site_has_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"([\w/]+\.md)$", config[config.index("nav:") :], re.MULTILINE)
    assert sorted(f"docs/{name}" for name in listed if not name.startswith("source/")) == PAGES
    assert all((ROOT / name.removeprefix("source/")).is_file() for name in listed if name.startswith("source/"))
