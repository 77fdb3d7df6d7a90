"""The options of `skipstone serve`."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OutputError, SpecError
from . import options
from .grouping import LAST

if TYPE_CHECKING:
    from ..serving.limits import Limits
    from ..serving.loading import ModelLoader, RunOn
    from ..serving.ray.settings import RaySettings
    from ..serving.shedding import Shedding

MAX_ROWS = 4096
BACKLOG = 2048  # connections that wait to be accepted


@dataclass(frozen=True)
class ModelOptions:
    """What is served."""

    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[=PATH]",
            help="pebble, pebble-dit, or a folder of their format. Repeat it; the first is the default.",
            show_default="pebble",
        ),
    ] = None
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", help="Of requests that name none: a spec, a --student or a folder with a certificate."
        ),
    ] = "balanced"
    students: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="NAME[=PATH]",
            help="A student that requests may name: a shipped one, or a folder of skipstone distill. Repeat it.",
            show_default=False,
        ),
    ] = None

    def loader(self, limits: Limits, measure: bool, networks: NetworkOptions) -> ModelLoader:
        """What loads it. Raises SpecError, MissingPackage."""
        from ..serving.loading import ModelLoader

        models, students = self.models or ["pebble"], self.students or []
        named = read_names("--model", models)
        run_on = networks.run_on(list(named.values()))
        return ModelLoader(named, self.policy, read_names("--student", students), limits, measure, run_on)


@dataclass(frozen=True)
class NetworkOptions(options.BackendOptions):
    """What networks run on, and in which numbers."""

    dtype: options.DtypeOption = field(default="auto", metadata=LAST)

    def run_on(self, models: Sequence[str]) -> RunOn:
        """What all of these models run on. Raises SpecError, MissingPackage."""
        from ..integrations.mlx.available import parse_size
        from ..serving.loading import RunOn

        if not all(self.choose(model) == "mlx" for model in models):
            if self.dtype != "auto":
                raise SpecError("--dtype is for MLX, and this runs on torch: add --backend mlx, or leave it out.")
            return RunOn()
        limit = None if self.memory_limit is None else parse_size(self.memory_limit)
        return RunOn("mlx", self.dtype, self.bits, limit)


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
    audit_state: Annotated[
        Path | None,
        typer.Option(help="Folder of what audits have seen.", show_default="beside each certificate", metavar="DIR"),
    ] = None

    def shedding(self) -> Shedding:
        """When a faster certificate draws."""
        from ..serving.shedding import Shedding

        return Shedding(self.shed, self.shed_at)

    def limits(self) -> Limits:
        """The limits of the server."""
        from ..serving.limits import Limits

        return Limits.from_options(self.queue, self.running, self.max_steps, self.max_pictures, self.per_minute)


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
    admin_keys: Annotated[
        Path | None,
        typer.Option(help="Keys of the operator, for POST /admin/reload.", show_default=False, metavar="FILE"),
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

    def set_threads(self, run_on: RunOn) -> None:
        """Tell torch, where a number was said. Raises SpecError where nothing runs on torch."""
        if self.threads and run_on.on_mlx:
            raise SpecError("--threads is of torch, and this runs on MLX: leave it out.")
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class RayOptions:
    """Several engines, on Ray Serve."""

    ray: Annotated[
        bool, typer.Option("--ray", help="Deploy on Ray: on this machine, or on the cluster of RAY_ADDRESS.")
    ] = False
    replicas: Annotated[int, options.number("--replicas", least=1, most=1000, help="Engines, at least.")] = 1
    max_replicas: Annotated[
        int, options.number("--max-replicas", least=0, most=1000, help="At most. 0 is as many as --replicas.")
    ] = 0

    def check(self, address: AddressOptions, networks: NetworkOptions) -> None:
        """Raise SpecError for options that do not go together."""
        if self.ray and networks.backend != "torch":
            raise SpecError(f"--ray: its engines run on torch. Leave it out, or --backend {networks.backend}.")
        if not self.ray and (self.replicas > 1 or self.max_replicas):
            raise SpecError("--replicas and --max-replicas are of Ray: add --ray.")
        if self.ray and address.admin_keys is not None:
            raise SpecError("--admin-keys: on Ray, reload by `serve deploy` with another user_config.")

    def settings(
        self, loader: ModelLoader, machine: MachineOptions, address: AddressOptions, limits: LimitOptions
    ) -> RaySettings:
        """What the deployment is told."""
        from ..serving.ray.settings import RaySettings

        return RaySettings(
            models={name: _spell_folder(path) for name, path in loader.models.items()},
            policy=_spell_folder(loader.policy),
            students={name: _spell_folder(path) for name, path in loader.students.items()},
            rows=machine.rows,
            threads=machine.threads,
            replicas=self.replicas,
            max_replicas=self.max_replicas,
            queue=limits.queue,
            running=limits.running,
            max_steps=limits.max_steps,
            max_n=limits.max_pictures,
            per_minute=limits.per_minute,
            shed=limits.shed,
            shed_at=limits.shed_at,
            audit=limits.audit,
            audit_state=_spell_path(limits.audit_state),
            api_keys=_spell_path(address.api_keys),
        )


def _spell_path(path: Path | None) -> str:
    """A path for a process that works in another folder; "" where there is none."""
    return "" if path is None else str(path.resolve())


def _spell_folder(text: str) -> str:
    """The same for a text that may be a folder."""
    return _spell_path(Path(text)) if Path(text).is_dir() else text


def read_names(option: str, given: list[str]) -> dict[str, str]:
    """Name -> path, of NAME, PATH or NAME=PATH. Raises SpecError for a name that is given twice."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        name = name if equals else Path(one).name
        if not name or name in found or (equals and not path):
            raise SpecError(f"{option}: expected NAME, PATH or NAME=PATH, each name once, got {one!r}.")
        found[name] = path if equals else one
    return found
