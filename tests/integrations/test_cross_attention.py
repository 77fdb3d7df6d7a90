"""Maps of attention: what a layer's own processor would compute, read without changing anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from skipstone.engine.contracts import ATTENTION
from skipstone.engine.requests import Query
from skipstone.errors import BackboneError
from skipstone.integrations.cross_attention import AttentionRecorder, content_tokens
from skipstone.integrations.torch import CONTENT, CallCounter, ModuleBackbone, call_diffusers_unet
from skipstone.numerics.tables import CosineTable
from skipstone_pebble.model import Pebble

SIZE, TOKENS = (8, 12), 5  # not square
WANTED = frozenset({ATTENTION})


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def dit() -> SD3Transformer2DModel:
    torch.manual_seed(1)
    return SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=3,
        joint_attention_dim=6,
        caption_projection_dim=12,
        pooled_projection_dim=7,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    ).eval()


def called(model: nn.Module, rows: int = 3, **more: Any) -> torch.Tensor:
    """The model's output for `rows` samples."""
    rng = torch.Generator().manual_seed(5)
    x, text = torch.randn(rows, 4, *SIZE, generator=rng), torch.randn(rows, TOKENS, 6, generator=rng)
    pooled = {"pooled_projections": torch.ones(rows, 7)} if isinstance(model, SD3Transformer2DModel) else {}
    times = torch.full((rows,), 300.0)
    with torch.inference_mode():
        output: torch.Tensor = model(
            x, timestep=times, encoder_hidden_states=text, return_dict=False, **pooled, **more
        )[0]
    return output


