"""Labelled prompts of our own, with words inside other words: surreal, surface, cart, signature, cereal."""

from __future__ import annotations

import itertools

from skipstone.evaluation.prompt import Prompt

SENTENCES = {
    "photo": [
        "a real photo of {a}",
        "a realistic photograph of {a}, 35mm film",
        "{a}, real life, sharp focus",
        "real candid shot of {a} and {b}",
    ],
    "art": [
        "art of {a} in oil on canvas",
        "an oil painting of {a} and {b}",
        "fine art, {a} in watercolour",
        "abstract painting of {a}",
    ],
    "portrait": [
        "a close face of a woman with {a}",
        "portrait of an old man, his face in soft light, beside {a}",
        "the face of a smiling child holding {a}",
        "headshot, a tired face, {a} behind",
    ],
    "nature": [
        "nature, a mountain valley with {a}",
        "a quiet lake in nature, {a} on the shore",
        "a forest at dawn, nature, with {a}",
        "wild nature and a waterfall near {a}",
    ],
    "dream": [
        "a surreal dream of {a}",
        "surreal world where {a} floats above {b}",
        "a surreal dreamscape, melting {a}",
        "a dream in which {a} turns into {b}",
    ],
    "space": [
        "the surface of Mars with {a}",
        "an orbit above the surface of a planet, {a} drifting",
        "astronauts on the surface of the moon carry {a}",
        "a galaxy of stars behind {a}",
    ],
    "vehicle": [
        "a cart full of {a}",
        "a horse pulls a cart with {a}",
        "an old truck next to {a}",
        "a wooden cart on a road, {a} inside",
    ],
    "food": [
        "a cereal box with {a} on it",
        "a bowl of signature soup beside {a}",
        "cereal with milk and {a}",
        "a plate of pasta, {a} on the table",
    ],
}
THINGS = ["apples", "a lamp", "two chairs", "a clock", "roses", "a blue vase", "books", "a kettle"]
WITHHELD = ["a violin", "pears"]  # in no training prompt

TRAPS = {  # prompt -> (its domain, the one that the word inside the word names)
    "a surreal dream of a violin": ("dream", "photo"),
    "the surface of Mars with pears": ("space", "portrait"),
    "a cart full of pears": ("vehicle", "art"),
    "a bowl of signature soup beside a violin": ("food", "nature"),
    "a cereal box with pears on it": ("food", "photo"),
    "abstract painting of a violin": ("art", "photo"),
}


def labelled(things: list[str]) -> list[Prompt]:
    """All sentences with these things, each once; the category is the domain."""
    found = {}
    for domain, sentences in SENTENCES.items():
        for sentence, (a, b) in itertools.product(sentences, itertools.permutations(things, 2)):
            text = sentence.format(a=a, b=b)
            found.setdefault(text, Prompt(text.replace(" ", "-"), text, domain))
    return list(found.values())


TRAINING, OTHERS = labelled(THINGS), labelled(WITHHELD)
STRANGE = [  # of no domain
    "zxqv 4711 kjhw bnmrt",
    "SELECT name FROM users WHERE id = 7",
    "Steuererklärung für das zweite Quartal",
    "x = (y + 3) / 2",
    "!!!???",
]
