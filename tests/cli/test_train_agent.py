"""`skipstone train` and `skipstone evaluate` as a shell sees them: on the toy, and from logs to verdicts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outcome import Shell

from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.storage import save_policy
from skipstone_train.agents.config import load_config
from skipstone_train.agents.learners.search import Search

CONFIG = """
environment: {name: toy, actions: [continue, skip 2, stop], hardness: [0.02, 5.0], prices: [1.0]}
learner: {name: search, candidates: 6, episodes: 16, warm: 16}
slots: 16
held_out: 64
minutes: 0.01
tracking: none
out: made
"""
WRITTEN = ["agent.safetensors", "config.yaml", "curve.csv", "curve.png", "log.txt", "training.json"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "agent.yaml").write_text(CONFIG)
    return "agent.yaml"


def rounds(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("command", ["train agent", "train log", "evaluate agent"])
def test_help_teaches_and_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom skipstone import cli\nsys.argv = ['skipstone', *sys.argv[1].split(), '--help']\n"
        "try: cli.main()\nfinally: print(sorted({'torch', 'gymnasium', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"skipstone {command}" in done.stdout


# -- Training on the toy ----------------------------------------------------------------------------


def test_one_command_trains_and_tells(config: str, shell: Shell, tmp_path: Path) -> None:
    done = shell("train", "agent", "--config", config, "--minutes", "0.03")
    assert done.code == 0, done.err
    made = tmp_path / "made"
    assert [name for name in WRITTEN if not (made / name).is_file()] == []
    assert "always skip 2" in done.err  # constants are ranked first
    assert done.err.index("ranked before training") < done.err.index("decisions, utility")
    assert "the best fixed schedule of its price" in done.out
    assert "beats random actions" in done.out
    told = json.loads((made / "training.json").read_text())
    assert told["best"] >= told["first"]
    assert set(told["actions"]) == {"continue", "skip 2", "stop"}
    assert sum(told["actions"].values()) == pytest.approx(1)
    assert ActionScorer.load(made / "agent.safetensors").about["learned"] == told["learnt"]
    assert load_config(made / "config.yaml") == replace(load_config(tmp_path / config), minutes=0.03)
    assert "beats random actions" in (made / "log.txt").read_text()

    again = shell("train", "agent", "--config", config)
    assert (again.code, "--force" in again.err) == (2, True)


def test_ctrl_c_keeps_the_best_and_resume_goes_on(
    config: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, left = Search.begin, [3]

    def tired(self: Search, env: Any, seed: int) -> Any:
        session = begin(self, env, seed)
        advance = session.advance

        def cut(index: int, share: float) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return advance(index, share)

        monkeypatch.setattr(session, "advance", cut)
        return session

    monkeypatch.setattr(Search, "begin", tired)
    stopped = shell("train", "agent", "--config", config, "--minutes", "9")
    assert stopped.code == 130
    assert "--resume goes on" in stopped.err
    made = tmp_path / "made"
    assert json.loads((made / "training.json").read_text())["interrupted"] is True
    assert len(rounds(made)) == 4  # the start and three rounds
    assert ActionScorer.load(made / "agent.safetensors").actions == 3

    left[0] = 2
    assert shell("train", "agent", "--out", "made", "--resume", "--minutes", "9").code == 130
    assert len(rounds(made)) == 6
    other = shell("train", "agent", "--out", "made", "--resume", "environment.prices=[2.0]")
    assert (other.code, "holds a training with environment" in other.err) == (2, True)
    monkeypatch.setattr(Search, "begin", begin)
    fresh = shell("train", "agent", "--config", config, "--force", "--minutes", "0.005")
    assert fresh.code == 0, fresh.err
    assert float(rounds(made)[0]["seconds"]) < 60 * 0.005 + 5


def test_an_agent_that_has_learnt_nothing_says_so(config: str, shell: Shell, tmp_path: Path) -> None:
    """Where all that can be done is to continue, nothing beats the fixed schedule."""
    only = "environment={name: toy, actions: [continue]}"
    done = shell("train", "agent", only, "learner=search", "held_out=16", "tracking=none", "--minutes", "0.002")
    assert done.code == 0, done.err
    assert "does not surely beat the best fixed schedule" in done.out
    assert "plays the best fixed schedule" in done.out
    brain = ActionScorer.load(tmp_path / "agent" / "agent.safetensors")
    assert brain.about["learned"] is False
    assert brain.choose([0.0] * brain.inputs, [True]) == 0


def test_a_reward_that_pays_the_wrong_policies_is_refused(shell: Shell, tmp_path: Path) -> None:
    """The published multiplicative reward pays for refining always; ours does not."""
    refused = shell("train", "agent", "environment={name: surrogate, reward: multiplicative}", "held_out=8")
    assert refused.code == 2
    assert "would learn the wrong one" in refused.err
    assert not (tmp_path / "agent" / "agent.safetensors").exists()


def test_several_seeds_and_a_cluster(config: str, shell: Shell, tmp_path: Path) -> None:
    done = shell("train", "agent", "--config", config, "--seed", "3", "--seed", "4", "--slurm", "cluster=debug")
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "made").glob("seed-*")} == {"seed-3", "seed-4"}
    assert "seed-4: job" in done.out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--config", "no.yaml"), "no.yaml cannot be read"),
        (("learner.stpes=3",), "learner.stpes=3: learner has no key 'stpes'"),
        (("--learner", "pp"), "no learner is called 'pp'. Did you mean 'ppo'?"),
        (("slots=0",), "slots >= 1"),
        (("environment=toy", "minutes=-1"), "minutes"),
        (("environment=toy", "tracking=mlflow"), "tracking: expected tensorboard or none, got mlflow."),
        (("environment=toy", "--slurm", "hours=x"), "expected hours to be a number"),
        (("environment.log=nowhere.npz",), "got nowhere.npz"),
        (("--resume", "environment=toy", "tracking=tensorbord"), "Did you mean 'tensorboard'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(more: tuple[str, ...], said: str, shell: Shell) -> None:
    done = shell("train", "agent", *more)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]


# -- From logs to verdicts --------------------------------------------------------------------------

PROMPTS = ("a cat", "a dog on a red mat", "a bus", "a frog in a hat by a lake", "a key", "a fox and a panda",
           "a red car left of a house", "a whale under a blue moon")  # fmt: skip


def test_from_a_log_to_verdicts(shell: Shell, tmp_path: Path, tiny_pebble: Path) -> None:
    """Draw logs, train, and evaluate on the same tiny network, cut off once on the way."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    for name, times in (("path-4", "0.8 0.5 0.2"), ("path-6", "0.85 0.7 0.5 0.3 0.15")):
        save_policy(f"path(times='{times}', of='x0')", name)
    model = ("--model", str(tiny_pebble))
    drawn = shell(
        "train", "log", "--prompts", "prompts.txt", "--out", "log.npz", *model, "--guide", "path-4", "--guide",
        "path-6", "--fine", "100", "--dimensions", "4",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert "8 samples, 2 fixed schedules" in drawn.out

    trained = shell(
        "train", "agent", "--out", "mine", "--learner", "search", "environment.log=log.npz", "environment.share=0.4",
        "environment.prices=[1.0]", "learner.candidates=4", "learner.episodes=8", "learner.warm=8", "slots=8",
        "tracking=none", "--minutes", "0.02",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "agent(path=" in trained.out

    asked = (
        "evaluate", "agent", "mine", "--prompts", "prompts.txt", *model, "--full", "fixed @ ddim / trailing / 12",
        "--converged", "fixed @ dpmpp / trailing / 16", "--converged", "fixed @ unipc / trailing / 12",
        "--calls", "5", "--rule", "stride(tol=0.1)", "--out", "verdicts",
    )  # fmt: skip
    done = shell(*asked)
    assert done.code == 0, done.err
    folder = tmp_path / "verdicts"
    for name in ("hypotheses.html", "hypotheses.md", "hypotheses.json", "report.html", "table.md"):
        assert (folder / name).stat().st_size > 500
    found = json.loads((folder / "hypotheses.json").read_text())
    names = [v["name"] for v in (*found["hypotheses"], *found["gates"])]
    assert names == ["H1", "H2", "H3", "H4", "gap to the oracle", "gap to the ceiling", "G0", "G1", "G2", "G3", "G4"]
    kinds = {row["kind"] for row in found["rows"]}
    assert kinds == {"agent", "rule", "fixed", "full"}
    paths = [row["name"] for row in found["rows"] if row["name"].startswith("path(")]
    assert len(paths) == 3  # the even one it begins with, and both of the log, have to be beaten
    gates = {v["name"]: v for v in found["gates"]}
    assert gates["G0"]["holds"] is True
    assert gates["G1"]["holds"] is not None
    assert found["hypotheses"][1]["figures"]["prompts"] == 8

    again = shell(*asked)
    assert (again.code, "--resume" in again.err) == (2, True)
    samples = (folder / "samples.jsonl").read_bytes()
    known = [json.loads(line)["sample"] for line in samples.splitlines()]
    lines = [{"sample": sample, "calls": 4, "psnr": 45.0, "price": 1.0} for sample in known]
    (tmp_path / "oracle.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = shell("evaluate", "agent", "--out", "verdicts", "--resume", "--oracle", "oracle.jsonl")
    assert more.code == 0, more.err
    assert (folder / "samples.jsonl").read_bytes() == samples  # nothing is drawn twice
    told = json.loads((folder / "hypotheses.json").read_text())["hypotheses"][4]
    assert "fewer than 32 prompts" in told["why"]
    page = (folder / "hypotheses.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 3

    other = shell("evaluate", "agent", "--out", "verdicts", "--resume", "--oracle", "elsewhere.jsonl")
    assert (other.code, "elsewhere.jsonl is not there" in other.err) == (2, True)


def test_evaluating_nothing(shell: Shell) -> None:
    none = shell("evaluate", "agent", "nobody", "--out", "v")
    assert none.code == 2
    assert "there is no agent 'nobody'" in none.err
    assert shell("evaluate", "agent", "--out", "v").code == 2
