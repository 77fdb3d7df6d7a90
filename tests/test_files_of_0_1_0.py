"""Every file that Skipstone 0.1.0 wrote is read, and what it was stopped in is gone on with.

The files are in `fixtures/v0_1_0`; `fixtures/make_v0_1_0.py` says by which commands they were made. Only the command
line, the public names of `skipstone` and the version of its decisions are used here, so that nothing but the files
holds these tests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import skipstone
from skipstone.evaluation.fingerprint import RESULTS_VERSION
from tests.fixtures.make_v0_1_0 import APPLE, BENCH, CALIBRATE, EVALUATE, LOG, POLICIES, PREFER, TRAIN, TUNE
from tests.snapshot.snapshot import brighter, home, letter

FILES = Path(__file__).parent / "fixtures" / "v0_1_0"
RECORDED = {"torch": version("torch"), "diffusers": version("diffusers"), "skipstone": RESULTS_VERSION}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Shell = Callable[..., Outcome]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, in which commands run, as if made with the decisions, torch and diffusers of here."""
    folder = Path(shutil.copytree(FILES, tmp_path / "files"))
    for path in [*folder.rglob("configuration.json"), *folder.rglob("bench.json")]:
        brought_here(path)
    monkeypatch.chdir(folder)
    return folder


def brought_here(path: Path) -> None:
    """Other decisions and other versions of torch and diffusers are another configuration: not what is tested."""
    found = json.loads(path.read_text(encoding="utf-8"))
    about = found.get("fingerprint", found)
    about |= {name: said for name, said in RECORDED.items() if name in about}
    if path.name == "configuration.json":
        text = json.dumps(found, sort_keys=True)
        path.parent.rename(path.parent.with_name(hashlib.sha256(text.encode()).hexdigest()[:16]))
        return
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def shell(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run `skipstone ARGUMENTS...` in the copy, in this process."""
    [command] = entry_points(group="console_scripts", name="skipstone")
    main = command.load()

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["skipstone", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), said.out, said.err)

    return run


def done(outcome: Outcome) -> Outcome:
    """The outcome of a command that came through."""
    assert outcome.code == 0, outcome.err
    return outcome


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Kept:
    """What was there before a command went on, and must be there after it: nothing of it is made again."""

    files: dict[Path, tuple[int, bytes]]

    @classmethod
    def of(cls, *paths: Path) -> Kept:
        """Files as they are."""
        return cls({path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths})

    def check(self, *grown: Path) -> None:
        """Raise AssertionError for a file that was written again; `grown` ones may have got lines more."""
        assert self.files
        for path, (when, content) in self.files.items():
            if path in grown:
                assert path.read_bytes().startswith(content), path
            else:
                assert (path.stat().st_mtime_ns, path.read_bytes()) == (when, content), path


def below(folder: Path, *patterns: str) -> list[Path]:
    """Files of a folder, by patterns."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def decisions(trace: Path) -> str:
    """A letter for each step of a trace, and where the step landed."""
    past = json.loads(trace.read_text(encoding="utf-8"))["run"]["past"]
    return " ".join(f"{letter(attempt)}{attempt['t_next']:.6f}" for attempt in past)


def gap(one: Path, other: Path) -> int:
    """Largest difference of the pixels of two pictures; another machine may round otherwise."""
    a, b = (np.asarray(Image.open(path).convert("RGB"), int) for path in (one, other))
    return int(abs(a - b).max())


# -- Policies, certificates, grids ------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_policy(name: str) -> None:
    assert skipstone.spell(skipstone.load_policy(FILES / "policies" / name)) == POLICIES[name]


def test_a_certificate(files: Path, shell: Shell) -> None:
    said = json.loads((files / "certificate" / "policy.json").read_text(encoding="utf-8"))
    policy = skipstone.load_policy("certificate", skipstone.Pebble.load())
    assert isinstance(policy, skipstone.Certified)
    assert skipstone.spell(policy) == said["policy"]
    promise = said["certificate"]["promise"]
    assert promise == "at least 60 % of prompts have psnr >= 20"
    drawn = done(shell("generate", APPLE, "--policy", "certificate", "--steps", "8", "--json", "--out", "a.png"))
    assert json.loads(drawn.out)["spec"].startswith(said["policy"])
    assert shell("generate", APPLE, "--policy", "certificate", "--steps", "9", "--out", "b.png").code == 2
    with pytest.raises(skipstone.SkipstoneError, match="guidance"):
        skipstone.load_policy("certificate", skipstone.Pebble.load(guidance=2.0))


def test_a_certificate_is_audited_from_where_the_last_audit_left(files: Path, shell: Shell) -> None:
    log = files / "certificate" / "audit.jsonl"
    before = Kept.of(log)
    found = done(shell("audit", "certificate", "--samples", "1", "--cache", "cache"))
    assert "at least 60 % of prompts have psnr >= 20" in found.out
    assert "1 samples were drawn now, 2 in all" in found.out
    before.check(log)


def test_grids(files: Path, shell: Shell) -> None:
    found = json.loads((files / "grids" / "paths.json").read_text(encoding="utf-8"))
    for grid in found["grids"]:
        policy = skipstone.load_policy(files / "grids" / f"path-{grid['calls']}")
        assert skipstone.spell(policy) == grid["policy"]
        assert policy.solver == grid["solver"]
    drawn = done(shell("generate", APPLE, "--policy", "grids/path-6", "--json", "--out", "a.png"))
    assert json.loads(drawn.out)["calls"] == 6


# -- Traces, pictures, agents -----------------------------------------------------------------------


def made(files: Path, folder: str) -> tuple[Path, Path]:
    """The picture and the trace in a folder."""
    [trace] = (files / folder).glob("*.trace.json")
    return trace.with_name(trace.name.replace(".trace.json", ".png")), trace


def test_a_trace_is_explained(files: Path, shell: Shell) -> None:
    _, trace = made(files, "picture")
    document = json.loads(trace.read_text(encoding="utf-8"))
    told = done(shell("explain", str(trace))).out.splitlines()
    assert f"prompt: {APPLE}" in told
    assert f"spec: {document['meta']['spec']}" in told
    cost = sum(a["cost"] for a in document["run"]["past"])
    assert any(line.startswith(f"{cost:g} calls, where the bare run makes 20") for line in told)
    steps = [line for line in told if " -> " in line]
    assert len(steps) == len(document["run"]["past"])
    assert sum("by third_order" in line for line in steps) > 2


def test_a_trace_is_replayed(files: Path) -> None:
    picture, trace = made(files, "picture")
    loaded = home("load_trace")(trace)
    pebble = skipstone.Pebble.load(guidance=loaded.meta["guidance"])
    problem = pebble.problem(loaded.meta["prompt"], loaded.meta["seed"], grid=loaded.run.grid)
    again = skipstone.replay(pebble.backbone, problem, skipstone.solver("unipc"), loaded.run)
    assert skipstone.explain(again.run).splitlines()[0] == skipstone.explain(loaded.run).splitlines()[0]
    assert abs(np.asarray(pebble.image(again.x), int) - np.asarray(Image.open(picture), int)).max() <= 1


@pytest.mark.parametrize("folder", ["picture", "picture-agent"])
def test_a_picture_holds_what_makes_it_again(files: Path, shell: Shell, folder: str) -> None:
    """The agent, too: it is loaded from the folder of its training, and decides as it did."""
    picture, trace = made(files, folder)
    with Image.open(picture) as opened:
        said = opened.text  # type: ignore[attr-defined]
    assert said["prompt"] == APPLE
    assert said["version"] == "0.1.0"
    told = ("--policy", said["spec"], "--seed", said["seed"], "--guidance", said["guidance"], "--model", said["model"])
    done(shell("generate", said["prompt"], *told, "--trace", "--out", "again.png"))
    assert decisions(files / "again.trace.json") == decisions(trace)
    assert gap(files / "again.png", picture) <= 1


def test_an_agent_names_its_training(files: Path) -> None:
    told = json.loads((files / "agent" / "training.json").read_text(encoding="utf-8"))
    assert told["learner"] == "search"
    policy = skipstone.policy("agent(path='agent', price=0.7)")
    assert policy.solver == "adams(of='x0')"
    with pytest.raises(skipstone.SkipstoneError, match="price"):
        skipstone.policy("agent(path='agent', price=9.0)")  # it was trained at 0.5 and 1


# -- What is gone on with ---------------------------------------------------------------------------


def test_a_benchmark_goes_on(files: Path, shell: Shell) -> None:
    folder = files / "bench"
    grown = [path for path in (folder / "samples.jsonl", folder / "tuning.jsonl") if path.exists()]
    before = Kept.of(*grown, *below(folder, "references/**/*", "pictures/**/*"))
    first = lines_of(folder / "samples.jsonl")
    done(shell("bench", "--out", "bench", "--resume"))
    before.check(*grown)
    records = lines_of(folder / "samples.jsonl")
    assert records[: len(first)] == first
    assert len(records) > len(first)
    assert set(Counter((r["row"], r["sample"]) for r in records).values()) == {1}
    assert (folder / "report.html").exists()
    assert shell(*BENCH).code == 2  # nor is it overwritten by the command that began it


def test_a_benchmark_of_other_decisions_does_not_go_on(tmp_path: Path, shell: Shell) -> None:
    """`stride` and grids of noise levels decide otherwise than in 0.1.0: their results do not belong in one table."""
    folder = Path(shutil.copytree(FILES / "bench", tmp_path / "bench"))
    lines = (folder / "samples.jsonl").read_bytes()
    refused = shell("bench", "--out", str(folder), "--resume")
    assert refused.code == 2
    assert "were made with skipstone 0.1.0" in " ".join(refused.err.split())
    assert (folder / "samples.jsonl").read_bytes() == lines


def test_a_calibration_goes_on(files: Path, shell: Shell) -> None:
    [kept] = (path.parent for path in (files / "cache-half").glob("*/scores-*.jsonl"))
    [scores] = kept.glob("scores-*.jsonl")
    before = Kept.of(scores, *below(kept, "references/**/*"))
    done(shell(*CALIBRATE, "--cache", "cache-half", "--out", "finished"))
    before.check(scores)
    assert set(Counter((r["setting"], r["sample"]) for r in lines_of(scores)).values()) == {1}
    assert [path.name for path in (files / "cache-half").iterdir()] == [kept.name]
    again = done(shell(*CALIBRATE, "--cache", "cache-half", "--out", "again"))
    assert "Spent: 0 calls" in again.out
    policies = [json.loads((files / name / "policy.json").read_text()) for name in ("finished", "certificate")]
    assert policies[0]["policy"] == policies[1]["policy"]
    labels = [[point["setting"] for point in found["certificate"]["points"]] for found in policies]
    assert labels[0] == labels[1]


def test_tuning_begins_anew_beside_what_was_drawn(files: Path, shell: Shell) -> None:
    """Fine runs of 0.1.0 were on other places, and their pictures are not mixed with those of today."""
    drawn = files / "grids-half" / "drawn"
    [kept] = drawn.iterdir()
    before = Kept.of(*below(kept, "*/*.npz"))
    done(shell(*TUNE, "--limit", "1", "--no-rivals", "--out", "grids-half"))
    before.check()
    assert len(list(drawn.iterdir())) == 2
    for calls in (4, 6):
        mine, whole = (skipstone.load_policy(files / name / f"path-{calls}") for name in ("grids-half", "grids"))
        assert skipstone.spell(mine) != skipstone.spell(whole)


def test_drawing_a_log_goes_on(files: Path, shell: Shell) -> None:
    parts = below(files / ".log-half.npz.parts", "*.npz")
    assert len(parts) in (1, 2)
    with np.load(parts[0]) as found:
        arrays = {**found, "made": np.full_like(found["made"], 12.5)}  # to be told from what is drawn now
    np.savez(parts[0], **arrays)
    done(shell(*LOG[:-1], "log-half.npz"))
    with np.load("log-half.npz") as half, np.load("log.npz") as whole:
        assert set(half.files) == set(whole.files)
        assert (half["made"][0] == 12.5).all()
        assert np.allclose(half["made"][1:], whole["made"][1:], atol=1e-3)
        assert {name: half[name].shape for name in half.files} == {name: whole[name].shape for name in whole.files}


def test_a_training_goes_on(files: Path, shell: Shell) -> None:
    curve = files / "agent-half" / "learner" / "curve.json"
    first = json.loads(curve.read_text(encoding="utf-8"))
    minutes = (first[-1]["seconds"] + 4) / 60
    done(shell("train", "agent", "--out", "agent-half", "--resume", "--minutes", f"{minutes:.3f}"))
    after = json.loads(curve.read_text(encoding="utf-8"))
    assert after[: len(first)] == first
    assert len(after) > len(first)
    assert after[len(first)]["steps"] > first[-1]["steps"]
    assert skipstone.policy("agent(path='agent-half', price=1.0)").solver == "adams(of='x0')"
    assert shell(*TRAIN, "--out", "agent-half").code == 2  # nor is it overwritten unasked


def test_an_evaluation_goes_on(files: Path, shell: Shell) -> None:
    folder = files / "verdicts"
    samples = folder / "samples.jsonl"
    before = Kept.of(samples, *below(folder, "references/**/*", "pictures/**/*"))
    done(shell("evaluate", "agent", "--out", "verdicts", "--resume"))
    before.check(samples)
    records = lines_of(samples)
    assert set(Counter((r["row"], r["sample"]) for r in records).values()) == {1}
    found = json.loads((folder / "hypotheses.json").read_text(encoding="utf-8"))
    assert {row["kind"] for row in found["rows"]} == {"agent", "rule", "fixed", "full"}
    assert shell(*EVALUATE).code == 2


@pytest.fixture
def judge() -> Iterator[list[str]]:
    """What a judge has answered; its port is part of what answers are kept under."""
    try:
        with brighter() as answers:
            yield answers
    except OSError as e:
        pytest.skip(f"the judge's port is taken: {e}")


def test_asking_judges_goes_on(files: Path, shell: Shell, judge: list[str]) -> None:
    answers = files / "preference" / "answers.jsonl"
    before = Kept.of(answers)
    asked = done(shell(*PREFER))
    assert "8 questions. 5 are open." in asked.err
    assert len(judge) == 5
    before.check(answers)
    assert "0 are open" in done(shell(*PREFER)).err
