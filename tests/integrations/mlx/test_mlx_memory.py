"""Memory estimated from configurations against networks that are loaded, quantised and run."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx.utils import tree_flatten

import skipstone_pebble
from skipstone.errors import ModelError
from skipstone.integrations.mlx.graph import (
    Array,
    Graph,
    Node,
    convolution_workspace,
    peak_bytes,
    scores_never_made,
    trace,
)
from skipstone.integrations.mlx.loading import load_module
from skipstone.integrations.mlx.memory import PipelinePlan, Span, build_empty, count_bytes, estimate_memory, span_of

ROOT = Path(__file__).parents[3]
PACKAGE = Path(skipstone_pebble.__file__).parent
FOLDERS = {"pebble": PACKAGE / "weights", "pebble-dit": PACKAGE / "weights_dit"}
#: Bytes of float16 weights in the index of the files that their authors published, and the configuration.
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "T5EncoderModel": (9524621312, {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}),
    "FluxTransformer2DModel": (23782357120, {}),
}


@pytest.mark.parametrize(("dtype", "bits"), [("float32", None), ("float16", None), ("float16", 8), ("bfloat16", 4)])
@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_those_of_the_loaded_networks(name: str, dtype: str, bits: int | None) -> None:
    estimate = estimate_memory(FOLDERS[name], dtype, bits)
    assert {one.part for one in estimate.components} >= {"vae", "text_encoder"}
    for one in estimate.components:
        network = load_module(FOLDERS[name] / one.part, one.dtype, one.bits)
        assert one.weights == count_bytes(network)
        assert one.parameters == sum(
            v.size for _, v in tree_flatten(load_module(FOLDERS[name] / one.part).parameters())
        )
        assert (one.bits is None) == (bits is None or one.part == "vae")


def test_memory_that_mlx_holds_is_that_of_the_weights() -> None:
    """To the pages that it allocates: what is counted is all that there is."""
    mx.clear_cache()
    before = mx.get_active_memory()
    network = load_module(FOLDERS["pebble-dit"] / "transformer", "float16", 8)
    held = mx.get_active_memory() - before
    assert count_bytes(network) <= held <= 1.1 * count_bytes(network)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 8), ("float32", 4)])
def test_loading_needs_little_more_than_what_stays(dtype: str, bits: int) -> None:
    """The weights that are quantised are never all in memory: a few layers at a time."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    network = load_module(FOLDERS["pebble-dit"] / "transformer", dtype, bits)
    assert mx.get_peak_memory() - before <= 1.3 * count_bytes(network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_large_networks_have_as_many_bytes_as_their_files(name: str) -> None:
    expected, config = PUBLISHED[name]
    gated = {"feed_forward_proj": "gated-gelu"} if name.startswith("T5") else {}
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert count_bytes(build_empty(name, config | gated, "float16")) == expected
    assert mx.get_peak_memory() - before < 2**20  # nothing is computed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", FOLDERS)
def test_calls_need_what_was_estimated(name: str, dtype: str) -> None:
    """On the CPU, for one picture: from `least` to `most`, within a factor of 6 of each other."""
    plan = PipelinePlan.read(FOLDERS[name], None, 1)
    for part in plan.networks:
        if part == "text_encoder_3":
            continue
        network = load_module(FOLDERS[name] / part, dtype)
        function, inputs = plan.call_of(part, network, getattr(mx, dtype))
        expected = span_of(network, (function, inputs), "cpu")
        mx.eval(inputs, network.parameters())
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        with mx.stream(mx.cpu):
            mx.eval(function(network, *inputs))
        assert expected.least <= mx.get_peak_memory() - before <= expected.most, part
        assert part.startswith("text") or expected.most <= 6 * expected.least, part  # no empty promise


def test_arrays_live_until_their_last_use() -> None:
    """A chain of products needs two at a time, and all of them where MLX is ahead; a sum takes an input's place."""
    arrays = {name: Array((64, 64), 4, name == "x") for name in "xabcd"}
    nodes = [Node("Matmul", (one, one), (two,)) for one, two in zip("xabc", "abcd", strict=True)]
    graph, size = Graph(tuple(nodes), arrays, frozenset({"d"})), 4 * 64 * 64
    assert peak_bytes(graph, "cpu") == 2 * size
    assert peak_bytes(graph, "cpu", ahead=True) == 4 * size
    sums = [*nodes[:3], Node("Add", ("a", "c"), ("d",))]  # a has two readers, c has one
    assert peak_bytes(Graph(tuple(sums), arrays, frozenset({"d"})), "cpu") == 3 * size
    assert peak_bytes(Graph(tuple(sums), arrays, frozenset({"d"})), "cpu", ahead=True) == 3 * size
    # Eleven tasks of ten operations, and what the first of them reads.
    long = [Node("Matmul", (f"{i}", f"{i}"), (f"{i + 1}",)) for i in range(300)]
    arrays = {f"{i}": Array((64, 64), 4, i == 0) for i in range(301)}
    assert peak_bytes(Graph(tuple(long), arrays, frozenset({"300"})), "cpu", ahead=True) == 111 * size


def test_views_need_nothing_and_copies_do() -> None:
    size = 4 * 64 * 64
    arrays = {name: Array((64, 64), 4, name == "x") for name in ("x", "a", "b", "c", "d")}
    nodes = [Node("Exp", ("x",), ("a",)), Node("Reshape", ("a",), ("b",)), Node("Transpose", ("b",), ("c",))]
    assert peak_bytes(Graph(tuple(nodes), arrays, frozenset({"c"})), "cpu") == size
    nodes.append(Node("Reshape", ("c",), ("d",)))  # of what does not lie in order: a copy
    graph = Graph((*nodes, Node("Matmul", ("d", "a"), ("e",))), arrays | {"e": arrays["a"]}, frozenset({"e"}))
    assert peak_bytes(graph, "cpu") == 3 * size


@pytest.mark.parametrize(("width", "fused"), [(64, True), (40, False)])
def test_scores_of_fused_attention_are_never_there(width: int, fused: bool) -> None:
    import mlx.nn as nn

    network = nn.Linear(1, 1)
    q = mx.zeros((1, 2, 500, width))

    def call(x: Any) -> Any:
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask=mx.zeros((500, 500)))

    graph = trace(network, call, q)
    assert bool(scores_never_made(graph)) == fused
    scores = 4 * 2 * 500 * 500
    assert (peak_bytes(graph, "metal") < scores) == fused
    assert peak_bytes(graph, "cpu") > scores


