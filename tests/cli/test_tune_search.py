"""`skipstone tune --search` and `skipstone latency` as a shell sees them, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Shell, list_files

from skipstone.evaluation.engine_subject import EngineSubject

SMALL = ("--limit", "2", "--fine", "16", "--calls", "4", "--search", "cem", "--budget", "40")


@pytest.fixture
def asked(tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """All of the command but its --out."""
    monkeypatch.setenv("SKIPSTONE_CACHE", str(tmp_path / "cache"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na blue dog\na green bus\n")
    return ("tune", "--model", str(tiny_pebble), "--prompts", str(prompts), *SMALL)


def test_one_command_searches_is_cut_off_and_goes_on(
    asked: tuple[str, ...], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, left, best = EngineSubject.draw, [22], tmp_path / "best"

    def cut(self: EngineSubject, items: object, column: object, watch: object = None) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return draw(self, items, column, watch)  # type: ignore[arg-type]

    monkeypatch.setattr(EngineSubject, "draw", cut)
    stopped = shell(*asked, "--out", str(best))
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    assert [path.name for path in best.iterdir()] == ["drawn"]
    done = shell(*asked, "--out", str(best))
    assert done.code == 0, done.err
    spent = -left[0]
    for said in ("dynamic programming", "default", "cem", "on samples that nothing was searched on"):
        assert said in done.out
    found = json.loads((best / "tuned.json").read_text())
    [search] = found["found"][0]["searches"]
    assert 0 < search["charged"] <= 40
    assert found["fingerprint"]["weights"]
    assert (best / "tuned.png").stat().st_size > 10_000
    assert found["found"][0]["verdict"] in (best / "tuned.md").read_text()
    folder = str(best / "tuned-4")
    drawn = shell("generate", "a red cat", *asked[1:3], "--policy", folder, "--out", "a.png", "--json")
    assert drawn.code == 0, drawn.err
    assert 0 < json.loads(drawn.out)["calls"] < 50

    refused = shell(*asked, "--out", str(best))
    assert (refused.code, "--force" in refused.err) == (2, True)
    left[0] = 0
    again = shell(*asked, "--out", str(best), "--force")
    assert again.out.splitlines()[:4] == done.out.splitlines()[:4]
    assert -left[0] <= 2 < spent, "what was kept is drawn again"


def test_the_least_calls_for_a_target(asked: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    more = ("--calls", "6", "--budget", "40", "--target")
    out = tmp_path / "met"
    missed = shell(*asked, *more, "psnr >= 99 @ 90%", "--out", str(out))
    assert missed.code == 3
    assert "No number of calls tried meets psnr >= 99 @ 90%" in missed.err
    assert {Path(name).parts[0] for name in list_files(out)} == {"drawn"}
    met = shell(*asked, *more, "psnr >= 1 @ 50%", "--out", str(out))
    assert met.code == 0, met.err
    assert "4 calls are the least of those tried" in met.out
    assert "skipstone calibrate gives one" in met.out
    assert [path.parent.name for path in out.glob("*/policy.json")] == ["tuned-4"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--search", "tpee"), "Did you mean 'tpe'?"),
        (("--budget", "7"), "--budget: expected at least 8 calls"),
        (("--space", "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("--space", "space.yaml"), "Did you mean 'path'?"),
        (("--target", "ssim >= 0.9 @ 90%"), "tune measures psnr, got ssim"),
        (("--target", "psnr > 3"), "target: expected"),
        (("--milliseconds", "5"), "leave --calls out"),
        (("--policy", "adaptive_grid"), "leave --policy adaptive_grid out"),
        (("--search", ""), "--budget is for --search"),
    ],
)
def test_bad_input_is_a_sentence(
    more: tuple[str, ...], said: str, asked: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("paht: {}\n")
    out = shell(*asked, *more, "--out", str(tmp_path / "best"))
    assert out.code == 2
    assert said in out.err
    assert not (tmp_path / "best").exists()


def test_milliseconds_say_how_many_calls(asked: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    """The table is read, not measured again: a call is said to take 10 ms, so that 45 ms are 4 calls."""
    model = asked[1:3]
    first = shell("latency", *model, "--json")
    assert first.code == 0, first.err
    table = json.loads(first.out)
    file = Path(table["file"])
    assert file.parent == tmp_path / "cache" / "latency"
    assert [one["rows"] for one in table["entries"]] == [2, 4, 8, 16, 32]
    assert {(one["height"], one["width"], one["dtype"]) for one in table["entries"]} == {(64, 64, "float32")}
    assert table["rows"] in (2, 4, 8, 16, 32)
    saved = json.loads(file.read_text())
    for one in saved["entries"]:
        one["milliseconds"] = 10.0
    file.write_text(json.dumps(saved))
    assert "a call takes 10 ms for one picture alone" in shell("latency", *model).out
    at = asked.index("--calls")
    found = shell(*asked[:at], *asked[at + 2 :], "--milliseconds", "45", "--out", str(tmp_path / "best"))
    assert found.code == 0, found.err
    assert (tmp_path / "best" / "tuned-4" / "policy.json").is_file()
    little = shell(*asked[:at], *asked[at + 2 :], "--milliseconds", "9", "--out", str(tmp_path / "little"))
    assert (little.code, "expected at least 10, the time of one call" in little.err) == (2, True)


def test_latencies_of_a_pipeline_are_those_of_its_steps(asked: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    where = (*asked[1:3], "--as-guest", "--device", "cpu")
    found = shell("latency", *where, "--json")
    assert found.code == 0, found.err
    table = json.loads(found.out)
    assert (table["branches"], table["entries"][0]["rows"]) == (2, 2)
    assert all(one["milliseconds"] > 0 for one in table["entries"])
    file = Path(table["file"])
    file.write_text(json.dumps({"model": "x", "machine": "y", "entries": [{"rows": 2}]}))
    damaged = shell("latency", *where)
    assert damaged.code == 2
    assert "Delete the file" in damaged.err
