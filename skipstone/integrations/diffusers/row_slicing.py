"""Decides whether a call of the network may be made for some rows of its batch, and takes these out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import torch

from ...errors import GuestError
from .pipeline_specs import PipelineSpec
from .rows import has_nested_rows, is_plain, main_output, outline, slice_repeated, slice_rows
from .undeclared import NetworkWatch, Undeclared

# Relative: what a smaller batch may change by rounding. TF32 is what CUDA computes float32 with where it may.
TOLERANCE, TF32_TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-3, 2e-2


class Split(Enum):
    """How a batch is taken apart."""

    SAMPLES = "samples"  # each sample enters with all of its guidance branches, or not at all
    BRANCHES = "branches"


Rule: TypeAlias = frozenset[str] | None  # arguments that are given whole; None: rows may not be taken apart
Key: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class NetworkCall:
    """Arguments of a call of a network, and how many rows its batch has."""

    module: Any
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int

    @property
    def named(self) -> dict[str, Any]:
        """Every argument under a name."""
        return {**{f"argument {i + 1}": value for i, value in enumerate(self.args)}, **self.kwargs}

    @property
    def stateful(self) -> list[str]:
        """Names of arguments that hold objects: a cache of keys and values must not be used twice."""
        return [name for name, value in self.named.items() if not is_plain(value)]


@dataclass
class RowSlicer:
    """Decides which calls of the network may be made for some of their rows, and takes these out.

    Rows of a declared pipeline are independent where its classes, attention processors and hooks are those that
    were declared. All others are compared before they first enter apart: computed in parts and as a whole. What this
    shows holds for calls of the same form; where something undeclared is in the network, for one call of the pipeline.

    Args:
        spec: Of the pipeline.
        watch: Of its networks.
        shared_proofs: What comparisons have shown, kept from call to call of the pipeline.
        strict: Raise where rows are coupled, in place of whole batches.
        verify: Compare declared rows as well.
    """

    spec: PipelineSpec
    watch: NetworkWatch
    shared_proofs: dict[Key, Rule] = field(default_factory=dict)
    strict: bool = False
    verify: bool = False
    reason: str = ""  # why rows may not be taken apart, where they may not
    undeclared: Undeclared = field(default_factory=Undeclared)  # when `look` was called last
    own_proofs: dict[Key, Rule] = field(default_factory=dict)

    def look(self) -> None:
        """Look at the network again: processors and hooks may have been exchanged in a callback."""
        self.undeclared = self.watch.look()

    def is_due(self, call: NetworkCall, split: Split) -> bool:
        """Whether rows of this call must be compared before they enter apart."""
        trusted = self.spec.is_declared and not self.undeclared.parts and not self.verify
        undecided = not trusted or bool(self._undecided(call))
        return undecided and not self._forbidden(call) and self._key(call, split) not in self._proofs

    def rule(self, call: NetworkCall, split: Split) -> Rule:
        """Which arguments are given whole to some of the rows; None where all rows must enter. Ask `is_due` first.

        Raises:
            GuestError: rows may not be taken apart, where `strict`.
        """
        reason = self._forbidden(call)
        rule = None if reason else self._proofs.get(self._key(call, split), self.spec.shared)
        if rule is None:
            self.reason = reason or self._describe_coupling(call)
            if self.strict:
                raise GuestError(
                    f"{self.reason}. Arguments that were not sliced: {', '.join(self._list_unsliced(call)) or 'none'}. "
                    f"Declare them in a PipelineSpec(shared=..., repeated=...), or adapt with per_sample=False."
                )
        return rule

    def prove(self, call: NetworkCall, split: Split, whole: torch.Tensor, parts: Sequence[Sequence[int]]) -> int:
        """Compute these parts, compare them with the same rows of the whole batch, and keep what this has shown.

        An output that is not finite shows nothing, and nothing is kept.

        Returns:
            Rows that have entered for it.
        """
        if not torch.isfinite(whole).all():
            return 0
        entered, shown = 0, None
        for rule in dict.fromkeys((self.spec.shared | self._undecided(call), self.spec.shared)):
            agrees, rows = self._compare(call, rule, whole, parts)
            entered += rows
            if agrees:
                shown = rule
                break
        self._proofs[self._key(call, split)] = shown
        return entered

    def refuse(self, call: NetworkCall, split: Split) -> None:
        """Keep that rows of this call enter together: a processor has counted the call, and must not see another."""
        self._proofs[self._key(call, split)] = None

    def select(self, arguments: Any, rule: Rule, wanted: Sequence[int], rows: int) -> Any:
        """Arguments of a call, positional or named, for some of its rows."""
        index = torch.tensor(wanted)
        whole = rule or frozenset()
        if not isinstance(arguments, dict):
            return tuple(
                value if f"argument {i + 1}" in whole else slice_rows(value, index, rows)
                for i, value in enumerate(arguments)
            )
        some = {}
        for name, value in arguments.items():
            if name in self.spec.repeated:
                some[name] = slice_repeated(value, wanted, rows)
            else:
                some[name] = value if name in whole else slice_rows(value, index, rows)
        return some

    def run_rows(self, call: NetworkCall, rule: Rule, wanted: Sequence[int]) -> Any:
        """What the network returns for some of the rows of a call."""
        args, kwargs = (self.select(a, rule, wanted, call.rows) for a in (call.args, call.kwargs))
        return call.run(*args, **kwargs)

    def _undecided(self, call: NetworkCall) -> frozenset[str]:
        """Containers with tensors that have as many entries as there are rows, of which nothing is declared."""
        known = self.spec.shared | self.spec.repeated | self.spec.nested
        return frozenset(n for n, v in call.named.items() if n not in known and has_nested_rows(v, call.rows))

    def _forbidden(self, call: NetworkCall) -> str:
        """Why rows may not even be compared: what keeps state must not be used twice."""
        if stateful := call.stateful:
            return f"{type(call.module).__name__} is given objects that may keep state ({', '.join(stateful)})"
        if self.undeclared.replaced and not self.verify:
            return f"the forward of {', '.join(self.undeclared.replaced[:3])} was replaced, and may keep state"
        return ""

    @property
    def _proofs(self) -> dict[Key, Rule]:
        """Those that hold here: an undeclared processor may be set otherwise in the pipeline's next call."""
        return self.own_proofs if self.undeclared.parts else self.shared_proofs

    def _key(self, call: NetworkCall, split: Split) -> Key:
        """The form of a call: what a comparison shows holds for calls of the same form alone."""
        form = tuple((name, outline(value)) for name, value in call.named.items())
        return self.undeclared, self.watch.changes, id(call.module), split, repr(form)

    def _compare(
        self, call: NetworkCall, rule: Rule, whole: torch.Tensor, parts: Sequence[Sequence[int]]
    ) -> tuple[bool, int]:
        """Whether the parts, computed apart, are those of the whole batch, and how many rows have entered for that.

        If the network raises at a part, they are not.
        """
        entered, tolerance = 0, _tolerance(whole)
        for part in parts:
            entered += len(part)
            try:
                alone = main_output(self.run_rows(call, rule, part))
            except Exception:  # whatever a network raises at a batch that it does not expect
                return False, entered
            if alone.shape != (len(part), *whole.shape[1:]):
                return False, entered
            if not all(gap <= tolerance for gap in _relative_gaps(alone, whole[list(part)])):
                return False, entered
        return True, entered

    def _describe_coupling(self, call: NetworkCall) -> str:
        because = f" ({', '.join(self.undeclared.parts[:3])})" if self.undeclared.parts else ""
        return (
            f"Rows of {type(call.module).__name__} are not independent{because}: computed in parts of the batch they "
            f"differ from the same rows of the whole batch"
        )

    def _list_unsliced(self, call: NetworkCall) -> list[str]:
        """Tensor arguments that a part of the batch is given whole."""
        return [
            f"{name} {tuple(value.shape)}"
            for name, value in call.named.items()
            if isinstance(value, torch.Tensor)
            and value.ndim > 0
            and name not in self.spec.repeated
            and (value.shape[0] != call.rows or name in self.spec.shared)
        ]


def _tolerance(output: torch.Tensor) -> float:
    """What rounding may change, relative to a row of the output."""
    if output.dtype in (torch.float16, torch.bfloat16):
        return HALF_TOLERANCE
    tf32 = output.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    return TF32_TOLERANCE if tf32 else TOLERANCE


def _relative_gaps(a: torch.Tensor, b: torch.Tensor) -> Iterator[float]:
    """Relative distance of each row; NaN counts as one that is too large."""
    for one, other in zip(a.detach().float(), b.detach().float(), strict=True):
        yield float((one - other).norm() / other.norm().clamp_min(1e-12))
