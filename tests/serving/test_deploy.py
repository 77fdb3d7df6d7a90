"""The files of a deployment are well formed, and name options and files that exist; nobody has run them yet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer.main
import yaml

from skipstone import cli

DEPLOY = Path(__file__).parent.parent.parent / "examples" / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_container_starts_a_command_that_exists() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    found = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert found is not None
    words = [*json.loads(found[1]), *read("compose.yaml")["services"]["skipstone"]["command"]]
    assert words[:2] == ["skipstone", "serve"]
    command = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    with command.make_context("serve", words[2:]) as context:  # exits where an option does not exist
        assert context.params["api_keys"] == Path("/keys.txt")


def test_compose_mounts_what_there_is_and_finishes_what_was_accepted() -> None:
    services = read("compose.yaml")["services"]
    build = services["skipstone"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    mounted = [volume.partition(":")[0] for one in services.values() for volume in one["volumes"]]
    assert {name for name in mounted if not (DEPLOY / name).exists()} == {"./keys.txt"}  # the user's own
    targets = read("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert [target.partition(":")[0] for target in targets] == ["skipstone"]


def test_all_of_them_say_that_they_were_not_run() -> None:
    assert all("NOT RUN YET" in path.read_text(encoding="utf-8") for path in DEPLOY.iterdir())
