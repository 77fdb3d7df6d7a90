"""How much memory a call of a network needs, from the graph that MLX makes of it: nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ...errors import MissingPackage

Device = Literal["metal", "cpu"]
#: Operations whose result lies in the memory of their input, where that lies in the order of its indices.
VIEWS_IF_ORDERED = frozenset({"Reshape", "Flatten", "Unflatten"})
#: Operations whose result always lies in the memory of their input, and whether it still lies in order.
VIEWS = {
    "Squeeze": True,
    "ExpandDims": True,
    "Copy": True,
    "StopGradient": True,
    "Transpose": False,
    "Slice": False,
    "Split": False,
    "Broadcast": False,
    "AsStrided": False,
}
#: Operations that never write their result over an input.
FRESH = frozenset(
    {"Matmul", "AddMM", "QuantizedMatmul", "Convolution", "Concatenate", "Gather", "GatherAxis", "Reduce", "Pad"}
)
#: Widths of heads for which Metal has attention without a matrix of scores (has_fused_kernel of MLX's
#: scaled_dot_product_attention.cpp; 72 and 96 came later and are left out).
FUSED_WIDTHS = frozenset({64, 80, 128})
#: Tasks that MLX allocates for beyond the one that is being computed (MAX_ACTIVE_TASKS of its transforms.cpp).
TASKS_AHEAD = 10
#: Operations and bytes at which a task ends: command buffers of Metal (device.cpp, base and Pro chips), or ten
#: operations of the CPU (DISPATCHES_PER_TASK of encoder.h).
TASK_LIMITS: Mapping[Device, tuple[int, float]] = {"metal": (40, 40 * 2**20), "cpu": (10, math.inf)}
WINOGRAD_TILE, WINOGRAD_OUT = 8, 6  # cells on a side of a transformed tile, and of what comes out of it


@dataclass(frozen=True)
class Array:
    """An array of the graph: its shape, the bytes of each element, and whether it is a weight or an input."""

    shape: tuple[int, ...]
    itemsize: int
    given: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Node:
    """An operation of the graph, with the names of its inputs and outputs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Operations in the order in which they are run, the arrays between them, and the names of the results."""

    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array]
    results: frozenset[str]


def trace(network: Any, call: Callable[..., Any], *inputs: Any) -> Graph:
    """The graph of a call of a network, without computing anything.

    Args:
        network: A module of MLX, whose weights need not be there; they come out as they went in.
        call: What is called with the inputs: the network or one of its methods.
        inputs: Arrays, of which the shapes and dtypes count.

    Raises:
        MissingPackage: an MLX that cannot show its graph (before 0.30).
    """
    weights = tree_flatten(network.parameters())
    names = [name for name, _ in weights]
    entries: list[Mapping[str, Any]] = []

    def run(*arrays: Any) -> Any:
        network.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        return call(*arrays[len(names) :])

    try:
        with mx.stream(mx.cpu):  # the same graph on every machine: on a GPU some operations are one that hides others
            mx.export_function(entries.append, run, *(mx.zeros(w.shape, w.dtype) for _, w in weights), *inputs)
    except TypeError:
        raise MissingPackage(f"An estimate of memory needs mlx>=0.30, and {version('mlx')} is installed.") from None
    finally:
        network.update(tree_unflatten(weights))
    return read_graph(entries)


def read_graph(entries: Sequence[Mapping[str, Any]]) -> Graph:
    """A graph of what `mx.export_function` says of it."""
    nodes: list[Node] = []
    arrays: dict[str, Array] = {}
    results = frozenset[str]()
    for entry in entries:
        kind = entry["type"]
        if kind == "inputs":
            arrays |= {name: Array(tuple(shape), dtype.size, True) for name, shape, dtype in entry["inputs"]}
        elif kind == "constants":
            arrays |= {name: Array(tuple(value.shape), value.dtype.size, True) for name, value in entry["constants"]}
        elif kind == "outputs":
            results = frozenset(name for name, *_ in entry["outputs"])
        elif kind == "primitive":
            arrays |= {name: Array(tuple(shape), dtype.size) for name, shape, dtype in entry["outputs"]}
            used, made = (tuple(name for name, *_ in entry[key]) for key in ("inputs", "outputs"))
            nodes.append(Node(entry["name"], used, made))
    return Graph(tuple(nodes), arrays, results)


def peak_bytes(graph: Graph, device: Device = "metal", ahead: bool = False) -> int:
    """The most bytes that are in use at once, beside weights and inputs.

    An operation on each element writes over an input that nobody else reads; what a convolution needs for itself is
    counted by the rules of the device (`convolution_workspace`). Operations are counted one by one, as without
    `mx.compile`.

    Args:
        graph: Of one call.
        device: "metal": attention of the widths in FUSED_WIDTHS has no matrix of scores; "cpu": it has.
        ahead: False: an array is freed after its last use, as where MLX is at its memory limit. True: MLX allocates for
            TASKS_AHEAD tasks beyond the one that is being computed, and frees what a task has used when it is done.
    """
    buffers, sizes = find_buffers(graph, scores_never_made(graph) if device == "metal" else frozenset())
    last, uses = last_uses(graph, buffers)
    tasks = number_tasks(graph, buffers, sizes, device) if ahead else list(range(len(graph.nodes)))
    freed, used, peak, done = [0] * (tasks[-1] + 1), 0, 0, 0
    alive: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        while done < tasks[i] - (TASKS_AHEAD if ahead else 0):
            used, done = used - freed[done], done + 1
        ending = {buffers[name] for name in node.inputs if last.get(buffers[name]) == i and buffers[name] in alive}
        for name in node.outputs:
            if buffers[name] != name:
                continue
            donors = [one for one in ending if alive[one] == sizes[name] and (uses[one] == 1 or not ahead)]
            if donors and node.name not in FRESH:
                ending.remove(donors[0])
                used -= alive.pop(donors[0])
            alive[name] = sizes[name]
            used += sizes[name]
        own = workspace(graph, node, device)
        used, freed[tasks[i]] = used + own, freed[tasks[i]] + own
        peak = max(peak, used)
        ending |= {name for name in node.outputs if name in alive and name not in last}
        freed[tasks[i]] += sum(alive.pop(name) for name in ending)
    return peak


def last_uses(graph: Graph, buffers: Mapping[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """The last operation that reads each memory, after all of them for results; and how many operations read it."""
    last = {buffers[name]: len(graph.nodes) for name in graph.results}
    uses = dict.fromkeys(buffers.values(), 0)
    for i, node in reversed(list(enumerate(graph.nodes))):
        for name in {buffers[name] for name in node.inputs}:
            last.setdefault(name, i)
            uses[name] += any(buffers[made] != name for made in node.outputs)
    return last, uses


def number_tasks(graph: Graph, buffers: Mapping[str, str], sizes: Mapping[str, int], device: Device) -> list[int]:
    """The number of the task that each operation is in; views alone need none of their own."""
    operations = size = number = 0
    numbers = []
    for node in graph.nodes:
        numbers.append(number)
        if all(buffers[name] != name for name in node.outputs):
            continue
        operations += 1
        size += sum(sizes[name] for name in {buffers[name] for name in (*node.inputs, *node.outputs)})
        most, largest = TASK_LIMITS[device]
        if operations >= most or size >= largest:
            operations, size, number = 0, 0, number + 1
    return numbers


def find_buffers(graph: Graph, never_made: frozenset[str]) -> tuple[dict[str, str], dict[str, int]]:
    """The array in whose memory each array lies, and the bytes of each memory; 0 for weights and inputs."""
    buffers = {name: name for name, array in graph.arrays.items() if array.given}
    sizes, ordered = dict.fromkeys(buffers, 0), dict.fromkeys(buffers, True)
    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else ""
        in_order = ordered.get(source, True)
        view = node.name in VIEWS or (node.name in VIEWS_IF_ORDERED and in_order)
        for name in node.outputs:
            buffers[name] = buffers[source] if view else name
            ordered[name] = in_order and VIEWS.get(node.name, True) if view else True
            sizes[name] = 0 if name in never_made else graph.arrays[name].nbytes
    return buffers, sizes


def scores_never_made(graph: Graph) -> frozenset[str]:
    """The scores of attention whose kernel does without them: all between its two products of matrices."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    found: set[str] = set()
    for node in graph.nodes:
        if node.name != "Softmax":
            continue
        shape, path, name = graph.arrays[node.outputs[0]].shape, set(node.outputs), node.inputs[0]
        while (made_by := maker.get(name)) is not None and graph.arrays[name].shape == shape:
            path.add(name)
            if made_by.name == "Matmul":
                if graph.arrays[made_by.inputs[0]].shape[-1] in FUSED_WIDTHS:
                    found |= path
                break
            name = made_by.inputs[0]
    return frozenset(found)


