"""What is said on the command line is what a run goes on with: every option of every command that goes on.

A new option of such a command fails here until it is said what becomes of it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import all_commands
from outcome import Shell
from PIL import Image

from skipstone import registry
from skipstone.cli.tune import SearchOptions
from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.fingerprint import picture_hashes
from skipstone_bench.baselines import make_policy_row
from skipstone_bench.cli.bench import bench
from skipstone_bench.cli.resume import resolve_options
from skipstone_bench.store import HEADER, Header, Store
from skipstone_research.agents.command import agent as evaluate
from skipstone_train.agents.config import load_config
from skipstone_train.agents.training import CONFIG_FILE
from skipstone_train.cli.train import TrainingOptions, _trainings

WHERE = "says where, and is typed again"
NOW = "about this start of the command only"

# -- skipstone bench and skipstone evaluate agent: --resume needs no more than the folder -------------

VALUES: dict[str, dict[str, Any]] = {  # what is typed: another value than the default of every option
    "bench": {
        "model": "m", "prompts": "p.list", "tuning": "t.csv", "prompt_format": "txt", "limit": 3,
        "category": ["a", "b"], "tuned": 2, "allow_seen": True,
        "policies": ["fixed", "stride"], "peers": ["none"], "metrics": ["ssim"],
        "seeds": 2, "seed": 5, "budget": [3, 4], "steps": 7, "solver": "ddim", "grid": "trailing", "guidance": 2.5,
        "reference": "fixed @ ddim", "converged": ["a", "b"], "batch": 3, "timed": 2, "repeats": 1, "searched": 1,
        "oracle": 1, "settings": ["height=64"], "device": "cpu", "dtype": "float16", "backend": "mlx", "bits": 8,
        "memory_limit": "1GB", "ray": True, "workers": 2,
    },
    "evaluate agent": {
        "agents": ["one", "two"], "prompts": "p.list", "prompt_format": "txt", "limit": 3, "seeds": 2, "seed": 5,
        "price": [0.5, 2.0], "full": "fixed @ ddim / own / 9", "rule": ["stride"], "calls": [5, 6], "grids": ["g"],
        "converged": ["a", "b"], "oracle": "o.jsonl", "ceiling": "c.jsonl", "refine": "r.json", "transfer": "t",
        "model": "m", "guidance": 2.5, "batch": 3, "settings": ["height=64"], "device": "cpu", "dtype": "float16",
        "as_guest": True,
    },
}  # fmt: skip
FREE = {"out": WHERE, "resume": NOW}


def options_of(name: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in all_commands()[name].params}


def typed(name: str, values: dict[str, Any]) -> list[str]:
    """The words of a command line."""
    words = []
    for option, value in values.items():
        flag = [o for o in options_of(name)[option].opts if o.startswith("-")][:1]
        each = value if isinstance(value, list) else [value]
        words += flag if value is True else [word for one in each for word in (*flag, str(one))]
    return words


def resolved(name: str, words: list[str], out: Path) -> dict[str, Any]:
    """The values that a command line means."""
    context = all_commands()[name].make_context(f"skipstone {name}", [*words, "--out", str(out)])
    resume = "--resume" in words
    return resolve_options(context, {"bench": bench, "evaluate agent": evaluate}[name], out, resume)


def header(options: dict[str, Any]) -> Header:
    return Header("1", "m", {}, None, {}, "fixed", ("a", "b"), "", "", "", {}, options=options)


@pytest.mark.parametrize("name", VALUES)
def test_every_option_is_saved_and_taken_up(name: str, tmp_path: Path) -> None:
    assert set(VALUES[name]) | set(FREE) == set(options_of(name)) - {"track"}  # NOW, of bench
    first = resolved(name, typed(name, VALUES[name]), tmp_path / "a")
    Store.create(tmp_path / "a", header(first))
    again = resolved(name, ["--resume"], tmp_path / "a")
    for option, value in VALUES[name].items():
        assert first[option] == again[option] == value, option
    moved = (tmp_path / "a").rename(tmp_path / "moved")
    assert resolved(name, ["--resume"], moved)["out"] == str(moved)


@pytest.mark.parametrize("name", VALUES)
def test_what_is_said_again_counts(name: str, tmp_path: Path) -> None:
    Store.create(tmp_path / "a", header(resolved(name, [], tmp_path / "a")))
    unchanged = resolved(name, ["--resume"], tmp_path / "a")
    for option, value in VALUES[name].items():
        again = resolved(name, ["--resume", *typed(name, {option: value})], tmp_path / "a")
        assert again == {**unchanged, option: value}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": "many"}, "options.limit: expected a whole number"),
        ({"limit": -1}, "options.limit: expected at least 0, got -1"),
        ({"seeds": 0}, "options.seeds: expected at least 1"),
        ({"policies": "fixed"}, "options.policies: expected a list or null"),
        ({"budget": [3, "4"]}, r"options.budget\[1\]: expected a whole number"),
        ({"settings": {"height": 1}}, "options.settings: expected a list or null"),
        ({"model": ["a"]}, "options.model: expected text"),
        ({"guidance": "high"}, "options.guidance: expected a number or null"),
    ],
)
def test_a_value_that_the_option_does_not_take_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    Store.create(tmp_path, header(options))
    with pytest.raises(BenchError, match=said):
        resolved("bench", ["--resume"], tmp_path)


@pytest.mark.parametrize("spec", ["./mine.py:Mine", "./mine.py:Mine @ ddim / own / 9", " /x/mine.py:Mine(a=1) | gate"])
def test_a_folder_that_is_handed_on_runs_no_code(spec: str, tmp_path: Path) -> None:
    Store.create(tmp_path, header({"policies": ["stride", spec]}))
    with pytest.raises(BenchError, match=r"runs that file, whoever wrote it.*--resume -p stride -p"):
        resolved("bench", ["--resume"], tmp_path)
    assert resolved("bench", ["--resume", "-p", spec], tmp_path)["policies"] == [spec]


def test_the_file_that_a_folder_names_is_not_run(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('ran', 'w')\n")
    Store.create(tmp_path / "theirs", header({"policies": ["./mine.py:Mine"]}))
    refused = shell("bench", "--out", "theirs", "--resume")
    assert refused.code == 2
    assert "skipstone bench --out theirs --resume -p ./mine.py:Mine" in refused.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: "[" * 100_000,
        lambda d: d | {"rows": 3},
        lambda d: d | {"rows": [[]]},
        lambda d: d | {"rows": [{"spec": 1, "label": "a", "group": "a", "family": "a"}]},
        lambda d: d | {"options": []},
        lambda d: d | {"converged": "ab"},
        lambda d: d | {"fingerprint": None},
        lambda d: {},
        lambda d: [d],
    ],
)
def test_a_damaged_header_is_a_sentence(change: Any, tmp_path: Path) -> None:
    Store.create(tmp_path, header({}))
    changed = change(json.loads((tmp_path / HEADER).read_text()))
    (tmp_path / HEADER).write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(BenchError, match=r"bench\.json.*choose another --out"):
        Store.load(tmp_path)


# -- skipstone train agent: --resume needs no more than the folder -------------------------------------

CONFIG = "environment: {name: toy, steps: 6}\nlearner: {name: search, candidates: 5}\nminutes: 9\ntracking: none\n"
TRAINED = {
    "minutes": 0.5, "seed": [3, 4], "learner": "search", "changes": ["learner.candidates=7", "slots=12", "held_out=8"]
}  # fmt: skip
TRAINED_FREE = {
    "config": "given again, it must agree in all that is learnt; minutes stay those of the folder",
    "out": WHERE, "resume": NOW, "force": NOW, "slurm": "where it runs, which may be another machine",
    "track": NOW,
}  # fmt: skip


def started(out: Path, **said: Any) -> list[Any]:
    """Trainings as the command begins them, without learning anything."""
    changes = said.pop("changes", [])
    found = _trainings(TrainingOptions(out=out, **said), changes)
    for training in found:
        training.begin(said.get("resume", False))
    return found


def test_every_option_of_a_training_is_decided() -> None:
    assert {*TRAINED, *TRAINED_FREE} == set(options_of("train agent"))


def test_a_training_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    first = started(tmp_path, **TRAINED)
    again = started(tmp_path, resume=True)
    assert [(t.out, t.minutes, t.seed) for t in again] == [(t.out, t.minutes, t.seed) for t in first]
    for one, other in zip(first, again, strict=True):
        assert other.config == dataclasses.replace(one.config, minutes=0.5, seeds=(one.seed,), out=str(one.out))
    [third] = started(tmp_path, resume=True, seed=[4], minutes=2.0)
    assert (third.seed, third.minutes) == (4, 2.0)
    assert [t.minutes for t in started(tmp_path, resume=True)] == [0.5, 2.0]


def test_a_configuration_that_is_given_again_leaves_the_minutes_that_were_said(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    started(tmp_path / "a", config=config, minutes=1.0)
    assert load_config(tmp_path / "a" / CONFIG_FILE).minutes == 1.0
    [again] = started(tmp_path / "a", config=config, resume=True)
    assert (again.minutes, again.config.learner.candidates) == (1.0, 5)
    [longer] = started(tmp_path / "a", resume=True, changes=["minutes=3", "learner.candidates=6"])
    assert (longer.minutes, longer.config.learner.candidates) == (3.0, 6)


def test_what_cannot_go_on_is_said(tmp_path: Path) -> None:
    toy = ["environment=toy"]
    with pytest.raises(SpecError, match="holds no training"):
        started(tmp_path / "none", resume=True, changes=toy)
    started(tmp_path / "two", seed=[1, 2], changes=toy)
    with pytest.raises(SpecError, match="no training of seed 3, but of 1, 2"):
        started(tmp_path / "two", resume=True, seed=[3])
    started(tmp_path / "one", changes=toy)
    with pytest.raises(SpecError, match="holds one training, got 2 seeds"):
        started(tmp_path / "one", resume=True, seed=[1, 2])


# -- Commands of which the same command goes on: each option is in a key of what is kept, or free -------

MODEL = {"model", "settings", "image", "device", "dtype", "as_guest", "guidance"}
KEPT = {  # command -> options that results are kept by, so that another value draws anew or is refused
    "calibrate": {
        *MODEL,
        "backend",
        "bits",
        "prompts",
        "target",
        "reference",
        "seed",
        "steps",
        "solver",
        "grid",
        "setting",
    },
    "audit": {"false_alarm", "prompts"},
    "tune": {*MODEL, "prompts", "check", "fine", "seed", "domains"},
    "prefer": {"sources", "judge", "row", "against", "prompts", "seed", "layout", "side", "tokens", "settings"},
    "train log": {"prompts", "guides", "model", "limit", "seeds", "seed", "fine", "dimensions", "batch"},
    "search": {
        "model",
        "space",
        "objective",
        "sampler",
        "train_steps",
        "rungs",
        "factor",
        "batch",
        "rate",
        "precision",
        "drawings",
        "row_steps",
        "checked",
        "picture_steps",
        "seed",
        "prompts",
        "check",
    },
}
CHOICE = "chooses from what is kept, or adds to it; the result says what it was"
SPEED = "how fast, not what"
KEPT_FREE: dict[str, dict[str, str]] = {
    "calibrate": {
        "confidence": CHOICE, "samplers": CHOICE, "groups": CHOICE, "limit": CHOICE, "samples": CHOICE,
        "prompt_format": "the prompts themselves are compared", "batch": SPEED, "cache": WHERE, "out": WHERE,
        "force": NOW, "track": NOW, "ray": SPEED, "workers": SPEED,
        "memory_limit": "how much; decoding in tiles changes pictures a little",
    },
    "audit": {
        "folder": WHERE, "samples": NOW, "prompt_format": "the prompts themselves are compared", "batch": SPEED,
        "model": "where it is by now; the certificate is held against it", "device": "likewise", "cache": WHERE,
    },
    "tune": {
        "policy": CHOICE, "calls": CHOICE, "limit": CHOICE, "samples": CHOICE, "refine": CHOICE, "rivals": CHOICE,
        "prompt_format": "the prompts themselves are compared", "batch": SPEED, "out": WHERE, "force": NOW,
        "track": NOW, "ray": SPEED, "workers": SPEED, "features": CHOICE, "clip": CHOICE, "search": CHOICE,
        "budget": CHOICE, "space": CHOICE, "target": CHOICE, "milliseconds": CHOICE,
    },
    "prefer": {
        "prompt_format": "the prompts themselves are compared", "limit": CHOICE, "calls": "a cap over all runs",
        "spend": "a cap over all runs", "price_in": "of the cap", "price_out": "of the cap", "attempts": NOW,
        "together": SPEED, "timeout": SPEED, "tries": SPEED, "dry_run": NOW, "out": WHERE,
    },
    "train log": {"prompt_format": "the prompts themselves are compared", "out": WHERE, "force": NOW},
    "search": {
        "budget": "how long, earlier starts included", "prompt_format": "the prompts themselves are compared",
        "out": WHERE, "as_json": NOW, "track": NOW,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_every_option_of_the_others_is_decided(name: str) -> None:
    assert not KEPT[name] & set(KEPT_FREE[name])
    assert KEPT[name] | set(KEPT_FREE[name]) == set(options_of(name))


def test_runs_of_a_prompt_that_was_edited_are_not_taken_up(tmp_path: Path) -> None:
    """The ids of the file are the same: what is kept goes by the text, too."""
    path, ids = tmp_path / "p.jsonl", []
    for text in ("a cat", "a dog", "a cat"):
        path.write_text(json.dumps({"id": 1, "prompt": text}))
        ids.append(SearchOptions().prompted(str(path), 0)[0].id)
    assert ids[0] == ids[2] != ids[1]


def test_a_picture_that_was_changed_under_its_name_is_another(tmp_path: Path) -> None:
    made = []
    for shade in (0, 1, 0):
        subject = SimpleNamespace(arguments={"mask_image": Image.new("RGB", (4, 4), shade)}, image=None)
        made.append(picture_hashes(subject))  # type: ignore[arg-type]  # all that is read of a subject
    assert made[0] == made[2] != made[1]
    assert picture_hashes(SimpleNamespace(arguments={"height": 64})) == {}  # type: ignore[arg-type]


def test_a_row_of_an_edited_file_is_another_row(tmp_path: Path) -> None:
    """One file is run once in a process, so that the edited one has another name here."""
    text = "from skipstone.policies.stride import Stride\n\n\nclass Mine(Stride):\n    name = {!r}\n"
    for file, name in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / f"{file}.py").write_text(text.format(name))
    solver, grid = registry.parse("solver", "ddim"), registry.parse("grid", "trailing")
    columns = [parse_column(f"{tmp_path}/{f}.py:Mine", solver, grid, 9, run_files=True) for f in "abc"]
    digests = [make_policy_row(column).info.spec.rpartition(" [")[2] for column in columns]
    assert digests[0] == digests[1] != digests[2]
    assert "[" not in make_policy_row(parse_column("stride", solver, grid, 9)).info.spec
