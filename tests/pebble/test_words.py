"""Words, captions and what is withheld: nothing here needs weights or artwork."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import skipstone_pebble as pebble
from skipstone_pebble import scenes, text
from skipstone_pebble.recipe import data
from skipstone_pebble.scenes import Scene, caption, parse_prompt
from skipstone_pebble.words import BACKGROUNDS, OBJECTS, RELATIONS, SIZES, known_words

names, grounds = st.sampled_from(list(OBJECTS)), st.sampled_from([None, *BACKGROUNDS])
singles = st.builds(lambda n, g, s: Scene((n,), None, g, s), names, grounds, st.sampled_from(list(SIZES)))
pairs = st.builds(lambda a, b, r, g: Scene((a, b), r, g), names, names, st.sampled_from(list(RELATIONS)), grounds)


@given(singles | pairs)
def test_a_caption_is_parsed_back_to_its_scene(scene: Scene) -> None:
    assert parse_prompt(caption(scene)) == scene


@given(pairs)
def test_mirroring_twice_is_the_same_scene(scene: Scene) -> None:
    assert scene.mirror().mirror() == scene
    assert scene.mirror().objects == scene.objects[::-1]


@given(singles | pairs, st.integers(0, 2**32 - 1))
def test_loose_wordings_still_say_the_scene(scene: Scene, seed: int) -> None:
    told = parse_prompt(text.vary_caption(scene, np.random.default_rng(seed)))
    assert told is not None
    same = {told, told.mirror()}
    assert scene in same or scene.without_background() in same


def test_the_issues_examples() -> None:
    assert parse_prompt("a red apple on a blue background") == Scene(("red apple",), None, "blue")
    told = parse_prompt("A cat left of a rocket on a yellow background.")
    assert told == Scene(("cat", "rocket"), "left of", "yellow")
    assert caption(Scene(("umbrella",), None, "white", "small")) == "a small umbrella on a white background"
    assert caption(Scene(("umbrella",), None, "white")) == "an umbrella on a white background"


@pytest.mark.parametrize(
    "prompt", ["", "a zebra", "a cat and a dog", "a small cat left of a dog", "a cat on a blue background today"]
)
def test_other_sentences_are_not_parsed(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_a_scene_outside_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="not a scene"):
        Scene(("zebra",))
    with pytest.raises(ValueError, match="not a scene"):
        Scene(("cat", "dog"), None)


def test_unknown_words_are_told_in_order_and_once() -> None:
    assert pebble.unknown_words("A zebra, left of a CAT; zebra riding!") == ["zebra", "riding"]
    assert pebble.unknown_words("a photo of a cute donut on a grey ground") == []


def test_the_grammar_is_as_large_as_asked() -> None:
    assert len(pebble.VOCABULARY["objects"]) >= 40
    assert len(pebble.VOCABULARY["backgrounds"]) == 8
    assert set(pebble.VOCABULARY["relations"]) == {"left of", "right of", "above", "below"}


def test_withheld_prompts_are_enough_and_the_file_is_what_its_seed_makes() -> None:
    for kind in ("single", "pair"):
        prompts = scenes.withheld_prompts(kind)
        assert len(set(prompts)) == len(prompts) >= 200
        assert all(scenes.withheld().contains(told) for told in map(parse_prompt, prompts) if told is not None)
        assert None not in map(parse_prompt, prompts)
    made = scenes.make_withheld()
    assert made["prompts"]["pair"] == scenes.withheld_prompts("pair")
    assert {tuple(combo) for combo in made["grounds"]} == scenes.withheld().grounds
    with pytest.raises(ValueError, match="single"):
        scenes.withheld_prompts("triple")


def test_training_never_draws_a_withheld_scene() -> None:
    rng = np.random.default_rng(3)
    drawn = [data.draw_scene(rng) for _ in range(5000)]
    combos = {(name, scene.background) for scene in drawn for name in scene.objects}
    assert not combos & scenes.withheld().grounds
    assert not {frozenset(scene.objects) for scene in drawn} & scenes.withheld().pairs
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)


def test_every_known_word_is_one_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = text.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    assert len(known_words()) >= 150
    lengths = {word: len(tokenizer(word).input_ids) for word in known_words()}
    assert {word for word, length in lengths.items() if length != 3} == set()
    assert len(tokenizer("zebra").input_ids) > 3


def test_the_tokenizer_is_the_same_in_every_process_and_kept_when_there_is_one(tmp_path: Path) -> None:
    code = "import sys, pathlib; from skipstone_pebble.text import build_tokenizer as b; b(pathlib.Path(sys.argv[1]))"
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, capture_output=True)
    first = (tmp_path / "one" / "vocab.json").read_bytes()
    assert first == (tmp_path / "other" / "vocab.json").read_bytes()
    assert (tmp_path / "one" / "merges.txt").read_bytes() == (tmp_path / "other" / "merges.txt").read_bytes()
    shutil.copytree(pebble.path() / "tokenizer", tmp_path / "shipped")
    kept = text.build_tokenizer(tmp_path / "shipped").get_vocab()
    assert kept == json.loads((pebble.path() / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))


def test_importing_pebble_is_light() -> None:
    code = "import sys, skipstone_pebble; print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_as_many_captions_as_asked_begin_with_the_left_or_upper_object() -> None:
    rng = np.random.default_rng(0)
    for share in (0.5, 0.8, 1.0):
        told = [parse_prompt(text.vary_caption(data.draw_scene(rng, 1.0), rng, share)) for _ in range(600)]
        leading = np.mean([scene.relation in ("left of", "above") for scene in told])
        assert leading == pytest.approx(share, abs=0.06)
