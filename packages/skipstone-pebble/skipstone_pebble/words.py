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

#: Other wordings that training used now and then -> the grammar's own.
SYNONYMS: dict[str, str] = {
    "apple": "red apple",
    "burger": "hamburger",
    "cheeseburger": "hamburger",
    "donut": "doughnut",
    "melon": "watermelon",
    "pizza slice": "pizza",
    "slice of pizza": "pizza",
    "aubergine": "eggplant",
    "kitten": "cat",
    "kitty": "cat",
    "puppy": "dog",
    "toad": "frog",
    "panda bear": "panda",
    "tortoise": "turtle",
    "blue whale": "whale",
    "spaceship": "rocket",
    "rocket ship": "rocket",
    "automobile": "car",
    "red car": "car",
    "green tractor": "tractor",
    "electric guitar": "guitar",
    "golden key": "key",
    "heart": "red heart",
    "ball": "basketball",
    "hat": "top hat",
    "pink tulip": "tulip",
    "toadstool": "mushroom",
    "xmas tree": "christmas tree",
    "jack o lantern": "pumpkin",
    "parasol": "umbrella",
    "home": "house",
    "cottage": "house",
    "yellow star": "star",
    "golden star": "star",
    "to the left of": "left of",
    "to the right of": "right of",
    "over": "above",
    "on top of": "above",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
    "little": "small",
    "tiny": "small",
    "big": "large",
    "huge": "large",
    "grey": "gray",
    "violet": "purple",
}

#: Words that say nothing about the picture; training sprinkled them in so that they change little.
FILLERS: tuple[str, ...] = (
    "adorable", "amazing", "beautiful", "bright", "bold", "brilliant", "charming", "cheerful", "classic",
    "clean", "clear", "colorful", "colourful", "cool", "cute", "delightful", "detailed", "fancy", "fine",
    "friendly", "fun", "funny", "glossy", "good", "gorgeous", "great", "happy", "jolly", "kind", "lovely",
    "lively", "magical", "merry", "modern", "neat", "new", "nice", "old", "ordinary", "perfect", "plain",
    "playful", "pleasant", "polished", "pretty", "proper", "quiet", "real", "rendered", "shiny", "simple",
    "single", "sleek", "smiling", "smooth", "soft", "special", "splendid", "stylish", "sunny", "superb",
    "sweet", "tidy", "typical", "vivid", "warm", "wonderful",
)  # fmt: skip

#: Openings that say nothing either: "a photo of a cat".
OPENINGS: tuple[str, ...] = tuple(
    f"{article} {noun} of"
    for article, nouns in (
        ("a", "picture photo photograph drawing painting rendering render sketch scene view"),
        ("an", "image icon emoji illustration"),
    )
    for noun in nouns.split()
)

#: The small words of the grammar.
FUNCTION_WORDS: tuple[str, ...] = ("a", "an", "the", "on", "of", "to", "background", "backdrop", "ground")


def known_words() -> list[str]:
    """Every word Pebble was trained on, sorted; each is one token of its tokenizer."""
    phrases = [*OBJECTS, *BACKGROUNDS, *SIZES, *RELATIONS, *SYNONYMS, *FILLERS, *OPENINGS, *FUNCTION_WORDS]
    return sorted({word for phrase in phrases for word in phrase.split()} - {"normal"})
