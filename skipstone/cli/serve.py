"""`skipstone serve`: pictures over HTTP, drawn for many at once."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import SpecError
from ..policies.student import Student
from .grouping import grouped
from .progress import print_warnings, show_status
from .serve_options import AddressOptions, LimitOptions, MachineOptions, ModelOptions, NetworkOptions, RayOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ..serving.api.keys import Keys
    from ..serving.engine import Engine
    from ..serving.loading import ModelLoader
    from ..serving.metrics import Metrics
    from ..serving.models import ServedModel
    from ..serving.ray.settings import RaySettings
    from ..serving.reload import Reloader

SERVE = "serve"  # the extra with what is needed
MEASURED_ROWS = 128  # at most


@grouped
def serve(
    served: ModelOptions,
    networks: NetworkOptions,
    machine: MachineOptions,
    address: AddressOptions,
    limits: LimitOptions,
    cluster: RayOptions,
) -> None:
    """Serve pictures over HTTP, as OpenAI's images API does.

    Requests share calls of the network and join or leave between two of them;
    each has its own prompt, policy and steps, and its picture is what it would
    be alone. SIGTERM finishes what was accepted, SIGHUP reads models, policies
    and certificates again. The page at / draws, /metrics is for Prometheus,
    /openapi.json says what a request may have.

    [bold]Examples[/bold]

      skipstone serve
      skipstone serve --model pebble --model pebble-dit --port 0
      skipstone serve --student pebble-consistency-2
      skipstone serve --policy mine --host 0.0.0.0 --api-keys keys.txt
      skipstone serve --backend mlx --dtype float16
      skipstone serve --ray --replicas 2
    """
    from ..satellites import require_module

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require_module(module, SERVE)
    if cluster.ray:
        require_module("ray", "ray")
    address.check()
    cluster.check(address, networks)
    loader = served.loader(limits.limits(), machine.rows == 0, networks)
    if cluster.ray:
        _serve_on_ray(cluster.settings(loader, machine, address, limits), address)
        return
    machine.set_threads(loader.run_on)
    with closing(address.listen()) as listening:
        _serve(loader, machine.rows, address, limits, listening)


def _serve(
    loader: ModelLoader, rows: int, address: AddressOptions, limits: LimitOptions, listening: socket.socket
) -> None:
    from rich.console import Console

    from ..serving.api.keys import Keys
    from ..serving.audit_state import AuditStates
    from ..serving.audits import Auditor
    from ..serving.engine import Engine
    from ..serving.metrics import Metrics
    from ..serving.observers import Observers
    from ..serving.reload import Reloader

    console = Console(stderr=True)
    keys, admin_keys = (Keys.read(file) if file else Keys() for file in (address.api_keys, address.admin_keys))
    metrics = Metrics()
    auditor = Auditor(limits.audit, AuditStates(folder=limits.audit_state), on_audit=metrics.on_audit)

    def check(models: Mapping[str, ServedModel]) -> None:
        _check_shedding(limits.shed, models)
        auditor.withdraw_known(models)

    with show_status(console, "Loading ..."), print_warnings(console):
        served = loader.load_all()
        check(served)
        rows = rows or _measure_rows(served)
        engine = Engine(served, loader.limits, rows, limits.shedding(), Observers((metrics, auditor)))
    reloader = Reloader(engine, loader, check, metrics.on_reload, metrics.on_change)
    auditor.start(engine)
    reloader.start()
    try:
        _run(engine, Parts(metrics, keys, admin_keys, reloader), address, listening, console)
    finally:
        reloader.close()
        auditor.close()
        engine.close()


def _serve_on_ray(settings: RaySettings, address: AddressOptions) -> None:
    from rich.console import Console

    from ..serving.api.keys import Keys
    from ..serving.ray.command import run

    if address.api_keys:
        Keys.read(address.api_keys)
    with closing(address.listen()) as listening:
        port = listening.getsockname()[1]
    console, host = Console(stderr=True), address.host
    shown = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    line = f"Serving {', '.join(settings.models)} at {shown}  ({settings.replicas} engines on Ray)"
    run(settings, host, port, lambda: console.print(line, markup=False, highlight=False, soft_wrap=True))


@dataclass(frozen=True)
class Parts:
    """What the site has beside its engine."""

    metrics: Metrics
    keys: Keys
    admin_keys: Keys
    reloader: Reloader


def _check_shedding(quality: str, served: Mapping[str, ServedModel]) -> None:
    """Raise SpecError where no model has the certificate that is to draw while many wait."""
    known = sorted({name for model in served.values() for name in model.choices.certificates})
    if quality and quality not in known:
        raise SpecError(f"--shed: expected a certificate of a model, {' or '.join(known) or 'none'}, got {quality!r}.")


def _measure_rows(served: Mapping[str, ServedModel]) -> int:
    """Rows that the networks take at once."""
    from ..evaluation.row_times import choose_rows, measure_rows

    times = [measure_rows(one.model.backbone, one.model.problem("a", 0, 1), MEASURED_ROWS) for one in served.values()]
    return max(map(choose_rows, times))


def _describe_students(engine: Engine) -> str:
    """The students that are served, and the memory of their weights."""
    found = []
    for model in engine.models.values():
        for name, folder in model.choices.students.items():
            network = model.choices.subject.model_of(Student(folder)).unet
            size = sum(one.numel() * one.element_size() for one in network.parameters())
            found.append(f"{name} of {model.name} ({size / 1e6:.1f} MB)")
    return f"Students: {', '.join(found)}" if found else ""


def _describe_network(served: ServedModel) -> str:
    """What a model on MLX runs on, and in which numbers; "" of torch."""
    said = served.choices.subject.settings
    return f"{served.name} runs on MLX, in {said['dtype']}" if said.get("backend") == "mlx" else ""


def _run(engine: Engine, parts: Parts, address: AddressOptions, listening: socket.socket, console: Console) -> None:
    """Answer requests until a signal comes, and then finish what was accepted."""
    import uvicorn

    from ..serving.api.app import LOOPBACK_NAMES, Site, create_app
    from ..serving.api.backend import LocalBackend

    hosts = LOOPBACK_NAMES if address.is_loopback and not parts.keys.digests else ()
    site = Site(LocalBackend(engine), parts.metrics.page, parts.keys, hosts, parts.admin_keys, parts.reloader)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    lines = [f"Serving {', '.join(engine.models)} at http://{shown}:{port}  ({engine.rows} rows a call)"]
    lines += filter(None, [*map(_describe_network, engine.models.values()), _describe_students(engine)])
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    config = uvicorn.Config(create_app(site), log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
