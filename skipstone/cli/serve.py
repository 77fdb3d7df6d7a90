"""`skipstone serve`: pictures over HTTP, drawn for many at once."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ModelError, OutputError, SpecError
from . import options
from .grouping import grouped
from .progress import print_warnings, show_status

if TYPE_CHECKING:
    from rich.console import Console

    from ..serving.engine import Engine
    from ..serving.limits import Limits
    from ..serving.models import ServedModel
    from ..serving.shedding import Shedding

SERVE = "serve"  # the extra with what is needed
MAX_ROWS = 4096
BACKLOG = 2048  # connections that wait to be accepted
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class LimitOptions:
    """What is accepted."""

    queue: Annotated[
        int, options.number("--queue", least=1, most=100_000, help="Pictures that wait; more get 429.")
    ] = 256
    running: Annotated[
        int, options.number("--running", least=1, most=10_000, help="Pictures that are denoised at once.")
    ] = 64
    max_steps: Annotated[int, options.number("--max-steps", least=1, most=10_000, help="Of one picture.")] = 200
    max_pictures: Annotated[int, options.number("--max-n", least=1, most=1000, help="Of one request.")] = 10
    per_minute: Annotated[
        int, options.number("--per-minute", least=0, most=1_000_000_000, help="Pictures of each key. 0 is no limit.")
    ] = 0

    shed: Annotated[
        str,
        typer.Option(
            metavar="QUALITY",
            help="Certificate that draws for requests which name nothing, while many wait.",
            show_default=False,
        ),
    ] = ""
    shed_at: Annotated[
        int, options.number("--shed-at", least=1, most=100_000, help="Waiting pictures from which it does.")
    ] = 16

    audit: Annotated[
        float,
        options.number(
            "--audit", least=0, most=1, help="Share of pictures under a certificate, drawn again in idle time."
        ),
    ] = 0.01

    def shedding(self) -> Shedding:
        """When a faster certificate draws."""
        from ..serving.shedding import Shedding

        return Shedding(self.shed, self.shed_at)

    def limits(self) -> Limits:
        """The limits of the server."""
        from ..serving.limits import Limits

        return Limits(
            queue=self.queue,
            running=self.running,
            steps=self.max_steps,
            calls=2 * self.max_steps,
            pictures=self.max_pictures,
            per_minute=self.per_minute or Limits().per_minute,
        )


@dataclass(frozen=True)
class AddressOptions:
    """Where it listens, and to whom."""

    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs --api-keys.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, options.number("--port", least=0, most=65535, help="0 takes a free one.")] = 8000
    api_keys: Annotated[
        Path | None, typer.Option(help="A file with one key a line.", show_default=False, metavar="FILE")
    ] = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check(self) -> None:
        """Raise SpecError where anybody could ask."""
        if self.api_keys is None and not self.is_loopback:
            raise SpecError(
                f"{self.host} is reached from other machines: expected --api-keys FILE, a file with one key a line. "
                f"Make one: openssl rand -hex 16 > keys.txt"
            )

    def listen(self) -> socket.socket:
        """The socket, so that a port that is taken is known before a model is loaded. Raises OutputError."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((self.host, self.port))
            found.listen(BACKLOG)
        except OSError as e:
            found.close()
            raise OutputError(
                f"Cannot listen on {self.host}:{self.port}: {e.strerror or e}. Another port: --port 0 takes a free one."
            ) from None
        return found