def test_tracing_leaves_the_weights_alone() -> None:
    network = load_module(FOLDERS["pebble"] / "vae")
    before = [(name, mx.array(value)) for name, value in tree_flatten(network.parameters())]
    span_of(network, PipelinePlan.read(FOLDERS["pebble"], None, 1).call_of("vae", network, mx.float32), "metal")
    after = dict(tree_flatten(network.parameters()))
    assert all(mx.array_equal(value, after[name]) for name, value in before)


def test_convolutions_by_the_rules_of_each_device() -> None:
    x, weight, out = Array((1, 12, 12, 256), 2), Array((256, 3, 3, 256), 2), Array((1, 12, 12, 256), 2)
    cells = 12 * 12 * 256
    assert convolution_workspace(x, weight, out, "cpu") == 4 * (cells + 9 * cells + cells + 9 * 256 * 256)
    assert convolution_workspace(x, weight, out, "metal") == 2 * (cells + 64 * (4 * 512 + 256 * 256))
    small = Array((4, 3, 3, 256), 2)
    assert convolution_workspace(x, small, Array((1, 12, 12, 4), 2), "metal") == 0


def test_a_tiled_decode_and_stages_need_less() -> None:
    whole = estimate_memory(FOLDERS["pebble"], size=(512, 512))
    tiled = estimate_memory(FOLDERS["pebble"], size=(512, 512), tile=128)
    vae = next(one for one in whole.components if one.part == "vae")
    assert whole.decode_tiled == vae.call
    assert tiled.decode_tiled.most < vae.call.most / 3
    decoder = replace(tiled, components=(vae,))
    assert decoder.peak(tiled=True).most == vae.weights + tiled.decode_tiled.most < decoder.peak().most
    assert tiled.peak(staged=True).least < tiled.peak().least
    assert tiled.peak() == Span(whole.weights + max(one.call.least for one in whole.components), whole.peak().most)
    assert estimate_memory(FOLDERS["pebble"], images=4).peak().most > estimate_memory(FOLDERS["pebble"]).peak().most


def copy(folder: Path, to: Path, **index: Any) -> Path:
    """The configurations of a folder, without weights."""
    for path in folder.rglob("*.json"):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    path = to / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return to


def test_no_weights_are_needed(tmp_path: Path) -> None:
    assert estimate_memory(copy(FOLDERS["pebble-dit"], tmp_path)) == estimate_memory(FOLDERS["pebble-dit"])


def test_the_table_of_the_page_is_what_the_command_writes() -> None:
    """The rows of one model; the others take longer, and come from the same lines."""
    made = runpy.run_path(str(ROOT / "docs" / "make_mlx_memory.py"))
    page = (ROOT / "docs" / "howto" / "mlx.md").read_text(encoding="utf-8")
    assert made["section"](["Stable Diffusion 1.5"]) in page
    _, _, rest = page.partition(made["START"])
    table, _, _ = rest.partition(made["END"])
    assert [line for line in table.splitlines() if "billion" in line and line.count("|") == 9][3].startswith("| FLUX.1")


def test_bad_folders_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is none"):
        estimate_memory(tmp_path)
    folder = copy(FOLDERS["pebble"], tmp_path, vae=["diffusers", "AutoencoderDC"], unet=["diffusers", "UNet3D"])
    with pytest.raises(ModelError, match=r"UNet3D \(unet\), AutoencoderDC \(vae\)"):
        estimate_memory(folder)
    with pytest.raises(ModelError, match="expected a denoiser"):
        estimate_memory(copy(FOLDERS["pebble"], tmp_path, unet=[None, None]))
    with pytest.raises(ModelError, match="multiples of"):
        estimate_memory(FOLDERS["pebble"], size=(64, 65))
    with pytest.raises(ModelError, match="1 picture or more"):
        estimate_memory(FOLDERS["pebble"], images=0)
    with pytest.raises(ModelError, match="64 pixels or more"):
        estimate_memory(FOLDERS["pebble"], size=(512, 512), tile=32)
    with pytest.raises(ModelError, match="dtype among"):
        estimate_memory(FOLDERS["pebble"], dtype="float8")
