"""Identity of a model, so that a certificate is used only with the model that it was made for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from ..engine.contracts import Policy
from ..errors import CertificateError
from ..numerics.nonfinite import read_nonfinite, spell_nonfinite
from ..policies.certified import ATTENTION_SCALE, VOCABULARY, Certified, prefix_keys
from ..policies.storage import read_policy
from .diffusers.undeclared import find_undeclared
from .plain_tensors import describe_tensor_types, has_values, plain_tensors

DIGEST_VALUES = 1024  # values of each tensor that its digest looks at
HOOK = "a forward hook"  # how `Undeclared.parts` names hooks
FREEU = ("s1", "s2", "b1", "b2")  # what diffusers' enable_freeu sets on the blocks of a U-Net


def load_policy(
    folder: str | os.PathLike[str],
    pipe: Any = None,
    *,
    force: bool = False,
    allow_sampler: bool = False,
    revision: str | None = None,
) -> Policy:
    """The policy of a folder that `save_pretrained` or `save_policy` wrote, here or on the Hugging Face hub.

    Args:
        folder: Where it is: a path, or org/name of a repository that `push_to_hub` filled (org/name/folder).
        pipe: What it is to run on: a calibrated policy is refused where its certificate was made for something else.
        force: Load it all the same; nothing is promised then.
        allow_sampler: Let a certificate that found a sampler to be best replace the pipeline's scheduler and steps.
        revision: Branch, tag or commit of a repository.

    Raises:
        SpecError: there is none, it is damaged, or its certificate contradicts itself.
        CertificateError: a certificate of another model or configuration.
    """
    policy = read_policy(folder, force=force, allow_sampler=allow_sampler, revision=revision)
    if pipe is not None and isinstance(policy, Certified):
        check_identity(policy, pipe)
    return policy


def check_identity(policy: Certified, pipe: Any) -> None:
    """Raise CertificateError where a pipeline, or a `Pebble`, is not what the certificate was made for."""
    found = {**identity(pipe), **prefix_keys("scheduler", scheduler_to_config(getattr(pipe, "scheduler", None)))}
    policy.check(found, f"this {type(pipe).__name__}")


def identity(model: Any) -> dict[str, Any]:
    """What must be the same for a promise to hold: `cheap_facts`, and "dtype" and "weights" of the networks.

    A model whose networks are no torch modules has an `identity` of its own.
    """
    if hasattr(model, "identity"):
        own: dict[str, Any] = model.identity()
        return own
    parts = networks(model)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for part in parts.values() for p in part.parameters()})
    facts = cheap_facts(model)
    return {"pipeline": facts.pop("pipeline"), "dtype": ", ".join(dtypes), "weights": digest(parts), **facts}


def cheap_facts(model: Any) -> dict[str, Any]:
    """{"pipeline"} and, where there are such, "guidance", "vocabulary...", "adapters..." and more of the networks.

    Takes some milliseconds: it looks at attributes of modules, and at no weights.
    """
    found: dict[str, Any] = {"pipeline": type(model).__name__}
    if isinstance(guidance := getattr(model, "guidance", None), float | int):
        found["guidance"] = float(guidance)
    for name, part in _components(model).items():
        if hasattr(part, "get_added_vocab"):
            found[f"{VOCABULARY}{name}"] = _describe_vocabulary(part)
    for name, part in networks(model).items():
        facts = {
            "adapters": _describe_adapters(part),
            "attention": _describe_attention(part),
            ATTENTION_SCALE.removesuffix("."): _describe_attention_scale(part),
            **_describe_additions(part),
            "freeu": _describe_freeu(part),
            "cache": type(part._cache_config).__name__ if getattr(part, "is_cache_enabled", False) else "",
            "dropout": _describe_dropout(part),
            "tensor_types": describe_tensor_types(part),
        }
        found |= {f"{fact}.{name}": said for fact, said in facts.items() if said}
    return found


def _components(model: Any) -> dict[str, Any]:
    """Parts of a pipeline or of a Pebble by their names, sorted."""
    parts = getattr(model, "components", None)
    return dict(sorted((parts if isinstance(parts, Mapping) else vars(model)).items()))


def networks(model: Any) -> dict[str, Any]:
    """Every network of a pipeline or of a Pebble; of a compiled one what was compiled."""
    import torch

    parts = {name: getattr(part, "_orig_mod", part) for name, part in _components(model).items()}
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def _describe_vocabulary(tokenizer: Any) -> str:
    """'49408 tokens, 2 of them added (1a2b3c4d)': textual inversion adds tokens."""
    added = tokenizer.get_added_vocab()
    sha256 = hashlib.sha256(json.dumps(added, sort_keys=True).encode()).hexdigest()
    return f"{len(tokenizer)} tokens, {len(added)} of them added ({sha256[:8]})"


def _describe_adapters(network: Any) -> str:
    """'style at 0.8, lines at 1 (fused)': the adapters of peft that act, and their scales."""
    if not getattr(network, "peft_config", None):
        return ""
    scales: dict[str, set[float]] = {}
    for layer in network.modules():
        merged = set(getattr(layer, "merged_adapters", ()))
        active = set() if getattr(layer, "disable_adapters", False) else set(getattr(layer, "active_adapters", ()))
        scaling = getattr(layer, "scaling", {})
        for name in (merged | active) & set(scaling):
            label = f"{name} (fused)" if name in merged else name
            scales.setdefault(label, set()).add(float(scaling[name]))
    return ", ".join(f"{name} at {' / '.join(f'{s:g}' for s in sorted(scales[name]))}" for name in sorted(scales))


def _describe_attention(network: Any) -> str:
    """Classes of attention processors that are not diffusers' own, which may look across the batch, or at anything."""
    classes = {type(processor) for processor in _processors(network)}
    return ", ".join(sorted(c.__name__ for c in classes if not c.__module__.startswith("diffusers.")))


