"""The networks of the zoo, each with its schedule, domain, shape and training."""

from __future__ import annotations

from dataclasses import dataclass

from research.zoo.data import GROUNDS, Domain
from research.zoo.network import TEXT_WIDTH, NetworkSettings
from research.zoo.schedules import Schedule


@dataclass(frozen=True)
class Recipe:
    """How one network is made.

    Args:
        name: of its folder.
        schedule: noise schedule and prediction type.
        domain: what it draws.
        network: class and shape.
        labelled: whether the network reads labels; a tenth of them are dropped, so that guidance works.
        patch: side of the squares of pixels that become channels (an orthogonal change of basis), 1 for none.
        scale, centre: samples are `scale * (picture - centre)` of pictures in [-1, 1].
        batch: samples a step.
        rate: highest learning rate.
        muon: whether Muon trains the matrices (else AdamW trains all).
        minutes: of one core.
        guidance: of the contact sheet.
        teacher: name of the network whose guidance this one is distilled from, and whose weights it starts from.
        guidances: smallest and largest guidance scale to distil.
    """

    name: str
    schedule: Schedule
    domain: Domain
    network: NetworkSettings
    labelled: bool = True
    patch: int = 1
    scale: float = 1.0
    centre: float = 0.0
    batch: int = 16
    rate: float = 1e-3
    muon: bool = False
    minutes: float = 15.0
    guidance: float = 1.0
    teacher: str | None = None
    guidances: tuple[float, float] = (1.0, 7.5)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as the network sees it."""
        side = self.domain.side // self.patch
        frames = (self.domain.frames,) if self.domain.kind == "clips" else ()
        return (self.domain.channels * self.patch**2, *frames, side, side)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each label has; empty without labels."""
        return tuple(map(len, self.domain.words)) if self.labelled else ()


def unet(side: int, channels: int, widths: tuple[int, ...]) -> NetworkSettings:
    """A UNet2DModel with one block a level and attention in the middle."""
    return NetworkSettings(
        "UNet2DModel",
        {
            "sample_size": side,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": widths,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "down_block_types": ("DownBlock2D",) * len(widths),
            "up_block_types": ("UpBlock2D",) * len(widths),
        },
    )


def text_unet(side: int, channels: int, widths: tuple[int, ...]) -> NetworkSettings:
    """A UNet2DConditionModel (Stable Diffusion's class) that reads text below its first level."""
    return NetworkSettings(
        "UNet2DConditionModel",
        {
            "sample_size": side,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": widths,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 4,
            "cross_attention_dim": TEXT_WIDTH,
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * (len(widths) - 1)),
            "up_block_types": (*("CrossAttnUpBlock2D",) * (len(widths) - 1), "UpBlock2D"),
        },
    )


def flux(channels: int, guided: bool) -> NetworkSettings:
    """A FluxTransformer2DModel of five blocks; `guided`: it is told the guidance scale."""
    return NetworkSettings(
        "FluxTransformer2DModel",
        {
            "in_channels": 4 * channels,
            "num_layers": 1,
            "num_single_layers": 4,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": TEXT_WIDTH,
            "axes_dims_rope": (8, 12, 12),
            "guidance_embeds": guided,
        },
    )


def wan(layers: int) -> NetworkSettings:
    """A WanTransformer3DModel: each token is 4 x 4 pixels of two frames."""
    return NetworkSettings(
        "WanTransformer3DModel",
        {
            "patch_size": (2, 4, 4),
            "in_channels": 3,
            "out_channels": 3,
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "ffn_dim": 384,
            "num_layers": layers,
            "text_dim": TEXT_WIDTH,
            "freq_dim": 64,
        },
    )


