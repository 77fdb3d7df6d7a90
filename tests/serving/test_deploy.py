"""The files of a deployment are well formed, and name options and files that exist; nobody has run them yet."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from skipstone import cli
from skipstone.serving.ray.settings import ENGINE, INGRESS, RaySettings

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
    files = {name for name in mounted if name.startswith(".")}
    assert {name for name in files if not (DEPLOY / name).exists()} == {"./keys.txt"}  # the user's own
    assert set(mounted) - files == set(read("compose.yaml")["volumes"]) == {"state"}
    targets = read("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert [target.partition(":")[0] for target in targets] == ["skipstone"]


def test_the_containers_folder_for_audits_is_the_servers_own() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert "mkdir /state && chown server /state" in text
    assert text.index("chown server") < text.index("USER server") < text.index("VOLUME /state")
    command = read("compose.yaml")["services"]["skipstone"]["command"]
    assert command[command.index("--audit-state") + 1] == "/state"


def applications() -> list[tuple[str, Any]]:
    return [
        ("serve.yaml", read("serve.yaml")),
        ("rayservice.yaml", yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])),
    ]


@pytest.mark.parametrize(("name", "config"), applications(), ids=["serve", "rayservice"])
def test_what_ray_is_given_is_understood(name: str, config: Any) -> None:
    """The builder exists, its arguments are known, and the deployments are those that it makes."""
    [application] = config["applications"]
    module, function = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    settings = RaySettings.read(application["args"])
    assert settings.replicas > 1
    assert "autoscaling_config" in settings.scaling
    assert {one["name"] for one in application["deployments"]} <= {ENGINE, INGRESS}
    assert application["route_prefix"] == "/"
    host = config["http_options"]["host"]
    assert host == "127.0.0.1" or settings.api_keys


@pytest.mark.parametrize(("name", "config"), applications(), ids=["serve", "rayservice"])
def test_rays_own_schema_takes_it(name: str, config: Any) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not in this environment: make test-ray")
    found = schema.ServeDeploySchema.model_validate(config)
    assert found.applications[0].import_path == "skipstone.serving.ray.application:build"
    known = set(schema.ServeDeploySchema.model_fields)
    assert set(config) <= known  # it ignores what it does not know
    assert set(config["applications"][0]) <= set(schema.ServeApplicationSchema.model_fields)
    assert set(config["applications"][0]["deployments"][0]) <= set(schema.DeploymentSchema.model_fields)


def test_the_rayservice_is_of_kuberays_form() -> None:
    """The names of its sample; its own schema is in the operator's repository."""
    service = read("rayservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert set(service["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    cluster = service["spec"]["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    [workers] = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    settings = RaySettings.read(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        [container] = group["template"]["spec"]["containers"]
        [mount] = container["volumeMounts"]
        assert settings.api_keys.startswith(mount["mountPath"])
        assert [volume["name"] for volume in group["template"]["spec"]["volumes"]] == [mount["name"]]
    [container] = workers["template"]["spec"]["containers"]
    assert settings.cpus <= container["resources"]["requests"]["cpu"]  # an engine fits into a worker
    assert settings.max_replicas <= workers["maxReplicas"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] >= settings.drain_s


def test_what_was_not_run_says_so() -> None:
    run = {"serve.yaml"}  # by make test-ray
    said = {path.name for path in DEPLOY.iterdir() if "NOT RUN YET" in path.read_text(encoding="utf-8")}
    assert said == {path.name for path in DEPLOY.iterdir() if path.name != "keys.txt"} - run
