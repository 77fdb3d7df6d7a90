"""Weights of diffusers' and transformers' folders for networks on MLX: read, checked, cast and quantised."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from ...errors import MissingPackage, ModelError
from ...json_files import JsonReader
from ...registry import suggest_spelling

if TYPE_CHECKING:
    from .network import Network

#: Class of diffusers or transformers -> the module here that has it.
PORTED = {
    "AutoencoderKL": "autoencoder",
    "AutoencoderTiny": "autoencoder_tiny",
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "FluxTransformer2DModel": "flux",
    "SD3Transformer2DModel": "sd3",
    "T5EncoderModel": "t5",
    "UNet2DConditionModel": "unet",
}
MIN_MLX = "0.30"  # the first that multiplies half precision on the CPU
DTYPES = ("float32", "float16", "bfloat16")
BITS = (8, 4)
GROUP_SIZES = (64, 32)  # numbers of weights that share a scale, the first that divides a row is taken
STEMS = ("diffusion_pytorch_model", "model")
FAULTS_SHOWN = 200  # names in one message


@dataclass(frozen=True)
class LoadReport:
    """How a network was loaded.

    Args:
        folder: Where from.
        files: Names of the files of weights.
        dtype: Of the weights that are not quantised.
        bits: Of the quantised weights; None where there are none.
        quantised: Names of the quantised layers.
        unquantised: Names of the linear layers that stayed as they are, because no group size divides their rows.
    """

    folder: Path
    files: tuple[str, ...]
    dtype: str
    bits: int | None = None
    quantised: tuple[str, ...] = ()
    unquantised: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{self.folder.name}: {self.dtype}"
        if self.bits is None:
            return said
        rest = f", {len(self.unquantised)} stayed in {self.dtype}" if self.unquantised else ""
        return f"{said}, {len(self.quantised)} linear layers in {self.bits} bits{rest}"


def require_mlx() -> None:
    """Raise MissingPackage, with what to type, where MLX is missing, too old or without its library."""
    package = "mlx" if sys.platform == "darwin" else "mlx[cpu]"
    install = f'Type: pip install "{package}>={MIN_MLX}"'
    try:
        found = version("mlx")
    except PackageNotFoundError:
        raise MissingPackage(f"MLX is not installed. {install}") from None
    if Version(found) < Version(MIN_MLX):
        raise MissingPackage(f"Expected MLX {MIN_MLX} or later, got {found}. {install}")
    try:
        importlib.import_module("mlx.core")
    except ImportError as e:  # the package alone, without the library of a platform
        raise MissingPackage(f"MLX {found} is installed and cannot be imported ({e}). {install}") from None


def load_module(folder: str | Path, dtype: str = "float32", bits: int | None = None) -> Network:
    """A network on MLX from a folder that diffusers or transformers saved.

    Args:
        folder: With config.json and weights in safetensors.
        dtype: "float32", "float16" or "bfloat16".
        bits: 8 or 4 quantises the weights of linear layers; None quantises nothing.

    Raises:
        MissingPackage: MLX is missing or too old.
        ModelError: a folder, class, option or file that cannot be read, weights that are missing, unexpected or of
            another shape: all of them are listed.
    """
    require_mlx()
    check_precision(dtype, bits)
    folder = Path(folder)
    config = read_folder_config(folder)
    cls = find_network(config, str(folder))
    try:
        module = cls.from_config(config)
    except ModelError as e:
        raise ModelError(f"{folder}: {e}") from None
    files = find_weights(folder, dtype)
    module.update(_unflatten(_read_weights(module, folder, files, dtype)))
    quantised, unquantised = quantise(module, bits) if bits else ((), ())
    module.report = LoadReport(folder, tuple(file.name for file in files), dtype, bits, quantised, unquantised)
    module.eval()
    _evaluate(module)
    return module


def read_folder_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: expected a folder with config.json and weights, as diffusers saves them, got "
            f"{'no config.json' if folder.is_dir() else 'no folder'}."
        )
    reader = JsonReader(ModelError, "Fetch the model again.")
    where = str(folder / "config.json")
    return dict(reader.convert(Mapping[str, Any], reader.read(folder / "config.json"), where))


def find_network(config: Mapping[str, Any], where: str) -> type[Network]:
    """The class on MLX of a config.json. Raises ModelError with the classes that are ported."""
    names = [config["_class_name"]] if "_class_name" in config else config.get("architectures") or []
    name = str(names[0]) if isinstance(names, list) and names else ""
    if not name:
        raise ModelError(f"{where}: expected '_class_name' or 'architectures' in config.json, got neither.")
    if name not in PORTED:
        raise ModelError(
            f"{where}: {name} is not ported to MLX.{suggest_spelling(name, list(PORTED))} Ported: "
            f"{', '.join(sorted(PORTED))}. Run this model with torch: --backend torch."
        )
    found: type[Network] = getattr(importlib.import_module(f".{PORTED[name]}", __package__), name)
    return found


def find_weights(folder: Path, dtype: str = "float32") -> list[Path]:
    """The files of a folder's weights: one, those of an index, or the variant "fp16".

    The variant is taken where there is no other, or where float16 is asked for.

    Raises:
        ModelError: there are none, or files of an index are missing.
    """
    variants = (".fp16", "") if dtype == "float16" else ("", ".fp16")
    for variant in variants:
        for stem in STEMS:
            single = folder / f"{stem}{variant}.safetensors"
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if single.is_file():
                return [single]
            if index.is_file():
                return _read_index(index)
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".ckpt", ".h5", ".msgpack")
    )
    if others:
        raise ModelError(
            f"{folder}: expected weights in safetensors, got {', '.join(others)}. Load the model with torch and write "
            f"it again: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise ModelError(
        f"{folder}: expected {' or '.join(f'{stem}.safetensors' for stem in STEMS)}, got no weights. Fetch the model "
        f"again."
    )


def _read_index(index: Path) -> list[Path]:
    """The files that an index names."""
    reader = JsonReader(ModelError, "Fetch the model again.")
    content = reader.convert(Mapping[str, Any], reader.read(index), str(index))
    names = reader.convert(Mapping[str, str], content.get("weight_map"), f"{index}: weight_map")
    files = sorted({str(name) for name in names.values()})
    if strange := [name for name in files if Path(name).name != name]:
        raise ModelError(f"{index}: expected names of files beside it, got {strange[0]!r}. Fetch the model again.")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise ModelError(f"{index}: it names files that are missing: {', '.join(missing)}. Fetch the model again.")
    return [index.parent / name for name in files]


def read_safetensors(file: Path) -> dict[str, Any]:
    """Arrays of a file by their names; each is read from the file when it is first used. Raises ModelError."""
    import mlx.core as mx

    try:
        found: Any = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"{file} cannot be read as safetensors: {e}. Fetch it again.") from None
    return dict(found)


def _read_weights(module: Network, folder: Path, files: list[Path], dtype: str) -> dict[str, Any]:
    """Arrays by the names of the module's parameters, checked, in MLX's layout and of the type asked for."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    expected = dict(tree_flatten(module.parameters()))
    found: dict[str, Any] = {}
    for file in files:
        for key, value in read_safetensors(file).items():
            name = module.rename(key)
            if name is not None:
                found[name] = to_mlx_layout(value)
    faults = [f"missing: {name}" for name in expected if name not in found]
    faults += [f"unexpected: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        if found[name].shape != expected[name].shape:
            faults.append(f"{name}: expected {_shape(expected[name])}, got {_shape(found[name])}")
        elif not mx.issubdtype(found[name].dtype, mx.floating):
            faults.append(f"{name}: expected floating point, got {found[name].dtype}")
    if faults:
        what = f"{folder}: the weights do not fit {type(module).__name__}"
        raise ModelError(list_faults(what, sorted(faults), "config.json and the weights are of different models."))
    kind = getattr(mx, dtype)
    return {name: value.astype(kind) for name, value in found.items()}


def to_mlx_layout(value: Any) -> Any:
    """A weight in MLX's layout: those of convolutions (out, in, height, width) -> (out, height, width, in).

    It is copied once, so that no call of the network does it again; other arrays are returned as they are.
    """
    import mlx.core as mx

    return mx.contiguous(value.transpose(0, 2, 3, 1)) if value.ndim == 4 else value


def _shape(value: Any) -> str:
    """A shape in PyTorch's layout, which is that of the file."""
    shape = tuple(value.shape)
    return str((shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape)


def list_faults(what: str, faults: list[str], advice: str) -> str:
    """One message of many faults: at most `FAULTS_SHOWN` of them, and the number of the others."""
    shown = faults[:FAULTS_SHOWN]
    more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
    return f"{what}: {'; '.join(shown)}{more}. {advice}"


def quantise(module: Any, bits: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quantise the weights of a module's linear layers in place by `mlx.nn.quantize`.

    Args:
        module: A network.
        bits: 8 or 4.

    Returns:
        Names of the quantised layers, and of those that stayed because no group size divides their rows.
    """
    import mlx.nn as nn

    quantised: list[str] = []
    unquantised: list[str] = []

    def predicate(path: str, layer: Any) -> bool | dict[str, int]:
        if not isinstance(layer, nn.Linear):
            return False
        size = next((size for size in GROUP_SIZES if layer.weight.shape[-1] % size == 0), None)
        (unquantised if size is None else quantised).append(path)
        return {"group_size": size, "bits": bits} if size else False

    nn.quantize(module, class_predicate=predicate)
    return tuple(quantised), tuple(unquantised)


def is_quantised(module: Any) -> bool:
    """Whether a network has quantised layers."""
    import mlx.nn as nn

    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return any(isinstance(layer, kinds) for _, layer in module.named_modules())


def check_precision(dtype: str, bits: int | None) -> None:
    if dtype not in DTYPES:
        raise ModelError(
            f"Expected a dtype among {', '.join(DTYPES)}, got {dtype!r}.{suggest_spelling(str(dtype), DTYPES)}"
        )
    if bits is not None and bits not in BITS:
        raise ModelError(f"Expected {' or '.join(map(str, BITS))} bits, or None, got {bits!r}.")


def _unflatten(weights: dict[str, Any]) -> Any:
    from mlx.utils import tree_unflatten

    return tree_unflatten(list(weights.items()))


def _evaluate(module: Network) -> None:
    """Read the weights now, so that a file that fails is found here."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    try:
        for _, value in tree_flatten(module.parameters()):
            mx.eval(value)  # one by one: the weights that are quantised are not all in memory at once
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"{module.report.folder}: the weights cannot be read: {e}. Fetch the model again.") from None