def _describe_attention_scale(network: Any) -> str:
    """Scales of attention processors, which `set_ip_adapter_scale` sets: '0.6', or '6 at 0, 2 at 1' in their order."""
    found = [_spell_scale(p.scale) for p in _processors(network) if hasattr(p, "scale")]
    runs = [(scale, len(list(same))) for scale, same in groupby(found)]
    return runs[0][0] if len(runs) == 1 else ", ".join(f"{count} at {scale}" for scale, count in runs)


def _spell_scale(scale: Any) -> str:
    """'0.6', and '0.6 and 1' of two IP-Adapters."""
    value = scale.tolist() if hasattr(scale, "tolist") else scale
    if isinstance(value, list | tuple):
        return " and ".join(_spell_scale(one) for one in value)
    return f"{value:g}" if isinstance(value, float | int) else type(value).__name__


def _processors(network: Any) -> list[Any]:
    """Attention processors, in the order of their modules."""
    found = (vars(module).get("processor", module._modules.get("processor")) for module in network.modules())
    return [processor for processor in found if processor is not None]


def _describe_additions(network: Any) -> dict[str, str]:
    """Forward hooks, and modules whose `forward` was replaced (DeepCache, TeaCache), that are not of known packages."""
    found = find_undeclared([network])
    hooks = [part for part in found.parts if part.startswith(HOOK)]
    return {"hooks": ", ".join(hooks), "replaced_forward": ", ".join(found.replaced)}


def _describe_freeu(network: Any) -> str:
    """The factors of FreeU: 's1=0.9, s2=0.2, b1=1.2, b2=1.4'; empty where it is off."""
    blocks = list(getattr(network, "up_blocks", ()))
    factors: dict[str, set[Any]] = {name: {getattr(block, name, None) for block in blocks} - {None} for name in FREEU}
    return ", ".join(f"{name}={value:g}" for name, values in factors.items() for value in sorted(values))


def _describe_dropout(network: Any) -> str:
    """The shares of values that dropout takes out at random now, while the network is in its training mode."""
    import torch

    found = {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.training and m.p}
    return ", ".join(f"{share:g}" for share in sorted(found))


def digest(parts: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and evenly chosen values of all weights; cheap, and no fine-tune passes it."""
    import torch

    found = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for key, tensor in sorted(part.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue
            inside, _, own = key.rpartition(".")
            stored = stored_tensor(part.get_submodule(inside), own, tensor) if tensor.is_meta else tensor
            for plain, values in plain_tensors(key, stored):
                found.update(json.dumps([name, plain, str(tensor.dtype), list(values.shape)]).encode())
                found.update(_digest_values(values))
    return found.hexdigest()


def _digest_values(tensor: Any) -> bytes:
    """Evenly chosen values of a tensor as bytes; none of one that nobody can look at."""
    import torch

    if not has_values(tensor):
        return b""
    with torch._C.DisableTorchFunctionSubclass():
        row = tensor.detach().flatten()
        some = row[:: max(1, len(row) // DIGEST_VALUES)][:DIGEST_VALUES].contiguous()
        return bytes(some.view(torch.uint8).cpu().numpy().tobytes())


def stored_tensor(module: Any, name: str, tensor: Any) -> Any:
    """A tensor of a module; while accelerate off-loads it, so that it has no values, the one that accelerate keeps."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        stored = getattr(one, "weights_map", None)
        if tensor.is_meta and stored is not None and name in stored:
            return stored[name]
    return tensor


def scheduler_to_config(scheduler: Any) -> dict[str, Any]:
    """Class and configuration of a scheduler, as JSON gives them back; empty where there is none."""
    if scheduler is None:
        return {}
    # some schedulers clip at -inf
    config = {k: spell_nonfinite(v) for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    facts: dict[str, Any] = json.loads(json.dumps({"class": type(scheduler).__name__, **config}, default=str))
    return facts


def scheduler_from_config(facts: Mapping[str, Any]) -> Any:
    """The scheduler that `scheduler_to_config` describes.

    Raises:
        CertificateError: diffusers has no such scheduler, or it does not take these settings.
    """
    import diffusers

    kind: Any = getattr(diffusers, str(facts.get("class")), None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        raise CertificateError(
            f"The certificate brings a scheduler {facts.get('class')!r}, which diffusers {diffusers.__version__} does "
            f"not have. Calibrate again with this version: skipstone calibrate."
        )
    config = {k: read_nonfinite(v) for k, v in facts.items() if k != "class"}
    try:
        return kind.from_config(config)
    except Exception as e:  # a scheduler does with wrong settings what its own code happens to do
        raise CertificateError(
            f"The certificate brings settings that {kind.__name__} does not take ({type(e).__name__}: {e}). Restore "
            f"the file, or calibrate again: skipstone calibrate."
        ) from e
