"""The components of a pipeline's folder, loaded on MLX when they are first asked for."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ...errors import GuestWarning, ModelError
from ...registry import suggest_spelling
from ...satellites import install_hint, list_entry_points
from .families import FAMILIES, Arrays, Family, TextEncoder
from .loading import find_weights, load_module, read_safetensors
from .lora import LoraReport, load_lora
from .torch_parts import TorchPart, why_not_ported

INDEX_FILE = "model_index.json"
DTYPES = ("float32", "float16", "bfloat16")
BITS = (4, 8)
MAX_PROMPTS = 256  # whose encodings are kept
DIGEST_VALUES = 1024  # values of each array that its digest looks at
UNUSED = ("safety_checker", "image_encoder")  # components that no network of ours stands for


def find_folder(model: str | Path) -> Path:
    """The folder of a model: a name such as "pebble", a path, or an id on the hub, which is fetched.

    Raises:
        ModelError: there is none.
    """
    for point in list_entry_points("models"):
        package = point.load()
        if package.owns(model):
            return Path(package.find(str(model)))
    folder = Path(model)
    if folder.is_dir():
        return folder
    if hint := install_hint("model", str(model)):
        raise ModelError(f"The model {model} {hint}.")
    return _fetch(str(model))


def _fetch(model: str) -> Path:
    from ...policies.hub_files import HUB_ID, NotFetched, fetch_file

    if not HUB_ID.fullmatch(model):
        raise ModelError(f"There is no folder {model}. Expected pebble, a pipeline's folder, or a hub id: org/name.")
    try:
        read_index(fetch_file(model, INDEX_FILE, "model").parent)  # before gigabytes are fetched
    except NotFetched as e:
        raise ModelError(f"{model} {e}.") from None
    import diffusers

    return Path(diffusers.DiffusionPipeline.download(model))


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a folder. Raises ModelError where it is none, or of a class that is not ported."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no {INDEX_FILE}: expected what a diffusers pipeline's save_pretrained writes."
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{path} is damaged: it names no pipeline. Fetch the model again.") from None
    if kind not in FAMILIES:
        raise ModelError(
            f"{folder} is a {kind}, which is not ported to MLX.{suggest_spelling(kind, list(FAMILIES))} Ported: "
            f"{', '.join(FAMILIES)}. Run it with torch: --backend torch, or skipstone.adapt of its pipeline."
        )
    return index


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of a component. Raises ModelError."""
    path = folder / part / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except OSError:
        raise ModelError(
            f"Expected the component {part} in {folder}, found no {path}. Fetch the model again."
        ) from None
    except ValueError:
        raise ModelError(f"{path} is damaged: it is not JSON. Fetch the model again.") from None


def stored_dtype(folder: Path) -> str:
    """The dtype of a component's weights where MLX runs on a GPU, else float32, which CPUs are made for."""
    if not mx.metal.is_available():
        return "float32"
    first = next(iter(read_safetensors(find_weights(folder)[0]).values()))
    name = str(first.dtype).removeprefix("mlx.core.")
    return name if name in DTYPES else "float32"