class Storing:
    """Cross- or joint attention written out in full, keeping the probabilities of the text's tokens."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **more: Any) -> Any:
        x, text = hidden_states, encoder_hidden_states
        joint = getattr(attn, "add_k_proj", None) is not None

        def heads(y: torch.Tensor, norm: Any) -> torch.Tensor:
            y = y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return y if norm is None else norm(y)

        q, own = heads(attn.to_q(x), attn.norm_q), x if joint or text is None else text
        k, v = heads(attn.to_k(own), attn.norm_k), heads(attn.to_v(own), None)
        if joint:
            q = torch.cat([q, heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
            k = torch.cat([k, heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
            v = torch.cat([v, heads(attn.add_v_proj(text), None)], 2)
        shares = (q @ k.transpose(2, 3) * attn.scale).softmax(-1)
        if text is not None:
            told = shares[:, :, : x.shape[1], -text.shape[1] :]
            self.kept.append((told / told.sum(-1, keepdim=True)).mean(1))
        made = (shares @ v).transpose(1, 2).flatten(2)
        if not joint:
            return attn.to_out[0](made)
        image, words = made[:, : x.shape[1]], made[:, x.shape[1] :]
        return attn.to_out[0](image), words if attn.context_pre_only else attn.to_add_out(words)


MODELS = ["unet", "dit"]


@pytest.mark.parametrize("name", MODELS)
def test_the_output_and_the_processors_stay_as_they_are(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    bare, processors = called(model), dict(model.attn_processors)
    with AttentionRecorder(model, [0, 1, 2], SIZE) as seen:
        told = called(model)
        assert dict(model.attn_processors) == processors
    assert torch.equal(told, bare)
    assert seen.maps().shape == (3, TOKENS, *SIZE)
    torch.testing.assert_close(seen.maps().sum(1), torch.ones(3, *SIZE), atol=1e-5, rtol=0)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_hooks_are_removed_whatever_happens(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    with pytest.raises(ZeroDivisionError), AttentionRecorder(model, [0], SIZE):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_a_processor_that_stores_them(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    kept: list[torch.Tensor] = []
    before, bare = dict(model.attn_processors), called(model)
    model.set_attn_processor(Storing(kept))
    try:
        torch.testing.assert_close(called(model), bare, atol=1e-5, rtol=1e-4)
    finally:
        model.set_attn_processor(before)
    with AttentionRecorder(model, [2, 0], SIZE) as seen:
        called(model)
    grids = {96: (8, 12), 24: (4, 6)}
    maps = [
        nn.functional.interpolate(
            one.transpose(1, 2).unflatten(2, grids[one.shape[1]]), SIZE, mode="bilinear", align_corners=False
        )
        for one in kept
    ]
    torch.testing.assert_close(seen.maps(), torch.stack(maps).mean(0)[[2, 0]], atol=1e-5, rtol=1e-4)


def test_masked_tokens_get_nothing(unet: UNet2DConditionModel) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    with AttentionRecorder(unet, [0], SIZE) as seen:
        called(unet, encoder_attention_mask=mask)
    assert float(seen.maps()[:, 3:].max()) < 1e-6
    torch.testing.assert_close(seen.maps().sum(1), torch.ones(1, *SIZE), atol=1e-5, rtol=0)


def test_a_network_without_text_is_refused() -> None:
    net = nn.Conv2d(4, 4, 3, padding=1)
    with AttentionRecorder(net, [0], SIZE) as seen:
        net(torch.zeros(1, 4, *SIZE))
    with pytest.raises(BackboneError, match="Conv2d has no attention"):
        seen.maps()


def backbone(unet: UNet2DConditionModel, guidance: float = 3.0) -> ModuleBackbone:
    return ModuleBackbone(unet, CosineTable(), "v", guidance, call_diffusers_unet)


def query(seed: int, want: frozenset[str] = WANTED, content: Any = (1, 2), **more: Any) -> Query:
    rng = torch.Generator().manual_seed(seed)
    x, text, empty = (torch.randn(*shape, generator=rng) for shape in ((4, *SIZE), (TOKENS, 6), (TOKENS, 6)))
    cond = {"cond": text, "uncond": empty} | ({} if content is None else {CONTENT: content})
    return Query(x, 0.4, cond, wanted_sites=want, **more)


def test_a_query_that_wants_it_is_given_the_share_of_its_words(unet: UNet2DConditionModel) -> None:
    model, asked = backbone(unet), [query(0), query(1, frozenset()), query(2)]
    with CallCounter(unet) as counter:
        made = model.predict(asked)
    assert counter.rows == 6
    assert [set(e.features) for e in made] == [{ATTENTION}, set(), {ATTENTION}]
    for q, e in zip(asked, made, strict=True):
        alone = model.predict([q])[0]
        torch.testing.assert_close(alone.x0, e.x0, atol=1e-5, rtol=1e-4)
        if q.wanted_sites:
            share = e.features[ATTENTION]
            assert share.shape == SIZE
            assert 0 < float(share.min()) < float(share.max()) < 1
            torch.testing.assert_close(alone.features[ATTENTION], share, atol=1e-5, rtol=1e-4)
            with torch.inference_mode(), AttentionRecorder(unet, [0], SIZE) as seen:
                call_diffusers_unet(unet, q.x[None], torch.tensor([model.schedule.timestep(0.4)]), q.cond["cond"][None])
            torch.testing.assert_close(share, seen.maps()[0, [1, 2]].sum(0), atol=1e-5, rtol=1e-4)


def test_the_empty_prompt_is_not_looked_at(unet: UNet2DConditionModel) -> None:
    q = query(0)
    other = Query(q.x, q.t, {**q.cond, "uncond": -q.cond["uncond"]}, wanted_sites=WANTED)
    model = backbone(unet)
    (a,), (b,) = model.predict([q]), model.predict([other])
    torch.testing.assert_close(a.features[ATTENTION], b.features[ATTENTION], atol=1e-6, rtol=1e-5)
    assert not torch.equal(a.x0, b.x0)
    (given,) = model.predict([query(0, known_outputs={"cond": torch.zeros(4, *SIZE)})])
    assert given.features == {}


def test_nobody_looks_unless_asked(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionRecorder, "__enter__", lambda self: pytest.fail("attention was read"))
    assert backbone(unet).predict([query(0, frozenset({"cond"}))])[0].features.keys() == {"cond"}


def test_words_that_are_not_said_are_asked_for(unet: UNet2DConditionModel) -> None:
    with pytest.raises(BackboneError, match="content_tokens"):
        backbone(unet).predict([query(0, content=None)])


@pytest.mark.parametrize("name", ["pebble", "pebble-dit"])
def test_pebble_looks_at_its_objects(name: str) -> None:
    """Of a picture of one object in the middle, the words get more of the middle than of the corners."""
    model = Pebble.load(name)
    problem = model.problem("a red apple on a blue background", seed=0)
    ids = model.tokenizer("a red apple on a blue background", padding="max_length", max_length=24).input_ids
    assert problem.cond[CONTENT] == content_tokens(model.tokenizer, ids) == (1, 2, 3, 4, 5, 6, 7)
    bare, told = (
        model.backbone.predict([Query(problem.x, 0.9, problem.cond, wanted_sites=want)])[0]
        for want in (frozenset(), WANTED)
    )
    torch.testing.assert_close(bare.x0, told.x0, atol=1e-5, rtol=1e-5)
    share = told.features[ATTENTION]
    assert share.shape == (8, 8)
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    corners = torch.stack([share[0, 0], share[0, -1], share[-1, 0], share[-1, -1]])
    assert float(share[3:5, 3:5].mean()) > float(corners.max()) + 0.1
    layers = [m for m in model.unet.modules() if isinstance(m, Attention)]
    assert layers
    assert not any(m._forward_pre_hooks for m in layers)


def test_start_end_and_padding_are_no_words() -> None:
    tokenizer = Pebble.load().tokenizer
    ids = tokenizer("a cat", padding="max_length", max_length=24).input_ids
    assert content_tokens(tokenizer, ids) == (1, 2)
    empty = tokenizer("", padding="max_length", max_length=24).input_ids
    assert content_tokens(tokenizer, empty) == ()
