"""`skipstone runs`, `--track` and models:/NAME@ALIAS as a shell sees them, on a database file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from outcome import Shell
from track.folders import CERTIFICATE, bench_folder

pytest.importorskip("mlflow")

DISTILL = (
    "--steps 2 --train-steps 2 --batch 2 --pictures 2 --picture-steps 2 --rank 2 --precision no --limit 2 --out mine"
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database') / 'runs.db'}"


def test_results_are_logged_at_the_end_and_kept_where_the_tracker_is_down(
    tiny_pebble: Path, shell: Shell, database: str
) -> None:
    words = ("distill", "--model", str(tiny_pebble), *shlex.split(DISTILL))
    down = shell(*words, "--track", "http://127.0.0.1:9")
    assert down.code == 0
    said = " ".join(down.err.split())
    assert "Not logged. http://127.0.0.1:9: " in said
    assert "Log them later: skipstone runs upload mine --track http://127.0.0.1:9" in said
    up = shell("runs", "upload", "mine", "--track", database)
    assert up.code == 0
    assert "mine: logged as" in up.out
    again = shell(*words, "--track", database)  # goes on from what is there, and logs it
    assert again.code == 0
    assert f"mlflow ui --backend-store-uri {database}" in " ".join(again.err.split())


def test_a_registered_policy_generates_and_a_changed_one_does_not(
    shell: Shell, database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = shell("runs", "register", str(CERTIFICATE), "fast", "--alias", "challenger")
    assert made.code == 0
    assert made.out.startswith("models:/fast/1 @challenger: calibrate, sha256 ")
    assert shell("runs", "promote", "fast", "challenger").out == "models:/fast@champion is version 1\n"
    listed = json.loads(shell("runs", "registered", "--json").out)
    assert [(one["name"], one["aliases"]) for one in listed] == [("fast", ["challenger", "champion"])]
    drawn = shell("generate", "a cat on a red background", "--policy", "models:/fast@champion", "--out", "a.png")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "a.png").is_file()
    missing = shell("generate", "a cat", "--policy", "models:/fast@nobody", "--out", "b.png")
    assert missing.code == 2
    assert "no such version. fast has: 1 @challenger @champion" in missing.err


def test_two_runs_side_by_side(shell: Shell, tmp_path: Path) -> None:
    a = bench_folder(tmp_path / "a", {"x": [float(i) for i in range(12)]})
    b = bench_folder(tmp_path / "b", {"x": [i + 2.0 for i in range(12)]}, guidance=7.5)
    found = shell("runs", "compare", str(a), str(b))
    assert found.code == 0
    assert "guidance" in found.out
    assert "real" in found.out
    told = json.loads(shell("runs", "compare", str(a), str(b), "--json").out)
    real = {one["metric"]: one["real"] for one in told["metrics"]}
    assert real == {"calls": False, "psnr_full": True}
    policies = shell("runs", "compare", str(CERTIFICATE), str(CERTIFICATE))
    assert "Settings, versions and prompts are the same." in policies.out
    assert "only settings" in policies.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("runs upload .", "expected a pipeline, or the --out of bench"),
        ("runs upload . --track mlflw", "Did you mean 'mlflow'?"),
        ("distill --track here", "--track: expected mlflow, sqlite:///FILE or the URI"),
        ("runs register . 'a b'", "name: expected a letter"),
        ("generate 'a cat' --policy models:/x", "Expected models:/NAME@ALIAS or models:/NAME/VERSION, got 'models:/x'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(shell: Shell, tmp_path: Path, words: str, said: str) -> None:
    found = shell(*shlex.split(words))
    assert found.code == 2
    assert said in found.err
    assert not list(tmp_path.iterdir())