NOTO, FLUENT = "emoji_noto/noto_64.npz", "emoji_fluent/fluent3d_64.npz"
FLAT = "emoji_fluent/fluentflat_64.npz"
PALE = ("white", "yellow", "green", "blue")
ANIMALS = (
    "cat face", "dog face", "tiger face", "rabbit face", "cow face", "pig face", "frog", "panda",
    "bear", "fox", "lion", "koala", "penguin", "owl", "monkey face", "lady beetle",
)  # fmt: skip
FOOD = (
    "red apple", "banana", "cherries", "strawberry", "watermelon", "tomato", "carrot", "hamburger",
    "doughnut", "cookie", "pizza", "lemon", "avocado", "cupcake", "eggplant", "croissant",
)  # fmt: skip
THINGS = (
    "rocket", "soccer ball", "red heart", "star", "sun", "alarm clock", "wrapped gift", "balloon",
    "mushroom", "cactus", "sunflower", "snowman without snow", "house", "automobile", "umbrella", "crown",
)  # fmt: skip
MOVERS = ("soccer ball", "red heart", "star", "red apple", "ghost", "frog", "cat face", "rocket")

DIGITS = Domain("digits", 28, count=16_000)
FACES = (
    "grinning face", "beaming face with smiling eyes", "grinning face with big eyes", "winking face",
    "smiling face with smiling eyes", "smiling face with heart-eyes", "smiling face with sunglasses",
    "neutral face", "expressionless face", "confused face", "kissing face", "face with tongue",
    "disappointed face", "angry face", "enraged face", "crying face", "frowning face", "loudly crying face",
    "face with open mouth", "flushed face", "sleeping face", "nauseated face", "nerd face", "slightly smiling face",
    "upside-down face", "face with rolling eyes", "zipper-mouth face", "face with raised eyebrow", "star-struck",
    "pleading face", "cold face", "hot face",
)  # fmt: skip

_ALL = (
    Recipe(
        "digits_epsilon_linear",
        Schedule("linear", "epsilon"),
        DIGITS,
        unet(28, 1, (16, 32, 64)),
        labelled=False,
        batch=32,
        rate=2e-3,
        minutes=8,
    ),
    Recipe(
        "animals_epsilon_scaled_linear",
        Schedule("scaled_linear", "epsilon", 0.00085, 0.012),
        Domain("emoji", 32, NOTO, ANIMALS, grounds=PALE),
        text_unet(16, 12, (40, 80)),
        patch=2,
        scale=1.5,
        minutes=8,
        guidance=7.5,
    ),
    Recipe(
        "things_flow",
        Schedule("flow", shift=3.0),
        Domain("emoji", 32, FLUENT, THINGS, grounds=PALE),
        flux(12, guided=False),
        patch=2,
        muon=True,
        rate=2e-3,
        minutes=8,
        guidance=3.0,
    ),
    Recipe(
        "faces_epsilon_cosine",
        Schedule("squaredcos_cap_v2", "epsilon"),
        Domain("emoji", 32, NOTO, FACES, sizes=(0.85, 0.97)),
        unet(16, 12, (32, 64)),
        labelled=False,
        patch=2,
        centre=0.55,
        minutes=8,
    ),
    Recipe(
        "food_v_zero_snr",
        Schedule("scaled_linear", "v_prediction", 0.00085, 0.012, zero_snr=True),
        Domain("emoji", 32, FLAT, FOOD, grounds=tuple(GROUNDS)),
        unet(16, 12, (32, 64)),
        patch=2,
        minutes=4,
        guidance=2.0,
    ),
    Recipe(
        "animals_edm",
        Schedule("edm"),
        Domain("emoji", 32, FLUENT, ANIMALS[:8], grounds=PALE),
        unet(16, 12, (32, 64)),
        labelled=False,
        patch=2,
        minutes=12,
    ),
    Recipe(
        "digits_sample_cosine",
        Schedule("squaredcos_cap_v2", "sample"),
        DIGITS,
        unet(28, 1, (16, 32, 64)),
        rate=2e-3,
        minutes=6,
        guidance=2.0,
    ),
    Recipe(
        "clips_flow",
        Schedule("flow", shift=3.0),
        Domain("clips", 24, NOTO, MOVERS, grounds=("white", "yellow", "blue"), sizes=(0.48, 0.58), count=4000),
        wan(5),
        muon=True,
        rate=2e-3,
        batch=12,
        minutes=10,
        guidance=3.0,
    ),
    Recipe(
        "things_flow_distilled",
        Schedule("flow", shift=3.0),
        Domain("emoji", 32, FLUENT, THINGS, grounds=PALE),
        flux(12, guided=True),
        patch=2,
        muon=True,
        rate=5e-4,
        minutes=3,
        guidance=3.0,
        teacher="things_flow",
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
