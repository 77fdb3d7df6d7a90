"""What tensors are made of whose values cannot be looked at as they are: quantised weights, and shards of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

PLAIN = ("Tensor", "Parameter", "Buffer")
ROW_BY_ROW = ("PerRow", "PerToken")  # granularities at which a row of a batch is scaled by itself


def plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """A tensor, or those that it is made of, such as the integers and the scales of torchao's; each with its name."""
    if not hasattr(tensor, "__tensor_flatten__"):  # by which torch.compile takes tensors apart
        yield name, tensor
        return
    inside, _ = tensor.__tensor_flatten__()
    for one in inside:
        yield from plain_tensors(f"{name}.{one}", getattr(tensor, one))


def has_values(tensor: Any) -> bool:
    """Whether values of a tensor can be looked at: not where there are none, or the tensor does not let go of them."""
    import torch

    own_dispatch = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return not (tensor.is_meta or own_dispatch)


def describe_tensor_types(network: Any) -> str:
    """'18 Int8Tensor', '18 Int8Tensor (activations PerRow)', '4 GGUFParameter Q8_0'; empty where all are ordinary."""
    found = Counter(describe_tensor_type(p) for p in network.parameters() if type(p).__name__ not in PLAIN)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))


def describe_tensor_type(tensor: Any) -> str:
    """'Int8Tensor (activations PerRow)'."""
    granularity, quant_type = _activation_granularity(tensor), getattr(tensor, "quant_type", None)
    kind = type(tensor).__name__ + (f" {getattr(quant_type, 'name', quant_type)}" if quant_type is not None else "")
    return f"{kind} (activations {granularity})" if granularity else kind


def couples_rows(tensor: Any) -> bool:
    """Whether the layer of a quantised weight scales its inputs by all rows of the batch together."""
    return _activation_granularity(tensor) not in ("", *ROW_BY_ROW)


def _activation_granularity(tensor: Any) -> str:
    """Over what torchao takes the scale of a layer's inputs when it is called; empty where they are not quantised.

    A scale that was fixed beforehand belongs to no batch.
    """
    settings = getattr(tensor, "act_quant_kwargs", None)
    if settings is None or getattr(tensor, "act_quant_scale", None) is not None:
        return ""
    return type(getattr(settings, "granularity", settings)).__name__
