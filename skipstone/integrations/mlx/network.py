"""What every network on MLX is: built from the options of a config.json, refusing those that are not ported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

import mlx.nn as nn

from ...errors import ModelError
from ...json_files import JsonReader, describe_value

C = TypeVar("C")
#: Options of every configuration of transformers that change no state of an encoder.
TRANSFORMERS_IGNORED = frozenset(
    {
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
    }
)
MAX_SIZE = 10_000_000  # of a whole number among the options
ADVICE = "Run this model with torch: --backend torch, or skipstone.adapt of its pipeline."


class Network(nn.Module):
    """A network whose parameters have the names of the class of diffusers or transformers that it is called after.

    A subclass names its options in `Config`, a frozen dataclass with the defaults of the original. The type of a field
    says which values are ported: a field of type `Literal["default"]` accepts that value alone.

    Args:
        config: A `Config`.
    """

    Config: ClassVar[type]
    #: Options that change nothing at inference, or that callers apply.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    #: Options that are sizes or numbers of things, each >= 1.
    POSITIVE: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.report: Any = None  # a `loading.LoadReport` where weights were loaded

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A network with random weights.

        Args:
            config: The content of a config.json.

        Raises:
            ModelError: options that are not ported, all of them listed, or sizes that do not fit.
        """
        options: Any = read_config(cls.Config, config, cls.__name__, cls.IGNORED, cls.POSITIVE)
        try:
            return cls(options)
        except ModelError as e:
            raise ModelError(f"{cls.__name__}: {e}") from None
        except (TypeError, ValueError, IndexError, ZeroDivisionError) as e:
            raise ModelError(f"{cls.__name__}: the sizes in its configuration do not fit each other ({e}).") from None

    @staticmethod
    def rename(key: str) -> str | None:
        """The parameter's name of a key of a weights file; None for a key that is not used."""
        return key


def read_config(
    kind: type[C],
    config: Mapping[str, Any],
    name: str,
    ignored: frozenset[str] = frozenset(),
    positive: frozenset[str] = frozenset(),
) -> C:
    """The options of a config.json as a dataclass.

    Args:
        kind: The dataclass; the types of its fields are the values that are ported.
        config: The options; those that begin with "_" are skipped.
        name: Of the network, for messages.
        ignored: Options that change nothing.
        positive: Options whose whole numbers are >= 1; those of others are >= 0.

    Raises:
        ModelError: options that are unknown or not ported; all of them are listed.
    """
    given = {key: value for key, value in _plain(config, name).items() if key[:1] != "_" and key not in ignored}
    kinds, reader = get_type_hints(kind), JsonReader(ModelError)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    options: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in given.items():
        if key not in known:
            faults.append(f"{key} = {describe_value(value)} (unknown option)")
            continue
        try:
            options[key] = reader.convert(kinds[key], value, key)
            _check_sizes(key, options[key], int(key in positive))
        except ModelError as e:
            faults.append(str(e).rstrip("."))
    if faults:
        raise ModelError(f"{name}: options that are not ported to MLX: {'; '.join(faults)}. {ADVICE}")
    try:
        return kind(**options)
    except TypeError as e:  # an option without default is missing
        raise ModelError(f"{name}: {str(e).rpartition('() ')[2]} in its configuration.") from None


def _check_sizes(key: str, value: Any, least: int) -> None:
    """Raise ModelError where a whole number is below `least`, or too large for a size."""
    if isinstance(value, tuple):
        if not value and least:
            raise ModelError(f"{key}: expected numbers, got none.")
        for one in value:
            _check_sizes(key, one, least)
    elif isinstance(value, int) and not isinstance(value, bool) and not least <= value <= MAX_SIZE:
        raise ModelError(f"{key}: expected a whole number in {least}..{MAX_SIZE:,}, got {value}.")


def _plain(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options as JSON has them: lists for tuples."""
    try:
        found = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as e:
        raise ModelError(f"{name}: expected the content of a config.json, got something else ({e}).") from None
    return dict(found)


def per_block(value: Any, count: int, what: str) -> tuple[Any, ...]:
    """An option that is given once, or for each of `count` blocks. Raises ModelError where the number differs."""
    values = tuple(value) if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise ModelError(f"{what}: expected a value for each of the {count} blocks, got {len(values)}.")
    return values
