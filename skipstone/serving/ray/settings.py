"""What a deployment is told: `args` of a Serve config file, and what `skipstone serve --ray` makes of its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import SpecError
from ..limits import Limits
from ..loading import ModelLoader
from ..shedding import Shedding

ENGINE, INGRESS = "Engine", "Ingress"  # the deployments


class RaySettings(BaseModel):
    """How the server is deployed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    models: Annotated[dict[str, str], Field(min_length=1, description="Name -> shipped name or folder.")] = {
        "pebble": "pebble"
    }
    policy: Annotated[str, Field(description="Of requests that name none.")] = "balanced"
    students: Annotated[dict[str, str], Field(description="Name -> shipped name or folder.")] = {}
    rows: Annotated[int, Field(ge=0, le=4096, description="That enter a network at once; 0 measures it.")] = 0
    threads: Annotated[int, Field(ge=0, le=1024, description="Of torch on a CPU; 0 is torch's choice.")] = 0

    replicas: Annotated[int, Field(ge=1, le=1000, description="Engines, at least.")] = 1
    max_replicas: Annotated[int, Field(ge=0, le=1000, description="At most; 0 is as many as `replicas`.")] = 0
    pictures_each: Annotated[
        float,
        Field(gt=0, le=10_000, description="Requests that wait or run, of each engine, beyond which one is added."),
    ] = 32.0
    ingresses: Annotated[int, Field(ge=1, le=100, description="Replicas of the HTTP interface.")] = 1
    models_each: Annotated[int, Field(ge=1, le=100, description="Models that an engine holds at once.")] = 3
    cpus: Annotated[float, Field(ge=0, le=1024, description="Of each engine.")] = 1.0
    gpus: Annotated[float, Field(ge=0, le=64, description="Of each engine.")] = 0.0
    drain_s: Annotated[float, Field(ge=1, le=86_400, description="For which a leaving engine may finish.")] = 600.0

    queue: Annotated[int, Field(ge=1, le=100_000, description="Pictures that wait in an engine.")] = 256
    running: Annotated[int, Field(ge=1, le=10_000, description="Pictures that an engine denoises at once.")] = 64
    max_steps: Annotated[int, Field(ge=1, le=10_000, description="Of one picture.")] = 200
    max_n: Annotated[int, Field(ge=1, le=1000, description="Pictures of one request.")] = 10
    per_minute: Annotated[int, Field(ge=0, le=10**9, description="Pictures of each key at each ingress.")] = 0
    shed: Annotated[str, Field(description="Certificate that draws while many wait.")] = ""
    shed_at: Annotated[int, Field(ge=1, le=100_000, description="Waiting pictures from which it does.")] = 16
    audit: Annotated[float, Field(ge=0, le=1, description="Share of pictures drawn again.")] = 0.01
    audit_state: Annotated[str, Field(description="Folder of what audits have seen.")] = ""
    api_keys: Annotated[str, Field(description='File with one key a line; "" where only loopback asks.')] = ""

    @staticmethod
    def read(args: Mapping[str, Any]) -> RaySettings:
        """The settings in the `args` of a config. Raises SpecError."""
        try:
            return RaySettings.model_validate(dict(args))
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part)[:40] for part in first["loc"])
            raise SpecError(f"args.{where}: {first['msg']}. Known: {', '.join(RaySettings.model_fields)}.") from None

    @property
    def limits(self) -> Limits:
        """Of each engine."""
        return Limits.from_options(self.queue, self.running, self.max_steps, self.max_n, self.per_minute)

    @property
    def loader(self) -> ModelLoader:
        """Of each engine."""
        return ModelLoader(self.models, self.policy, self.students, self.limits, measure=self.rows == 0)

    @property
    def shedding(self) -> Shedding:
        """Of each engine."""
        return Shedding(self.shed, self.shed_at)

    @property
    def state_folder(self) -> Path | None:
        """Of what audits have seen."""
        return Path(self.audit_state) if self.audit_state else None

    @property
    def scaling(self) -> dict[str, Any]:
        """The options of the engines' deployment that say how many there are."""
        if self.max_replicas <= self.replicas:
            return {"num_replicas": self.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.pictures_each,
            }
        }
