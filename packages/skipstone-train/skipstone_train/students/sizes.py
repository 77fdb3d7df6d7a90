"""A student of several sizes: the teacher at each, what is learnt at each, and what a model cannot draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from skipstone.errors import SpecError
from skipstone.numerics.sizes import Size

from .captioned import picture_size
from .data import Drawings
from .teacher import Teacher


@dataclass(frozen=True)
class Bucket:
    """What is learnt at one size.

    Args:
        size: In pixels.
        teacher: Who draws at this size.
        drawings: Of this size.
        ratio: Its area over that of the model's own size.
    """

    size: Size
    teacher: Teacher
    drawings: Drawings
    ratio: float


@dataclass(frozen=True)
class Buckets:
    """What is learnt at all sizes.

    Args:
        parts: One for each size, in the order of the settings.
    """

    parts: tuple[Bucket, ...]

    def __len__(self) -> int:
        return sum(len(part.drawings) for part in self.parts)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of all sizes."""
        return tuple(chain.from_iterable(part.drawings.prompts for part in self.parts))

    @property
    def rows(self) -> int:
        """Rows of the network that all drawings cost."""
        return sum(part.drawings.rows for part in self.parts)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All of them."""
        return tuple(part.size for part in self.parts)


def resize_teacher(teacher: Teacher, sizes: Sequence[Size]) -> list[Teacher]:
    """The teacher drawing at each size.

    Raises:
        SpecError: a size that its autoencoder or its network cannot have, or one in the arguments of its call, too.
    """
    if said := [name for name in ("width", "height") if name in teacher.arguments]:
        raise SpecError(
            f"Expected sizes, or {said[0]} in the settings of the pipeline's call, got both. Leave out one."
        )
    for size in sizes:
        _check_size(teacher, size)
    sides = ({"width": size.width, "height": size.height} for size in sizes)
    return [Teacher.of(teacher.pipe, {**teacher.arguments, **named}, teacher.name) for named in sides]


def build_buckets(
    teacher: Teacher, sizes: Sequence[Size], teachers: Sequence[Teacher], found: Sequence[Drawings]
) -> Buckets:
    """Sizes, teachers and drawings, one after the other."""
    height, width = picture_size(teacher)
    own = Size(width, height).area
    columns = zip(sizes, teachers, found, strict=True)
    return Buckets(tuple(Bucket(size, at, drawn, size.area / own) for size, at, drawn in columns))


def _check_size(teacher: Teacher, size: Size) -> None:
    config, scale = teacher.denoiser.config, teacher.pipe.vae_scale_factor
    if teacher.part == "unet":
        halvings = len(config.down_block_types) - 1
        why = f"the autoencoder makes one latent of {scale} pixels, and the U-Net halves latents {halvings} times"
        size.require_multiple(scale * 2**halvings, why)
        return
    patch = config.patch_size
    size.require_multiple(
        scale * patch, f"the autoencoder makes one latent of {scale} pixels, and a token has {patch} latents a side"
    )
    most = config.pos_embed_max_size * patch * scale
    if max(size.width, size.height) > most:
        raise SpecError(
            f"Expected sizes of at most {most} pixels a side, got {size}: the transformer knows no other places."
        )