def workspace(graph: Graph, node: Node, device: Device) -> int:
    """Bytes that an operation needs beside its inputs and outputs; 0 for all but convolutions of two dimensions."""
    if node.name != "Convolution" or len(graph.arrays[node.inputs[0]].shape) != 4:
        return 0
    x, weight = (graph.arrays[name] for name in node.inputs[:2])
    return convolution_workspace(x, weight, graph.arrays[node.outputs[0]], device)


def convolution_workspace(x: Array, weight: Array, out: Array, device: Device) -> int:
    """Bytes that a convolution needs beside its inputs and outputs, by the rules of MLX's two files conv.cpp.

    Args:
        x, out: (batch, height, width, channels).
        weight: (out, height, width, channels).
        device: "cpu": a padded copy and the patches of every cell in float32, of half precision output and weights too.
            "metal": nothing, or by Winograd's method a padded copy and transformed tiles of input, output and weights.
    """
    outs, rows, columns, channels = weight.shape
    batch, height, width, _ = out.shape
    if device == "cpu":
        patches = batch * height * width * rows * columns * channels
        half = math.prod(out.shape) + math.prod(weight.shape) if x.itemsize < 4 else 0
        return 4 * (math.prod(x.shape) + patches + half)
    large = math.prod(x.shape[1:]) >= 2**18
    wide_enough = channels + outs >= 512 or (channels + outs >= 256 and large)
    same = x.shape[1:3] == out.shape[1:3]
    if (rows, columns) != (3, 3) or not same or channels % 32 or outs % 32 or not wide_enough:
        return 0
    tiles = batch * math.ceil(height / WINOGRAD_OUT) * math.ceil(width / WINOGRAD_OUT)
    transformed = WINOGRAD_TILE**2 * (tiles * (channels + outs) + channels * outs)
    return x.nbytes + transformed * x.itemsize
