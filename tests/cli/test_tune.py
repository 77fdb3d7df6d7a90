"""`skipstone tune` as a shell sees it, on a tiny model in the engine's loop and in its pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Shell

from skipstone.evaluation.engine_subject import EngineSubject

SMALL = ("--limit", "2", "--fine", "16", "--calls", "4", "--calls", "6")


@pytest.fixture
def asked(tiny_pebble: Path, tmp_path: Path) -> tuple[str, ...]:
    """All of the command but its --out."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na blue dog\na green bus\n")
    return ("tune", "--model", str(tiny_pebble), "--prompts", str(prompts), *SMALL)


def test_grids_from_one_command_and_from_where_it_was_cut_off(
    asked: tuple[str, ...], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pebble: Path
) -> None:
    draw, left = EngineSubject.draw, [6]

    def cut(self: EngineSubject, items: object, column: object, watch: object = None) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(self, items, column, watch)  # type: ignore[arg-type]

    grids = tmp_path / "grids"
    monkeypatch.setattr(EngineSubject, "draw", cut)
    stopped = shell(*asked, "--out", str(grids))
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    assert [path.name for path in grids.iterdir()] == ["drawn"]
    assert not list(grids.rglob("*.part"))
    monkeypatch.setattr(EngineSubject, "draw", draw)
    done = shell(*asked, "--out", str(grids))
    assert done.code == 0, done.err
    for label in ("path-4", "path-6", "even angles", "fixed @ dpmpp"):
        assert label in done.out
    assert "the tuning prompts themselves" in done.out
    assert "2 prompts are few" in done.err

    found = json.loads((grids / "paths.json").read_text())
    paths = {row["label"]: row for row in found["rows"] if row["group"] == "path"}
    assert {label: row["spent"] for label, row in paths.items()} == {"path-4": 4.0, "path-6": 6.0}
    assert found["fingerprint"]["weights"]
    assert len(found["gains"]) > 4
    assert (grids / "paths.png").stat().st_size > 10_000

    drawn = shell(
        "generate", "a red cat", "--model", str(tiny_pebble), "--policy", str(grids / "path-4"), "--out", "a.png"
    )
    assert drawn.code == 0, drawn.err
    assert "4.0 of" in drawn.out + drawn.err or "4 of" in drawn.out + drawn.err

    again = shell(*asked, "--out", str(grids))
    assert again.code == 2
    assert "--force" in again.err
    monkeypatch.setattr(
        EngineSubject, "draw", lambda *a, **k: pytest.fail("drawn again") if left[0] < -9 else draw(*a, **k)
    )
    held = shell(*asked, "--out", str(grids), "--force", "--check", asked[4], "--no-rivals")
    assert held.code == 0, held.err
    assert "prompts that were not tuned on" in held.out
    assert "fixed @ dpmpp" not in held.out
    assert "The two references agree to" in held.out


def test_grids_for_a_pipeline(asked: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    """Taken over: the calls are counted by a hook on its network."""
    out = shell(*asked, "--as-guest", "--device", "cpu", "--no-rivals", "--out", str(tmp_path / "grids"))
    assert out.code == 0, out.err
    found = json.loads((tmp_path / "grids" / "paths.json").read_text())
    assert {row["label"]: row["spent"] for row in found["rows"] if row["group"] == "path"} == {"path-4": 4, "path-6": 6}


@pytest.mark.parametrize("where", [(), ("--as-guest", "--device", "cpu")], ids=["engine", "pipeline"])
def test_slopes_of_the_default(where: tuple[str, ...], asked: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    out = shell(*asked, *where, "--policy", "adaptive_grid", "--calls", "5", "--out", str(tuned))
    assert out.code == 0, out.err
    assert "the tuning prompts under other seeds" in out.out
    folders = {path.parent.name for path in tuned.glob("*/policy.json")}
    assert folders == {"adaptive-4", "adaptive-5", "adaptive-6"}
    found = json.loads((tuned / "slopes.json").read_text())
    assert found["verdict"] in out.out
    assert [policy.startswith("adaptive_grid(calls=") for policy in found["policies"]] == [True] * 3
    model = asked[1:3]
    folder = str(tuned / "adaptive-5")
    drawn = shell("generate", "a red cat", *model, *where, "--policy", folder, "--out", "a.png", "--json")
    assert drawn.code == 0, drawn.err
    assert 0 < json.loads(drawn.out)["calls"] < 50
    page = shell(
        "compare", "a red cat", *model, *where, "-p", folder, "-p", "fewer", "--out", str(tmp_path / "compare")
    )
    assert page.code == 0, page.err
    assert "adaptive_grid" in page.out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--calls", "3"), "--calls between 4 and 8"),
        (("--calls", "9"), "--calls between 4 and 8"),
        (("--fine", "7"), "--fine from 8 to 400"),
        (("--policy", "stride"), "path"),
        (("--prompts", "nowhere.txt"), "No prompt set or file is called"),
        (("--check", "pebbel"), "Did you mean 'pebble'?"),
        (("--model", "nothing/here/at/all"), "nothing/here/at/all"),
        (("--set", "height=64"), "add --as-guest"),
    ],
)
def test_bad_input_is_a_sentence(
    more: tuple[str, ...], said: str, asked: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    out = shell(*asked, *more, "--out", str(tmp_path / "grids"))
    assert out.code == 2
    assert said in out.err
    assert not (tmp_path / "grids").exists()
