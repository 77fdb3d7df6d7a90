"""Trackers and the launcher: TensorBoard's files are read back, jobs really run, what is missing is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from skipstone.errors import SpecError
from skipstone.yaml_settings import parse_settings
from skipstone_train.agents.config import AgentConfig
from skipstone_train.agents.launch import SlurmSettings, TrainingJob, submit_jobs
from skipstone_train.agents.tracking import TRACKERS, flatten_settings, make_tracker

SETTINGS = {"learner": {"name": "ppo", "rate": 0.1}, "slots": 4}


def test_tensorboard_holds_every_figure(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = make_tracker("tensorboard", tmp_path, "run", SETTINGS)
    for step in (10, 20):
        tracker.log(step, {"score": step / 2, "calls": 3.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("score")] == [(10, 5.0), (20, 10.0)]
    assert [e.value for e in events.Scalars("calls")] == [3.0, 3.0]
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learner.rate: 0.1" in text


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SpecError, match="pip install tensorboard, or say tracking=none"):
        make_tracker("tensorboard", tmp_path, "run", {})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_trackers_that_have_gone(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=f"^f: tracking: expected tensorboard or none, got {name}. For MLflow say --track mlflow"
    ):
        parse_settings(AgentConfig, f"tracking: {name}", "f")
    with pytest.raises(SpecError, match="For MLflow say --track"):
        make_tracker(name, tmp_path, "run", {})


def test_trackers_by_name(tmp_path: Path) -> None:
    tracker = make_tracker("none", tmp_path, "run", SETTINGS)
    tracker.log(1, {"score": 1.0})
    tracker.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SpecError, match=r"Did you mean 'tensorboard'\? Known: none, tensorboard"):
        make_tracker("tensorbord", tmp_path, "run", {})
    assert list(TRACKERS) == ["none", "tensorboard"]
    assert flatten_settings(SETTINGS) == {"learner.name": "ppo", "learner.rate": 0.1, "slots": 4}


# -- Clusters ---------------------------------------------------------------------------------------


def test_what_a_cluster_is_asked_for() -> None:
    found = SlurmSettings.parse("partition=gpu, hours=0.5,cpus=8,gpus=1,memory=32,at_once=3,qos=low")
    assert found == SlurmSettings("gpu", "", "low", 0.5, 8, 1, 32.0, 3)
    assert found.parameters == {
        "name": "skipstone-train", "timeout_min": 30, "cpus_per_task": 8, "mem_gb": 32.0, "gpus_per_node": 1,
        "slurm_partition": "gpu", "slurm_qos": "low", "slurm_array_parallelism": 3,
    }  # fmt: skip
    assert SlurmSettings.parse("") == SlurmSettings()
    assert "gpus_per_node" not in SlurmSettings().parameters


@pytest.mark.parametrize(
    ("spoken", "said"),
    [
        ("partitoin=gpu", r"--slurm has no key 'partitoin'. Did you mean 'partition'\?"),
        ("gpu", "expected KEY=VALUE"),
        ("hours=long", "expected hours to be a number, got 'long'"),
        ("hours=0", "hours > 0"),
        ("cluster=sge", "cluster=slurm, local or debug"),
    ],
)
def test_a_wish_that_is_not_understood(spoken: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        SlurmSettings.parse(spoken)


CONFIG = """
environment: {name: toy, actions: [continue, stop]}
learner: {name: search, candidates: 4, episodes: 8, warm: 8}
slots: 8
held_out: 8
tracking: none
"""


def test_jobs_of_an_array_train(tmp_path: Path) -> None:
    """In this very process, through the same pickles as on a cluster."""
    jobs = [TrainingJob(CONFIG, 0.002, seed, str(tmp_path / f"seed-{seed}")) for seed in (0, 1)]
    submitted = submit_jobs(jobs, SlurmSettings(cluster="debug"), tmp_path)
    assert [job.result() for job in submitted] == [str(tmp_path / f"seed-{s}" / "agent.safetensors") for s in (0, 1)]
    assert (tmp_path / "seed-1" / "curve.csv").is_file()


def test_jobs_run_in_processes_of_their_own(tmp_path: Path) -> None:
    import functools
    import operator

    jobs = [functools.partial(operator.add, k, 1) for k in (1, 2)]
    submitted = submit_jobs(jobs, SlurmSettings(cluster="local", hours=0.1), tmp_path)
    assert [job.result() for job in submitted] == [2, 3]
    assert list((tmp_path / "jobs").glob("*.out"))


def test_a_preempted_job_goes_on_where_it_was(tmp_path: Path) -> None:
    again = TrainingJob(CONFIG, 0.01, 0, str(tmp_path)).checkpoint()
    assert again.function == TrainingJob(CONFIG, 0.01, 0, str(tmp_path), resume=True)


def test_no_cluster_and_no_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    with pytest.raises(SpecError, match=r"--slurm: .*sbatch --version"):
        submit_jobs([], SlurmSettings(), tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SpecError, match=r"pip install 'skipstone\[train\]'"):
        submit_jobs([], SlurmSettings(), tmp_path)
