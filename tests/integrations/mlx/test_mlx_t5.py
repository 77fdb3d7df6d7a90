"""`T5EncoderModel` on MLX against transformers' own: T5, T5 v1.1, padding, float16, and the file of Pebble-DiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx_parity import LIMIT, psnr, randomise, relative, save, to_mlx
from transformers import T5Config, T5EncoderModel
from transformers import T5ForConditionalGeneration as WholeT5
from transformers.models.t5.modeling_t5 import T5Attention

import skipstone_pebble
from skipstone.errors import BackboneError, ModelError
from skipstone.integrations.mlx.loading import load_module
from skipstone.integrations.mlx.t5 import T5EncoderModel as MlxT5
from skipstone.integrations.mlx.t5 import position_buckets

PEBBLE = Path(skipstone_pebble.__file__).parent / "weights_dit" / "text_encoder_3"
SMALL: dict[str, Any] = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}


def make(**options: Any) -> Any:
    return randomise(T5EncoderModel(T5Config(**(SMALL | options))))


def tokens(length: int = 200) -> torch.Tensor:
    """Longer than the distances that have buckets of their own."""
    return torch.randint(0, 50, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["relu", "gated-gelu", "gated-silu"])
def test_it_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    model, ids = make(feed_forward_proj=kind), tokens()
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    loaded = load_module(save(model, tmp_path))
    assert isinstance(loaded, MlxT5)
    with torch.no_grad():
        assert relative(model(ids)[0], loaded(to_mlx(ids))) <= LIMIT
        assert relative(model(ids, attention_mask=mask)[0], loaded(to_mlx(ids), to_mlx(mask))) <= LIMIT


def test_buckets_are_those_of_transformers() -> None:
    for length, buckets, largest in ((700, 32, 128), (300, 16, 100), (5, 8, 20)):
        distances = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        expected = T5Attention._relative_position_bucket(distances, True, buckets, largest)
        assert np.array_equal(position_buckets(length, buckets, largest), expected.numpy())


def test_the_t5_of_pebble_dit_has_no_layers() -> None:
    assert not mx.any(load_module(PEBBLE)(mx.zeros((1, 3), mx.int32))).item()


def test_a_whole_t5_gives_its_encoder(tmp_path: Path) -> None:
    """Its file has the decoder too, and its class is another: the config of an encoder is put beside it."""
    whole = randomise(WholeT5(T5Config(**SMALL, feed_forward_proj="gated-gelu")))
    save(whole, tmp_path)
    encoder = T5EncoderModel(whole.config)
    encoder.load_state_dict({k: v for k, v in whole.state_dict().items() if k in encoder.state_dict()})
    encoder.config.architectures = ["T5EncoderModel"]
    encoder.config.save_pretrained(tmp_path)
    with torch.no_grad():
        assert relative(encoder.eval()(tokens())[0], load_module(tmp_path)(to_mlx(tokens()))) <= LIMIT


@pytest.mark.parametrize(("bits", "least"), [(None, 55), (8, 35)])
def test_float16_holds_what_leaves_its_range(bits: int | None, least: float, tmp_path: Path) -> None:
    """Inner values of 10^6 and tokens of 10^5, as T5 v1.1 has them, cost no accuracy."""
    model = make(feed_forward_proj="gated-gelu")
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wi_0.weight.mul_(600)
            block.layer[1].DenseReluDense.wi_1.weight.mul_(600)
    folder, ids = save(model, tmp_path), tokens(20)
    seen: list[float] = []
    hook = model.encoder.block[1].layer[1].DenseReluDense.wo
    hook.register_forward_hook(lambda _module, args, out: seen.extend([float(args[0].max()), float(out.max())]))
    with torch.no_grad():
        expected = model(ids)[0]
    assert min(seen) > 65504  # the largest number of float16
    got = load_module(folder, "float16", bits)(to_mlx(ids))
    assert got.dtype == mx.float16
    assert psnr(expected, got) >= least


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'tanh' is not ported"):
        MlxT5.from_config(SMALL | {"dense_act_fn": "tanh"})
    with pytest.raises(ModelError, match="use_sparse"):
        MlxT5.from_config(SMALL | {"use_sparse": True})


def test_inputs_that_do_not_fit_are_named() -> None:
    model = MlxT5.from_config(SMALL)
    with pytest.raises(BackboneError, match="input_ids"):
        model(mx.zeros((3,), mx.int32))
    with pytest.raises(BackboneError, match="attention_mask"):
        model(mx.zeros((2, 3), mx.int32), mx.ones((2, 4)))
