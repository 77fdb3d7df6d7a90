"""The file of a loop: every key is known, every value of its type and in its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from skipstone.calibration.target import Target
from skipstone.errors import SpecError
from skipstone.settings import MAX_STEPS, Ranges, check_settings
from skipstone.yaml_settings import MAX_CHARACTERS, parse_settings

from ..connection import parse_uri
from ..registry import check_name

MAX_PROMPTS, MAX_SEED, MAX_MINUTES = 1_000_000, 2**31 - 1, 100_000
EXAMPLE = "examples/loop/loop.yaml"


@dataclass(frozen=True)
class DrawSettings:
    """Which prompts a round uses, and for what; no prompt is used twice.

    Args:
        prompts: A file, or a set such as pebble-tuning.
        limit: Prompts to take of it, categories alike; 0 takes all.
        tune: How many of them `tune` and `distil` look at.
        held_out: How many of them only `verify` sees; the rest calibrates.
        pictures: Full runs that are drawn for the page.
        seed: Of the division.
    """

    prompts: str
    limit: int = 0
    tune: int = 0
    held_out: int = 40
    pictures: int = 4
    seed: int = 0
    name: ClassVar[str] = "draw"
    ranges: ClassVar[Ranges] = {
        "limit": (0, MAX_PROMPTS), "tune": (0, MAX_PROMPTS), "held_out": (1, MAX_PROMPTS), "pictures": (0, 64),
        "seed": (0, MAX_SEED),
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TuneSettings:
    """`skipstone tune`: grids whose policies `calibrate` tries too.

    Args:
        calls: Of the network, a grid for each.
        fine: Steps of the runs that grids are found in.
    """

    calls: tuple[int, ...] = (8, 10, 12)
    fine: int = 200
    name: ClassVar[str] = "tune"
    ranges: ClassVar[Ranges] = {"calls": (1, MAX_STEPS), "fine": (2, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class DistilSettings:
    """`skipstone distill`: a student that `calibrate` tries too.

    Args:
        steps: Of the student.
        minutes: Of training.
        prompts: What the teacher draws; the model's own training prompts by default.
        method: consistency or progressive.
        options: More words of the command, such as ["--rank", "16"].
    """

    steps: int = 2
    minutes: float = 10.0
    prompts: str = ""
    method: str = "consistency"
    options: tuple[str, ...] = ()
    name: ClassVar[str] = "distil"
    ranges: ClassVar[Ranges] = {"steps": (1, 64), "minutes": (0.1, MAX_MINUTES)}

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class CalibrateSettings:
    """`skipstone calibrate`: a certificate for each quality that the server offers.

    Args:
        qualities: Name -> target, such as {medium: "psnr >= 35 @ 90%"}.
        confidence: That each promise holds, in (0.5, 1).
        policies: Settings to choose from; the model's ladder by default. Those of `tune` and `distil` come on top.
        steps: Of the full run; the model's own by default.
        seed: Of the split and the samples.
    """

    qualities: Mapping[str, str]
    confidence: float = 0.9
    policies: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    name: ClassVar[str] = "calibrate"
    ranges: ClassVar[Ranges] = {"confidence": (0.51, 0.9999), "steps": (1, MAX_STEPS), "seed": (0, MAX_SEED)}

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.qualities:
            raise SpecError("qualities: expected at least one, such as medium: psnr >= 35 @ 90%.")
        for name, target in self.qualities.items():
            check_name(name, "qualities")
            Target.parse(target)


@dataclass(frozen=True)
class VerifySettings:
    """`skipstone audit` on the held-out prompts: what fails is not registered.

    Args:
        false_alarm: Chance that a promise that holds fails here, for each quality.
    """

    false_alarm: float = 0.05
    name: ClassVar[str] = "verify"
    ranges: ClassVar[Ranges] = {"false_alarm": (1e-6, 0.49)}

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class RegisterSettings:
    """What passed, as a version of a name in MLflow's registry.

    Args:
        name: Registered; the loop's own by default.
        alias: That moves to a version whose certificates and weights pass.
    """

    name: str = ""
    alias: str = "champion"

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("alias", self.alias)):
            if value or what == "alias":
                check_name(value, what)


@dataclass(frozen=True)
class DeploySettings:
    """The server that draws by the certificates.

    Args:
        address: Of a server that runs and serves the loop's folder of weights; the loop starts one itself by default.
        admin_key: File with the operator's key of that server.
        port: Of the server that the loop starts; 0 takes a free one.
        audit: Share of the pictures that this server draws again in full, in [0, 1].
        options: More words of `skipstone serve`, such as ["--threads", "1"].
    """

    address: str = ""
    admin_key: str = ""
    port: int = 0
    audit: float = 1.0
    options: tuple[str, ...] = ()
    name: ClassVar[str] = "deploy"
    ranges: ClassVar[Ranges] = {"port": (0, 65535), "audit": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)
        if bool(self.address) != bool(self.admin_key):
            raise SpecError("address and admin_key belong together: a server that runs is reloaded by its operator.")


@dataclass(frozen=True)
class AuditSettings:
    """What is asked of the server, so that it has pictures to draw again in full; and how long its audits are awaited.

    Args:
        prompts: A file, or a set: what users ask for.
        requests: Pictures to ask for; 0 only looks at what the server has audited of its users' pictures.
        together: Requests at the same time.
        minutes: That audits are awaited, at most.
        seed: Of the choice of prompts and of the pictures, which are others in each round.
    """

    prompts: str
    requests: int = 40
    together: int = 4
    minutes: float = 5.0
    seed: int = 0
    name: ClassVar[str] = "audit"
    ranges: ClassVar[Ranges] = {
        "requests": (0, MAX_PROMPTS), "together": (1, 256), "minutes": (0.01, MAX_MINUTES), "seed": (0, MAX_SEED),
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class LoopSettings:
    """A loop.

    Args:
        name: Of the loop, and of the model on the server.
        model: A folder, which the server serves and others may train further; or the name of a model that a package
            brings, which is copied into the loop's folder once.
        folder: Of all that the loop writes.
        track: mlflow, sqlite:///FILE or the URI of a server; a database in the loop's folder by default.
        draw, tune, distil, calibrate, verify, register, deploy, audit: The steps. `tune` and `distil` may be left out.
        rounds: Of one run of the command.
        pause: Minutes between two rounds; after an alarm there is none.

    Raises:
        SpecError: a setting out of range.
    """

    name: str
    draw: DrawSettings
    calibrate: CalibrateSettings
    audit: AuditSettings
    model: str = "pebble"
    folder: str = "loop"
    track: str = ""
    tune: TuneSettings | None = None
    distil: DistilSettings | None = None
    verify: VerifySettings = field(default_factory=VerifySettings)
    register: RegisterSettings = field(default_factory=RegisterSettings)
    deploy: DeploySettings = field(default_factory=DeploySettings)
    rounds: int = 1
    pause: float = 0.0
    ranges: ClassVar[Ranges] = {"rounds": (1, 1_000_000), "pause": (0, MAX_MINUTES)}

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_settings(self)
        if not self.folder.strip():
            raise SpecError("folder: expected a folder, got an empty text.")
        if self.track:
            parse_uri(self.track)
        if self.tune is not None and not self.draw.tune:
            raise SpecError("draw.tune: expected the number of prompts that tune looks at, such as 24, got 0.")

    @property
    def place(self) -> Path:
        """The loop's folder."""
        return Path(self.folder)

    @property
    def registered_name(self) -> str:
        """What its versions are called in the registry."""
        return self.register.name or self.name

    @property
    def tracker(self) -> str:
        """URI of the tracker."""
        return parse_uri(self.track) if self.track else f"sqlite:///{(self.place / 'mlflow.db').resolve()}"


def load_loop(path: Path) -> LoopSettings:
    """The loop of a file.

    Raises:
        SpecError: no such file, no YAML, an unknown key or a value that it does not take.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "no text"
        raise SpecError(f"{path} cannot be read: {why}. Expected the file of a loop, such as {EXAMPLE}.") from None
    return parse_settings(LoopSettings, text, str(path))
