"""A transformer of another shape with the weights of its teacher: blocks cut or merged, channels, heads and units kept.

What is kept is chosen by what it carries on real rows: blocks by the error of the output without them, the others by
the variance of their activations times the norm of the weights that read them, the means of what is left out going
into the bias (FLAP, arXiv 2312.11983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from skipstone.errors import SpecError

from .compact import Shape, build_transformer, shape_of

SILU_SCALE = 1.702  # gelu(x) is nearly silu(1.702 x) / 1.702 (arXiv:1606.08415)
Run = Callable[[nn.Module], torch.Tensor]  # a network -> its output on the rows


@dataclass
class Moments:
    """Mean and variance of each channel of what a layer is given.

    Args:
        count: Rows and tokens.
        total, squares: Sums over them.
    """

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, values: torch.Tensor) -> None:
        """Add values (..., channels)."""
        flat = values.detach().reshape(-1, values.shape[-1]).double()
        self.count, self.total = self.count + len(flat), self.total + flat.sum(0)
        self.squares = self.squares + (flat**2).sum(0)

    @property
    def mean(self) -> torch.Tensor:
        """Of each channel."""
        mean: torch.Tensor = self.total / self.count
        return mean

    @property
    def energy(self) -> torch.Tensor:
        """Mean square of each channel."""
        energy: torch.Tensor = self.squares / self.count
        return energy

    @property
    def variance(self) -> torch.Tensor:
        """Of each channel."""
        return (self.energy - self.mean**2).clamp_min(0)


@dataclass
class Inheritance:
    """Makes children of a transformer; what they keep is measured once.

    Args:
        teacher: An `SD3Transformer2DModel`, or a `CompactSD3Transformer2DModel`.
        run: Calls a network of its class on real rows.
    """

    teacher: Any
    run: Run

    @property
    def shape(self) -> Shape:
        """The teacher's."""
        return shape_of(self.teacher)

    def child(self, shape: Shape) -> nn.Module:
        """A network of a shape with the teacher's weights.

        Raises:
            SpecError: a shape that is larger than the teacher's, or no shape.
        """
        self.check(shape)
        child = build_transformer(shape, self.teacher)
        kept = self.kept_blocks(shape.depth)
        blocks = [self._block(index, kept, shape.layers) for index in kept]
        keep = self._choose(shape, kept)
        state = dict(self._outside(keep))
        for place, (index, block) in enumerate(zip(kept, blocks, strict=True)):
            for name, value in self._slice_block(block, index, keep, shape).items():
                state[f"transformer_blocks.{place}.{name}"] = value
        child.load_state_dict({name: value.float().contiguous() for name, value in state.items()})
        return child.eval()

    def check(self, shape: Shape) -> None:
        """Raise SpecError for a shape that no child of the teacher can have."""
        own = self.shape
        for name in ("depth", "width", "heads", "mlp_ratio"):
            got, most = getattr(shape, name), getattr(own, name)
            if got > most:
                raise SpecError(f"Expected a child with {name} of at most {most:g}, that of its teacher, got {got:g}.")
        if own.activation not in ("gelu", shape.activation):
            raise SpecError(f"Expected the activation of the teacher, {own.activation}, got {shape.activation}.")

    # -- Blocks -----------------------------------------------------------------------------------

    def kept_blocks(self, depth: int) -> list[int]:
        """Numbers of the blocks that a child of so many keeps, in order; the last one, which has no words, always."""
        left_out = self._removal_order[: len(self.teacher.transformer_blocks) - depth]
        return [index for index in range(len(self.teacher.transformer_blocks)) if index not in left_out]

    @cached_property
    def _removal_order(self) -> list[int]:
        """Blocks in the order in which they are left out: each time the one whose absence changes the output least."""
        whole = self.run(self.teacher)
        kept, order = list(range(len(self.teacher.transformer_blocks))), list[int]()
        while len(kept) > 1:
            errors = {}
            for index in kept[:-1]:
                with _only(self.teacher, [i for i in kept if i != index]):
                    errors[index] = float(((self.run(self.teacher) - whole) ** 2).mean())
            order.append(min(errors, key=lambda i: (errors[i], i)))
            kept.remove(order[-1])
        return order

    def _block(self, index: int, kept: Sequence[int], layers: str) -> Mapping[str, torch.Tensor]:
        """Weights of a block: its own, or the mean of it and of those that are left out after it."""
        blocks = self.teacher.transformer_blocks
        own = blocks[index].state_dict()
        after = [i for i in kept if i > index]
        group = range(index, after[0]) if after else range(index, index + 1)
        if layers == "cut" or len(group) == 1:
            return dict(own)
        states = [blocks[i].state_dict() for i in group]
        return {name: torch.stack([state[name] for state in states]).mean(0) for name in own}

    # -- Channels, heads, units -------------------------------------------------------------------

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        """Of the input of each linear layer, by its name."""
        found: dict[str, Moments] = {}
        hooks = []
        for name, layer in self.teacher.named_modules():
            if isinstance(layer, nn.Linear):
                found[name] = Moments()
                hooks.append(layer.register_forward_pre_hook(lambda _, args, own=found[name]: own.add(args[0])))
        try:
            self.run(self.teacher)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _reading(self, name: str) -> torch.Tensor:
        """What each input channel of a linear layer carries: its mean square times the square of its weights' norm."""
        weight = self.teacher.get_submodule(name).weight.detach().double()
        carried: torch.Tensor = self._moments[name].energy * (weight**2).sum(0)
        return carried

    def _varying(self, name: str) -> torch.Tensor:
        """The same by its variance: the mean can go into a bias."""
        weight = self.teacher.get_submodule(name).weight.detach().double()
        carried: torch.Tensor = self._moments[name].variance * (weight**2).sum(0)
        return carried

    def _choose(self, shape: Shape, kept: Sequence[int]) -> _Kept:
        """Channels of picture, words and time, and of each block heads and units."""
        last = len(self.teacher.transformer_blocks) - 1

        def readers(*layers: str) -> torch.Tensor:
            names = [f"transformer_blocks.{i}.{layer}" for i in kept for layer in layers]
            return sum((self._reading(name) for name in names if name in self._moments), torch.zeros(()))

        picture = readers("attn.to_q", "attn.to_k", "attn.to_v", "ff.net.0.proj") + self._reading("proj_out")
        words = readers("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "ff_context.net.0.proj")
        time = readers("norm1.linear", "norm1_context.linear") + self._reading("norm_out.linear")
        heads, units = {}, {}
        for index in kept:
            block = f"transformer_blocks.{index}"
            carried = self._varying(f"{block}.attn.to_out.0")
            if index != last:
                carried = carried + self._varying(f"{block}.attn.to_add_out")
            by_head = carried.view(self.teacher.config.num_attention_heads, -1).sum(1)
            heads[index] = _best(by_head, shape.heads)
            for mlp in ("ff", "ff_context")[: 1 if index == last else 2]:
                units[index, mlp] = _best(self._varying(f"{block}.{mlp}.net.2"), shape.mlp_width)
        chosen = [_best(one, shape.width) for one in (picture, words, time)]
        return _Kept(chosen[0], chosen[1], chosen[2], heads, units)

    def _outside(self, keep: _Kept) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights outside of the blocks."""
        for name, value in self.teacher.state_dict().items():
            if name.startswith("transformer_blocks."):
                continue
            if name == "pos_embed.pos_embed":
                yield name, value[..., keep.picture]
            elif name.startswith("pos_embed.proj."):
                yield name, value[keep.picture]
            elif name.startswith("context_embedder."):
                yield name, value[keep.words]
            elif name.startswith("time_text_embed."):
                yield name, self._embedder(name, value, keep.time)
            elif name.startswith("norm_out."):
                yield name, self._modulation(value, keep.picture, keep.time)
            else:
                yield name, value[:, keep.picture] if name.endswith("weight") else value

    def _embedder(self, name: str, value: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Weight or bias of the two layers that embed the time, or the words' pooled state."""
        part, layer, kind = name.rsplit(".", 2)
        hidden = _best(self._varying(f"{part}.linear_2"), len(time))
        if layer == "linear_1":
            return value[hidden]
        return value[time][:, hidden] if kind == "weight" else value[time]

    def _modulation(self, value: torch.Tensor, channels: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Weight or bias of an adaptive norm, whose outputs are several vectors of all channels."""
        parts = value.view(-1, self.teacher.inner_dim, *value.shape[1:])[:, channels].flatten(0, 1)
        return parts[:, time] if value.ndim == 2 else parts

    def _slice_block(
        self, block: Mapping[str, torch.Tensor], index: int, keep: _Kept, shape: Shape
    ) -> dict[str, torch.Tensor]:
        """The weights of a block that a child keeps."""
        head = self.teacher.config.attention_head_dim
        inner = torch.cat([torch.arange(h * head, (h + 1) * head) for h in keep.heads[index].tolist()])
        made = {}
        for name, value in block.items():
            words = any(part in name for part in ("context", "add_"))
            channels = keep.words if words else keep.picture
            if name.startswith("norm1"):
                made[name] = self._modulation(value, channels, keep.time)
            elif name.startswith("attn.norm_"):
                made[name] = value
            elif name.startswith(("attn.to_out.", "attn.to_add_out.")):
                made[name] = self._output(block, index, name, inner, channels)
            elif name.startswith("attn."):
                made[name] = value[inner][:, channels] if value.ndim == 2 else value[inner]
            else:
                made[name] = self._mlp(block, index, name, keep, shape, channels)
        return made

    def _output(
        self, block: Mapping[str, torch.Tensor], index: int, name: str, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> torch.Tensor:
        """Weight or bias of a layer that reads the inputs that are kept; the bias has the mean of the others."""
        layer, kind = name.rsplit(".", 1)
        if kind == "weight":
            return block[name][outputs][:, inputs]
        mean = self._moments[f"transformer_blocks.{index}.{layer}"].mean.clone()
        mean[inputs] = 0
        return (block[name].double() + block[f"{layer}.weight"].double() @ mean)[outputs]

    def _mlp(
        self,
        block: Mapping[str, torch.Tensor],
        index: int,
        name: str,
        keep: _Kept,
        shape: Shape,
        channels: torch.Tensor,
    ) -> torch.Tensor:
        """Weight or bias of an MLP, under the child's activation."""
        units = keep.units[index, name.split(".")[0]]
        own = shape_of(self.teacher).activation
        if ".net.2." in name:
            made = self._output(block, index, name, units, channels)
            scaled = own != "silu" == shape.activation and name.endswith("weight")
            return made / SILU_SCALE if scaled else made
        value = block[name]
        if own == "geglu":
            units = torch.cat([units, units + len(value) // 2])
        value = value[units][:, channels] if value.ndim == 2 else value[units]
        if shape.activation == own:
            return value
        if shape.activation == "silu":
            return value * SILU_SCALE
        factor = torch.zeros_like(value) if value.ndim == 2 else torch.ones_like(value)  # of geglu: 1 at first
        return torch.cat([factor, value])


@dataclass(frozen=True)
class _Kept:
    """What a child keeps: channels of picture, words and time; heads and units of each block."""

    picture: torch.Tensor
    words: torch.Tensor
    time: torch.Tensor
    heads: Mapping[int, torch.Tensor]
    units: Mapping[tuple[int, str], torch.Tensor]


def _best(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the largest values, in order."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


@contextmanager
def _only(network: Any, kept: Sequence[int]) -> Iterator[None]:
    """The network with some of its blocks."""
    whole = network.transformer_blocks
    network.transformer_blocks = nn.ModuleList([whole[i] for i in kept])
    try:
        yield
    finally:
        network.transformer_blocks = whole
