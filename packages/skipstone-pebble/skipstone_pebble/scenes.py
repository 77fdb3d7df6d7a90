"""Scenes: what a picture shows, the caption that says so, and the pixels that show it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .words import BACKGROUNDS, FILLERS, OBJECTS, OPENINGS, PAIR_SIZE, RELATIONS, SIZES, SYNONYMS

#: Side of a picture in pixels.
SIDE = 64
#: Offsets of an object from its place, in pixels, that a layout may use.
JITTER = (-4, 0, 4)
#: Seed of the withheld combinations (`python -m skipstone_pebble.scenes` writes the file again).
WITHHELD_SEED = 20

Offsets = tuple[tuple[int, int], ...]
Sprites = Mapping[str, Mapping[int, NDArray[np.float32]]]


@dataclass(frozen=True)
class Scene:
    """One or two objects on a flat ground.

    Args:
        objects: one or two names out of `words.OBJECTS`.
        relation: of the first object to the second ("left of", ...); None for one object.
        background: a name out of `words.BACKGROUNDS`; None where a caption leaves it open.
        size: "small", "normal" or "large"; always "normal" for two objects.
    """

    objects: tuple[str, ...]
    relation: str | None = None
    background: str | None = None
    size: str = "normal"

    def __post_init__(self) -> None:
        known = all(name in OBJECTS for name in self.objects)
        ground = self.background is None or self.background in BACKGROUNDS
        if len(self.objects) == 1:
            shape = self.relation is None and self.size in SIZES
        else:
            shape = len(self.objects) == 2 and self.relation in RELATIONS and self.size == "normal"
        if not (known and ground and shape):
            raise ValueError(f"not a scene of Pebble's grammar: {self!r}")

    def mirror(self) -> Scene:
        """The same picture of two objects, told from the other object."""
        if self.relation is None:
            return self
        return Scene(self.objects[::-1], RELATIONS[self.relation], self.background)

    def without_background(self) -> Scene:
        """The same scene with the background left open."""
        return Scene(self.objects, self.relation, None, self.size)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene) -> str:
    """The sentence for a scene, e.g. "a cat left of a rocket on a yellow background"."""
    first = scene.objects[0] if scene.size == "normal" else f"{scene.size} {scene.objects[0]}"
    text = _article(first)
    if scene.relation is not None:
        text += f" {scene.relation} {_article(scene.objects[1])}"
    if scene.background is not None:
        text += f" on {_article(scene.background)} background"
    return text


def _alternatives(names: Iterable[str]) -> str:
    """A pattern for any of the names or of their synonyms, longest first."""
    phrases = {*names, *(other for other, name in SYNONYMS.items() if name in set(names))}
    return "|".join(sorted(phrases, key=lambda phrase: (-len(phrase), phrase)))


_ARTICLE = r"(?:(?:an?|the) )?"
_SENTENCE = re.compile(
    rf"(?:(?:{'|'.join(OPENINGS)}) )?"
    rf"{_ARTICLE}(?:(?P<size>{_alternatives(['small', 'large'])}) )?(?P<first>{_alternatives(list(OBJECTS))})"
    rf"(?: (?P<relation>{_alternatives(list(RELATIONS))}) {_ARTICLE}(?P<second>{_alternatives(list(OBJECTS))}))?"
    rf"(?: on {_ARTICLE}(?P<background>{_alternatives(list(BACKGROUNDS))})(?: (?:background|backdrop|ground))?)?"
)


def parse_prompt(prompt: str) -> Scene | None:
    """The scene a prompt describes, or None where it is not a sentence of the grammar.

    Case, surplus blanks, a full stop at the end, the choice of article, an opening ("a photo of"),
    `words.FILLERS` ("a cute cat") and `words.SYNONYMS` do not matter.
    """
    words = prompt.lower().rstrip(" .").split()
    match = _SENTENCE.fullmatch(" ".join(word for word in words if word not in FILLERS))
    if match is None:
        return None
    named = {key: SYNONYMS.get(value, value) for key, value in match.groupdict().items() if value}
    size, relation, ground = named.get("size", "normal"), named.get("relation"), named.get("background")
    if relation is None:
        return Scene((named["first"],), None, ground, size)
    if size != "normal":
        return None
    return Scene((named["first"], named["second"]), relation, ground)


def object_places(scene: Scene) -> list[tuple[int, int, int]]:
    """Centre (x, y) and width of each object, in pixels, before any offset."""
    if scene.relation is None:
        return [(SIDE // 2, SIDE // 2, SIZES[scene.size])]
    near, far, middle = SIDE // 4, 3 * SIDE // 4, SIDE // 2
    first = near if scene.relation in ("left of", "above") else far
    second = far if first == near else near
    if scene.relation in ("left of", "right of"):
        return [(first, middle, PAIR_SIZE), (second, middle, PAIR_SIZE)]
    return [(middle, first, PAIR_SIZE), (middle, second, PAIR_SIZE)]


def layouts(scene: Scene) -> list[Offsets]:
    """Every layout the recipe draws a scene in: (dx, dy) in pixels for each object.

    One object moves both ways; of two, each moves across the line that joins them only.
    """
    if scene.relation is None:
        return [((dx, dy),) for dy in JITTER for dx in JITTER]
    if scene.relation in ("left of", "right of"):
        return [((0, a), (0, b)) for a in JITTER for b in JITTER]
    return [((a, 0), (b, 0)) for a in JITTER for b in JITTER]


def render(scene: Scene, sprites: Sprites, offsets: Offsets | None = None) -> NDArray[np.uint8]:
    """Draw a scene: (64, 64, 3) uint8 sRGB.

    Args:
        scene: what to draw; its background must be given.
        sprites: name -> width -> premultiplied RGBA in [0, 1], (width, width, 4); see `sprites.load`.
        offsets: (dx, dy) in pixels for each object; None for none.
    """
    if scene.background is None:
        raise ValueError("a scene needs a background to be drawn")
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = np.asarray(BACKGROUNDS[scene.background], np.float32) / 255
    for index, (name, (x, y, width)) in enumerate(zip(scene.objects, object_places(scene), strict=True)):
        dx, dy = offsets[index] if offsets is not None else (0, 0)
        sprite = sprites[name][width]
        top, left = y + dy - width // 2, x + dx - width // 2
        patch = picture[top : top + width, left : left + width]
        patch *= 1 - sprite[..., 3:]
        patch += sprite[..., :3]
    return np.asarray(np.rint(picture.clip(0, 1) * 255), np.uint8)


# --- what training never sees -------------------------------------------------------------------


@dataclass(frozen=True)
class Withheld:
    """Combinations kept out of training: (object, background), and unordered pairs of objects."""

    grounds: frozenset[tuple[str, str]]
    pairs: frozenset[frozenset[str]]

    def contains(self, scene: Scene) -> bool:
        """Whether training must not draw this scene (two objects also respect the grounds)."""
        if any((name, scene.background) in self.grounds for name in scene.objects):
            return True
        return frozenset(scene.objects) in self.pairs


@lru_cache(maxsize=1)
def withheld() -> Withheld:
    """The committed list of `withheld.json`."""
    data = json.loads(_withheld_file().read_text(encoding="utf-8"))
    return Withheld(
        frozenset((name, ground) for name, ground in data["grounds"]),
        frozenset(frozenset(pair) for pair in data["pairs"]),
    )


def withheld_prompts(kind: str) -> list[str]:
    """The prompts the bars are measured on: "single" (216 of them) or "pair" (252).

    Raises:
        ValueError: another kind.
    """
    if kind not in ("single", "pair"):
        raise ValueError(f'expected "single" or "pair", got {kind!r}')
    data = json.loads(_withheld_file().read_text(encoding="utf-8"))
    prompts: list[str] = data["prompts"][kind]
    return list(prompts)


def training_prompts(kind: str, count: int = 1256) -> list[str]:
    """Prompts like those that training saw: "single" (all 792 of them), or `count` of "pair"; none is withheld."""
    names, hidden = list(OBJECTS), withheld()
    if kind == "single":
        scenes = [Scene((o,), None, ground, size) for o in names for ground in BACKGROUNDS for size in SIZES]
        return [caption(scene) for scene in scenes if not hidden.contains(scene)]
    rng = random.Random(WITHHELD_SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        first, second = rng.sample(names, 2)
        scene = Scene((first, second), rng.choice(list(RELATIONS)), rng.choice(list(BACKGROUNDS)))
        if not hidden.contains(scene):
            found[caption(scene)] = None
    return list(found)


def _withheld_file() -> Path:
    return Path(__file__).with_name("withheld.json")


def _choose_pairs(rng: random.Random, rounds: int) -> list[tuple[str, str]]:
    """`rounds` perfect matchings of the objects with no pair twice and no object with itself."""
    names, chosen = list(OBJECTS), set[frozenset[str]]()
    for _ in range(rounds):
        while True:
            order = rng.sample(names, len(names))
            match = {frozenset(order[i : i + 2]) for i in range(0, len(order), 2)}
            if not match & chosen:
                chosen |= match
                break
    return sorted((min(pair), max(pair)) for pair in chosen)


def make_withheld(seed: int = WITHHELD_SEED) -> dict[str, Any]:
    """Draw the withheld combinations and their prompts anew: 72 (object, background), 84 pairs."""
    rng = random.Random(seed)
    names, grounds = list(OBJECTS), list(BACKGROUNDS)
    order = rng.sample(names, len(names)) + rng.sample(names, 72 - len(names))
    columns: list[str] = []
    combos = set[tuple[str, str]]()
    while len(combos) < 72:  # nine objects to each background, no object twice on one background
        columns = rng.sample(grounds * 9, 72)
        combos = set(zip(order, columns, strict=True))
    pairs = _choose_pairs(rng, 4)
    single = [caption(Scene((o,), None, b, size)) for o, b in sorted(combos) for size in SIZES]
    double: list[str] = []
    relations = list(RELATIONS)
    for index, (a, b) in enumerate(pairs * 3):
        first, second = rng.sample([a, b], 2)
        open_grounds = [g for g in grounds if (a, g) not in combos and (b, g) not in combos]
        ground = rng.choice(open_grounds)
        double.append(caption(Scene((first, second), relations[(index + index // 84) % 4], ground)))
    return {
        "seed": seed,
        "grounds": sorted(combos),
        "pairs": pairs,
        "prompts": {"single": single, "pair": double},
    }


if __name__ == "__main__":
    _withheld_file().write_text(json.dumps(make_withheld(), indent=1) + "\n", encoding="utf-8")
