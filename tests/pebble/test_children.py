"""Children of a transformer: what they inherit, and that their folders are models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel

from skipstone.engine.drivers import denoise_many
from skipstone.errors import ModelError, SpecError
from skipstone.policies import Fixed
from skipstone.solvers import DDIM
from skipstone_pebble.compact import CompactSD3Transformer2DModel, Shape, shape_of
from skipstone_pebble.inheritance import Inheritance
from skipstone_pebble.model import Pebble

OWN = Shape(3, 16, 2)


@pytest.fixture(scope="module")
def model(tiny_dit: Path) -> Pebble:
    return Pebble.load(tiny_dit)


@pytest.fixture(scope="module")
def inheritance(model: Pebble) -> Inheritance:
    generator = torch.Generator().manual_seed(0)
    x, times = torch.randn(6, 8, 8, 8, generator=generator), 1000 * torch.rand(6, generator=generator)
    texts = ["a cat", "a dog on a red background", "a tree", "a car", "a small house", ""]
    condition = torch.stack([model.encode(text) for text in texts])
    made = model.family.inheritance(model.unet, torch.no_grad()(lambda n: model.family.forward(n, x, times, condition)))
    assert isinstance(made, Inheritance)
    return made


def error(inheritance: Inheritance, child: Any) -> float:
    """Mean squared difference to the teacher, in parts of its variance."""
    whole = inheritance.run(inheritance.teacher)
    return float(((inheritance.run(child) - whole) ** 2).mean() / whole.var())


def test_a_child_of_the_teachers_shape_is_the_teacher(inheritance: Inheritance) -> None:
    assert inheritance.shape == OWN
    child = inheritance.child(OWN)
    assert type(child) is SD3Transformer2DModel
    assert error(inheritance, child) == 0


def test_another_activation_starts_where_the_teacher_is(inheritance: Inheritance) -> None:
    assert error(inheritance, inheritance.child(Shape(3, 16, 2, activation="geglu"))) < 1e-6
    assert 0 < error(inheritance, inheritance.child(Shape(3, 16, 2, activation="silu"))) < 1e-3


@pytest.mark.parametrize(
    "shape",
    [Shape(2, 16, 2), Shape(1, 16, 2), Shape(3, 16, 1), Shape(3, 16, 2, 1.0), Shape(3, 8, 1, 2.0, "silu"),
     Shape(2, 8, 2, 1.5, "geglu", "merged")],
)  # fmt: skip
def test_a_child_has_its_shape_and_is_nearer_to_the_teacher_than_a_new_network(
    shape: Shape, inheritance: Inheritance
) -> None:
    child: Any = inheritance.child(shape)
    made = shape_of(child)
    assert (made.depth, made.width, made.heads, made.mlp_width, made.activation) == (
        shape.depth, shape.width, shape.heads, shape.mlp_width, shape.activation,
    )  # fmt: skip
    torch.manual_seed(0)
    errors = []
    for _ in range(3):
        new: Any = type(child).from_config(child.config).eval()
        for weight in new.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        errors.append(error(inheritance, new))
    assert error(inheritance, child) < min(errors)


def test_the_blocks_that_matter_least_are_left_out_first(inheritance: Inheritance) -> None:
    alone = {}
    for left_out in (0, 1):
        child = inheritance.child(OWN)
        child.transformer_blocks = torch.nn.ModuleList(
            b for i, b in enumerate(child.transformer_blocks) if i != left_out
        )
        alone[left_out] = error(inheritance, child)
    kept = inheritance.kept_blocks(2)
    assert 2 in kept  # the last one, which has no words
    assert min(alone, key=lambda i: alone[i]) not in kept
    assert error(inheritance, inheritance.child(Shape(2, 16, 2))) == pytest.approx(min(alone.values()))


def test_units_that_do_nothing_are_left_out_without_a_trace(inheritance: Inheritance, model: Pebble) -> None:
    """Half of the units get no weight in the output: a child with the other half is the same network."""
    teacher: Any = SD3Transformer2DModel.from_config(model.unet.config).eval()
    teacher.load_state_dict(model.unet.state_dict())
    for block in teacher.transformer_blocks:
        for mlp in (block.ff, block.ff_context):
            if mlp is not None:
                with torch.no_grad():
                    mlp.net[2].weight[:, ::2] = 0
    own = Inheritance(teacher, inheritance.run)
    assert error(own, own.child(Shape(3, 16, 2, 2.0))) < 1e-10


def test_a_childs_folder_is_a_model_everywhere(inheritance: Inheritance, model: Pebble, tmp_path: Path) -> None:
    child = inheritance.child(Shape(2, 16, 1, 1.5, "silu"))
    folder = model.with_denoiser(child).save(tmp_path / "child")
    loaded = Pebble.load(folder)
    assert isinstance(loaded.unet, CompactSD3Transformer2DModel)
    assert loaded.has_judge
    problem = loaded.problem("a cat on a red background", 3, 4)
    [ours] = denoise_many(loaded.backbone, [problem], DDIM(), Fixed())
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.transformer, CompactSD3Transformer2DModel)
    told = {"guidance_scale": 3.0, "output_type": "latent", "sigmas": [1.0, 0.75, 0.5, 0.25]}
    theirs = pipe("a cat on a red background", latents=problem.x[None], **told).images[0]
    torch.testing.assert_close(ours.x, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda i: i.child(Shape(4, 16, 2)), "depth of at most 3, that of its teacher, got 4"),
        (lambda i: i.child(Shape(3, 16, 2, 5.0)), "mlp_ratio of at most 4, that of its teacher, got 5"),
        (lambda i: Shape(0, 16, 2), "expected depth to be a whole number in 1..1,000, got 0"),
        (lambda i: Shape(3, 16, 2, 4.0, "relu"), "'gelu', 'silu', 'geglu', got 'relu'"),  # type: ignore[arg-type]
    ],
)
def test_shapes_that_cannot_be_are_refused(make: Any, said: str, inheritance: Inheritance) -> None:
    with pytest.raises(SpecError, match=said):
        make(inheritance)


def test_a_child_of_a_child_keeps_its_activation(inheritance: Inheritance) -> None:
    grown = Inheritance(inheritance.child(Shape(3, 16, 2, 2.0, "geglu")), inheritance.run)
    assert error(grown, grown.child(grown.shape)) < 1e-10
    assert shape_of(grown.child(Shape(2, 16, 2, 1.0, "geglu"))).mlp_width == 16
    with pytest.raises(SpecError, match="activation of the teacher, geglu, got gelu"):
        grown.child(Shape(2, 16, 2, 1.0))


def test_a_unet_has_no_children(model: Pebble) -> None:
    unet = Pebble.load()
    with pytest.raises(ModelError, match="Expected a transformer, such as pebble-dit, got a UNet2DConditionModel"):
        unet.family.inheritance(unet.unet, lambda network: torch.zeros(()))
