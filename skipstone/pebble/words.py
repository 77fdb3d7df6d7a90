"""The words of Pebble's grammar: objects, backgrounds, sizes and relations (plain Python, no imports)."""

from __future__ import annotations

#: What Pebble can draw: its name for the object -> the CLDR short name of the artwork it was shown.
OBJECTS: dict[str, str] = {
    "red apple": "red apple",
    "green apple": "green apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "watermelon": "watermelon",
    "pizza": "pizza",
    "hamburger": "hamburger",
    "doughnut": "doughnut",
    "carrot": "carrot",
    "eggplant": "eggplant",
    "cat": "cat face",
    "dog": "dog face",
    "frog": "frog",
    "fox": "fox",
    "panda": "panda",
    "turtle": "turtle",
    "crab": "crab",
    "butterfly": "butterfly",
    "whale": "whale",
    "penguin": "penguin",
    "elephant": "elephant",
    "rocket": "rocket",
    "bus": "bus",
    "tractor": "tractor",
    "car": "automobile",
    "guitar": "guitar",
    "key": "key",
    "red heart": "red heart",
    "blue heart": "blue heart",
    "green heart": "green heart",
    "yellow heart": "yellow heart",
    "basketball": "basketball",
    "top hat": "top hat",
    "cactus": "cactus",
    "tulip": "tulip",
    "sunflower": "sunflower",
    "mushroom": "mushroom",
    "christmas tree": "Christmas tree",
    "pumpkin": "jack-o-lantern",
    "umbrella": "umbrella",
    "house": "house",
    "star": "star",
}

#: The background colours, 8-bit sRGB.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 60, 60),
    "yellow": (250, 212, 70),
    "green": (80, 170, 90),
    "blue": (60, 110, 215),
    "purple": (140, 85, 190),
    "pink": (245, 160, 195),
    "gray": (150, 150, 155),
    "white": (250, 250, 250),
}

#: Size words of a picture of one object -> the sprite's width in pixels ("normal" is said by saying nothing).
SIZES: dict[str, int] = {"small": 24, "normal": 38, "large": 52}

#: Sprite width in pixels where two objects share the picture.
PAIR_SIZE = 28

#: Relations of the first object to the second -> the same seen from the second.
RELATIONS: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