@dataclass(frozen=True)
class MachineOptions:
    """How much is done at once."""

    rows: Annotated[
        int, options.number("--rows", least=0, most=MAX_ROWS, help="That enter a network at once. 0 measures it.")
    ] = 0
    threads: Annotated[
        int, options.number("--threads", least=0, most=1024, help="Of torch on a CPU. 0 is torch's choice.")
    ] = 0

    def set_threads(self) -> None:
        """Tell torch, where a number was said."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)


@grouped
def serve(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[=PATH]",
            help="pebble, pebble-dit, or a folder of their format. Repeat it; the first is the default.",
            show_default="pebble",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Of requests that name none: a spec, or a folder with a certificate.")
    ] = "balanced",
    *,
    machine: MachineOptions,
    address: AddressOptions,
    limits: LimitOptions,
) -> None:
    """Serve pictures over HTTP, as OpenAI's images API does.

    Requests share calls of the network and join or leave between two of them;
    each has its own prompt, policy and steps, and its picture is what it would
    be alone. SIGTERM finishes what was accepted. The page at / draws, /metrics
    is for Prometheus, /openapi.json says what a request may have.

    [bold]Examples[/bold]

      skipstone serve
      skipstone serve --model pebble --model pebble-dit --port 0
      skipstone serve --policy mine --host 0.0.0.0 --api-keys keys.txt
    """
    from ..satellites import require_module

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require_module(module, SERVE)
    address.check()
    named = _names(models or ["pebble"])
    machine.set_threads()
    with closing(address.listen()) as listening:
        _serve(named, policy, machine.rows, address, limits, listening)


def _serve(
    named: dict[str, str],
    policy: str,
    rows: int,
    address: AddressOptions,
    limits: LimitOptions,
    listening: socket.socket,
) -> None:
    from rich.console import Console

    from ..serving.api.keys import Keys
    from ..serving.audits import Auditor
    from ..serving.engine import Engine
    from ..serving.metrics import Metrics
    from ..serving.observers import Observers

    console = Console(stderr=True)
    keys = Keys.read(address.api_keys) if address.api_keys else Keys()
    metrics = Metrics()
    with show_status(console, "Loading ..."), print_warnings(console):
        served, measured = _load(named, policy, rows, limits.limits())
        _check_shedding(limits.shed, served)
        auditor = Auditor(limits.audit, on_audit=metrics.on_audit)
        observers = Observers((metrics, auditor))
        engine = Engine(served, limits.limits(), rows or measured, limits.shedding(), observers)
    auditor.start(engine)
    try:
        _run(engine, metrics, keys, address, listening, console)
    finally:
        auditor.close()
        engine.close()


def _names(models: list[str]) -> dict[str, str]:
    """Name -> model, of NAME, PATH or NAME=PATH. Raises SpecError for a name that is given twice."""
    found: dict[str, str] = {}
    for one in models:
        name, equals, path = one.partition("=")
        name = name if equals else Path(one).name
        if not name or name in found or (equals and not path):
            raise SpecError(f"--model: expected NAME, PATH or NAME=PATH, each name once, got {one!r}.")
        found[name] = path if equals else one
    return found


def _check_shedding(quality: str, served: Mapping[str, ServedModel]) -> None:
    """Raise SpecError where no model has the certificate that is to draw while many wait."""
    known = sorted({name for model in served.values() for name in model.choices.certificates})
    if quality and quality not in known:
        raise SpecError(f"--shed: expected a certificate of a model, {' or '.join(known) or 'none'}, got {quality!r}.")


def _load(named: dict[str, str], policy: str, rows: int, limits: Limits) -> tuple[dict[str, ServedModel], int]:
    """The models, and the rows that their networks take at once where `rows` is 0. Raises SkipstoneError."""
    from ..evaluation.models import find_model_package
    from ..serving.measure import choose_memory_format, choose_rows, measure_rows
    from ..serving.models import ServedModel
    from ..serving.settings import check_default

    check_default(policy)
    served: dict[str, ServedModel] = {}
    budgets = []
    for name, path in named.items():
        package = find_model_package(path)
        if package is None:
            raise ModelError(
                f"{path} is no model of a package such as skipstone-pebble, and only those are served. Other pipelines "
                f"are adapted where they run: skipstone.adapt(pipe, policy)."
            )
        model = package.load(path)
        if rows == 0:
            problem = model.problem("a", 0, 1)
            choose_memory_format(model.unet, model.backbone, problem, 16)
            budgets.append(choose_rows(measure_rows(model.backbone, problem, 128)))
        served[name] = ServedModel.prepare(name, model, policy, limits)
    return served, max(budgets, default=rows)


def _run(
    engine: Engine, metrics: Any, keys: Any, address: AddressOptions, listening: socket.socket, console: Console
) -> None:
    """Answer requests until a signal comes, and then finish what was accepted."""
    import uvicorn

    from ..serving.api.app import Site, create_app

    hosts = LOOPBACK_NAMES if address.is_loopback and not keys.digests else ()
    app = create_app(Site(engine, metrics, keys, hosts))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console.print(
        f"Serving {', '.join(engine.models)} at http://{shown}:{port}  ({engine.rows} rows a call)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
    server.run(sockets=[listening])
