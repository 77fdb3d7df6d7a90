"""Trainings on a cluster: one job for each seed, as one array, through submitit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from skipstone.errors import SpecError
from skipstone.registry import suggest_spelling

JOBS_FOLDER = "jobs"  # folder of submitit's files, in that of the training


@dataclass(frozen=True)
class SlurmSettings:
    """What is asked of a cluster.

    Args:
        partition, account, qos: Names; "" leaves the cluster's own.
        hours: After which a job is ended, > 0.
        cpus, gpus: Of each job, cpus >= 1 and gpus >= 0.
        memory: Of each job in GB, > 0.
        at_once: Jobs of the array that run together, >= 1.
        cluster: slurm, or to try it out: local (processes of this machine), debug (in this very process).
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    hours: float = 4.0
    cpus: int = 2
    gpus: int = 0
    memory: float = 8.0
    at_once: int = 64
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        sound = self.hours > 0 and self.cpus >= 1 and self.gpus >= 0 and self.memory > 0 and self.at_once >= 1
        if not sound or self.cluster not in ("slurm", "local", "debug"):
            raise SpecError(
                "--slurm: expected hours > 0, cpus >= 1, gpus >= 0, memory > 0, at_once >= 1 and cluster=slurm, local "
                f"or debug, got {self!r}."
            )

    @classmethod
    def parse(cls, text: str) -> SlurmSettings:
        """Out of "partition=cpu,hours=8". Raises SpecError."""
        found: dict[str, Any] = {}
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise SpecError(f"--slurm: expected KEY=VALUE,..., e.g. partition=cpu,hours=8, got {part!r}.")
            if key not in kinds:
                raise SpecError(
                    f"--slurm has no key {key!r}.{suggest_spelling(key, list(kinds))} It takes: {', '.join(kinds)}."
                )
            try:
                found[key] = kinds[key](value)
            except ValueError:
                raise SpecError(f"--slurm: expected {key} to be a number, got {value!r}.") from None
        return cls(**found)

    @property
    def parameters(self) -> dict[str, Any]:
        """As submitit names them."""
        found: dict[str, Any] = {
            "name": "skipstone-train", "timeout_min": max(1, round(60 * self.hours)), "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
        }  # fmt: skip
        if self.gpus:
            found["gpus_per_node"] = self.gpus
        own = {"partition": self.partition, "account": self.account, "qos": self.qos}
        slurm = {f"slurm_{name}": value for name, value in own.items() if value}
        return {**found, **slurm, "slurm_array_parallelism": self.at_once}


@dataclass(frozen=True)
class TrainingJob:
    """One training, as a cluster runs it: where it is interrupted, it is put in the queue again and goes on.

    Args:
        config_yaml: The configuration.
        minutes: Of training, > 0.
        seed: Of the training.
        out: Its folder.
        resume: Whether to go on with what is there.
    """

    config_yaml: str
    minutes: float
    seed: int
    out: str
    resume: bool = False

    def __call__(self) -> str:
        """Train; the agent's file."""
        from skipstone.yaml_settings import parse_settings

        from .config import AgentConfig
        from .training import Training

        config = parse_settings(AgentConfig, self.config_yaml, "the configuration")
        done = Training(config, Path(self.out), self.minutes, self.seed).run(self.resume)
        return str(done.agent)

    def checkpoint(self, *_: Any) -> Any:
        """What submitit puts in the queue when a job is preempted or runs out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, resume=True))


def submit_jobs(jobs: Sequence[Any], slurm: SlurmSettings, folder: Path) -> list[Any]:
    """Submit jobs as one array.

    Args:
        jobs: Called without arguments, on a machine that has this package and sees the same files.
        slurm: What to ask for.
        folder: Of the trainings; scripts and logs go into its `jobs`.

    Returns:
        submitit's jobs: `job.job_id`, `job.result()`.

    Raises:
        SpecError: submitit or Slurm is not there, or the cluster refuses.
    """
    try:
        import submitit
    except ImportError:
        raise SpecError("--slurm needs submitit. Type: pip install 'skipstone[train]'.") from None
    executor: Any
    try:
        executor = submitit.AutoExecutor(folder / JOBS_FOLDER, cluster=slurm.cluster)
        executor.update_parameters(**slurm.parameters)
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as e:
        raise SpecError(
            f"--slurm: {e} Is this a machine that may submit jobs (does `sbatch --version` work)?"
        ) from None
    return list(submitted)
