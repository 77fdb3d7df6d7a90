"""`skipstone tune --domains` as a shell sees it, on a tiny model in the engine's loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Shell

from skipstone.evaluation.engine_subject import EngineSubject

SMALL = ("--limit", "2", "--fine", "16", "--calls", "4")
COLOURS, THINGS = ("red", "blue", "green", "black", "white"), ("cat", "dog")


@pytest.fixture
def asked(tiny_pebble: Path, tmp_path: Path) -> tuple[str, ...]:
    """All of the command but its --out."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "single.txt").write_text("\n".join(f"a {c} {t}" for c in COLOURS for t in THINGS))
    (folder / "pair.txt").write_text("\n".join(f"a {c} {t} left of a cup" for c in COLOURS for t in THINGS))
    return ("tune", "--model", str(tiny_pebble), "--domains", str(folder), *SMALL)


def test_a_setting_for_each_domain_from_where_it_was_cut_off(
    asked: tuple[str, ...], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, left = EngineSubject.draw, [9]

    def cut(self: EngineSubject, items: object, column: object, watch: object = None) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(self, items, column, watch)  # type: ignore[arg-type]

    out = tmp_path / "tuned"
    monkeypatch.setattr(EngineSubject, "draw", cut)
    stopped = shell(*asked, "--out", str(out))
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    assert [path.name for path in out.iterdir()] == ["drawn"]
    monkeypatch.setattr(EngineSubject, "draw", draw)
    done = shell(*asked, "--features", "words", "--out", str(out))
    assert done.code == 0, done.err
    _check_results(done.out, out)
    refused = shell(*asked, "--out", str(out))
    assert refused.code == 2
    assert "--force" in refused.err

    drawn = shell("generate", "a red cat", *asked[1:3], "--policy", str(out / "domains-4"), "--out", "a.png", "--json")
    assert drawn.code == 0, drawn.err
    assert json.loads(drawn.out)["calls"] == 4


def _check_results(printed: str, out: Path) -> None:
    found = json.loads((out / "domains.json").read_text())
    assert found["domains"] == {"pair": [2, 2], "single": [2, 2]}
    (one,) = found["calls"]
    assert one["verdict"] in printed
    assert set(one["domains"]) == {"pair", "single"}
    assert found["classifier"]["accuracy"] > 0.9
    assert (out / "domains.png").stat().st_size > 10_000
    assert "Settings by domain" in (out / "README.md").read_text()


def test_slopes_of_the_default_by_the_models_own_text_states(
    asked: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    done = shell(*asked, "--policy", "adaptive_grid", "--features", "states", "--out", str(out))
    assert done.code == 0, done.err
    _check_results(done.out, out)
    found = json.loads((out / "domains.json").read_text())
    assert found["calls"][0]["general"].startswith("adaptive_grid(calls=4")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--prompts", "pebble-tuning"), "leave --prompts out"),
        (("--check", "pebble"), "leave --check out"),
        (("--samples", "3"), "leave --samples out"),
        (("--features", "clip"), "--clip FOLDER"),
        (("--clip", "somewhere"), "--clip FOLDER"),
        (("--features", "clip", "--clip", "nowhere"), "Expected the folder of a CLIP"),
        (("--features", "letters"), "letters"),
        (("--domains", "nowhere"), "No prompt set or file is called"),
        (("--domains", "one.txt"), "expected a domain for each prompt"),
        (("--domains", "few.csv"), "expected at least 10 different prompts of each domain, got 1"),
    ],
)
def test_bad_input_is_a_sentence(
    more: tuple[str, ...], said: str, asked: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("a red cat\na blue dog\n")
    (tmp_path / "few.csv").write_text("prompt,domain\na red cat,one\na blue dog,two\n")
    refused = shell(*asked, *more, "--out", str(tmp_path / "tuned"))
    assert refused.code == 2
    assert said in " ".join(refused.err.split())
    assert not (tmp_path / "tuned").exists() or not list((tmp_path / "tuned").glob("*.json"))
