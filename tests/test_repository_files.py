"""Workflows, forms and the files that a repository has for its visitors: they name what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    for job in read(path)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {}).get("target", [])
        said = re.findall(r"make ([a-z-]+)", " ".join(step.get("run", "") for step in job["steps"]))
        assert set(said) | set(matrix) <= targets()


def test_every_supported_python_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert f">={tested[0]}" == project["requires-python"]
    assert tested == ["3.11", "3.12", "3.13", "3.14"]


def test_only_the_step_that_publishes_may_have_an_identity() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    allowed = {name: job.get("permissions", {}) for name, job in jobs.items()}
    assert allowed == {"build": {}, "publish": {"id-token": "write"}}
    assert jobs["publish"]["needs"] == "build"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_have_what_github_asks_of_them(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_citation_has_what_its_format_asks_for() -> None:
    found = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [author["name"] for author in found["authors"]] == [author["name"] for author in project["authors"]]
    assert found["license"] == project["license"]