def digest(part: str, network: Any) -> str:
    """SHA-256 over names, types, shapes and evenly chosen values of all weights of a network."""
    found = hashlib.sha256()
    for name, value in sorted(tree_flatten(network.parameters())):
        found.update(json.dumps([part, name, str(value.dtype), list(value.shape)]).encode())
        row = value.reshape(-1)
        some = row[:: max(1, row.size // DIGEST_VALUES)][:DIGEST_VALUES]
        wide = some if value.dtype == mx.uint32 else some.astype(mx.float32)  # uint32: packed quantised weights
        found.update(np.array(wide).tobytes())
    return found.hexdigest()


def reason_against(model: str) -> str:
    """Why the denoiser of a model cannot run on MLX, as the end of a sentence; empty where it can."""
    try:
        folder = find_folder(model)
        part = FAMILIES[read_index(folder)["_class_name"]].denoiser
        return why_not_ported(read_config(folder, part), part)
    except ModelError as e:
        return str(e).partition(". ")[0].rstrip(".")


class Parts:
    """Networks and tokenizers of a folder.

    Args:
        folder: Of the pipeline.
        family: Its class.
        dtype: Of the weights: "float32", "float16" or "bfloat16".
        bits: 4 or 8 quantises the denoiser and the text encoders; None leaves them as they are.
        fallback: Whether torch runs text encoders and an autoencoder that are not ported.
        staged: Keep one kind of networks at a time, text encoders, denoiser or autoencoder, and load the others again
            when they are needed: slower, and with less memory.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        dtype: str = "float32",
        bits: int | None = None,
        fallback: bool = False,
        staged: bool = False,
    ) -> None:
        self.folder, self.family, self.dtype, self.bits = folder, family, dtype, bits
        self.fallback, self.staged = fallback, staged
        self._networks: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self.loras: list[tuple[Path, float]] = []  # files and scales, merged into networks after they were loaded
        self.on_release: list[Callable[[], None]] = []  # called when networks are freed or changed
        self.encode = functools.lru_cache(MAX_PROMPTS)(self._encode)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the networks that are in memory."""
        return tuple(self._networks)

    def has(self, part: str) -> bool:
        """Whether the pipeline has a component."""
        entry = self.family.index.get(part) or [None, None]
        return entry[1] is not None

    def network(self, part: str) -> Any:
        """A network, loaded when it is first asked for. Raises ModelError."""
        if part not in self._networks:
            if self.staged:
                self.release([name for name in self._networks if self._stage(name) != self._stage(part)])
            self._networks[part] = self._load(part)
        return self._networks[part]

    def text_encoders(self) -> dict[str, TextEncoder]:
        """Name of the component -> text encoder with its tokenizer; those that the pipeline has."""
        pairs = [(tokenizer, part) for tokenizer, part in self.family.text if self.has(part)]
        return {part: TextEncoder(self._tokenizer(tokenizer), self.network(part)) for tokenizer, part in pairs}

    def _encode(self, prompt: str) -> Arrays:
        """The arrays that a prompt conditions the denoiser by; `encode` remembers them."""
        made = self.family.encode(self.text_encoders(), prompt)
        mx.eval(made)
        return made

    def merge_lora(self, path: str | Path, scale: float = 1.0) -> LoraReport:
        """Merge a LoRA into the weights of denoiser and text encoders, now and when they are loaded again.

        Raises:
            ModelError: a file that cannot be read or does not fit, or quantised weights; nothing is changed then.
        """
        names = [*(part for _, part in self.family.text if self.has(part)), self.family.denoiser]
        report = load_lora({name: self.network(name) for name in names}, path, scale)
        self.loras.append((Path(path), scale))
        self._forget()
        return report

    def unload_loras(self) -> None:
        """Free the networks that LoRAs have changed; they are loaded again as the folder has them."""
        if self.loras:
            self.loras.clear()
            self.release(self.loaded)
            self._forget()

    def _forget(self) -> None:
        """Forget what was made with other weights: encoded prompts, and compiled calls."""
        self.encode.cache_clear()
        for callback in self.on_release:
            callback()

    def release(self, parts: Iterable[str]) -> None:
        """Free networks. They are loaded again when they are asked for."""
        for part in list(parts):
            self._networks.pop(part, None)
        for callback in self.on_release:
            callback()
        mx.clear_cache()

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a component."""
        return read_config(self.folder, part)

    def _stage(self, part: str) -> str:
        return "text" if part.startswith("text_encoder") else part

    def _load(self, part: str) -> Any:
        if part == self.family.denoiser:
            warn_of_unused(self.family.index)
        dtype, bits = self.dtype, self.bits
        if part == "vae":
            bits = None
            if dtype == "float16" and self.config(part).get("force_upcast"):
                dtype = "float32"  # its activations do not fit into float16, and its configuration says so
        if part != self.family.denoiser and (why := why_not_ported(self.config(part), part)):
            return self._load_torch(part, why)
        network = load_module(self.folder / part, dtype=dtype, bits=bits)
        names = [*(name for _, name in self.family.text), self.family.denoiser]
        for path, scale in self.loras if part in names else ():
            load_lora({name: network if name == part else None for name in names}, path, scale)
        mx.eval(network.parameters())
        return network

    def _load_torch(self, part: str, why: str) -> Any:
        """A component that is not ported, on torch. Raises ModelError where that was not asked for."""
        if not self.fallback:
            raise ModelError(
                f"{why}. Let torch run this component: --backend auto, in Python skipstone.mlx.load(..., "
                f"torch_fallback=True)."
            )
        made = TorchPart(part, self.folder / part, *self.family.index[part])
        warnings.warn(f"{part} runs on torch, on {made.device}: {why}.", GuestWarning, stacklevel=4)
        return made

    def _tokenizer(self, part: str) -> Any:
        if part not in self._tokenizers:
            import transformers

            kind = self.family.index[part][1]
            try:
                self._tokenizers[part] = getattr(transformers, kind).from_pretrained(self.folder / part)
            except Exception as e:  # transformers and tokenizers have errors of their own for a damaged file
                line = (str(e) or type(e).__name__).splitlines()[0]
                raise ModelError(f"The tokenizer in {self.folder / part} cannot be loaded: {line}") from e
        return self._tokenizers[part]


def warn_of_unused(index: Mapping[str, Any]) -> None:
    """Warn of components that are not run on MLX."""
    found = [name for name in UNUSED if (index.get(name) or [None, None])[1] is not None]
    if found:
        warnings.warn(f"Not run on MLX, and left out: {', '.join(found)}.", GuestWarning, stacklevel=4)
