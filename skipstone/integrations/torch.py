"""Any torch denoiser as a backbone: one forward per moment, guidance branches as sites, calls counted by a hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import nn

from ..engine.contracts import ATTENTION, COND, UNCOND, PredictionType
from ..engine.requests import Estimate, Query
from ..errors import BackboneError
from ..numerics.parametrize import to_x0
from ..numerics.schedule import Schedule
from .cross_attention import AttentionRecorder
from .diffusers.batch_router import find_batch

ForwardFunction: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
CONTENT = "content"  # in a sample's condition: places of its prompt's own tokens, for the map of attention


def call_module(module: nn.Module, x: torch.Tensor, timesteps: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
    """`module(x, timesteps)`, or `module(x, timesteps, cond)` where there is a condition."""
    output: torch.Tensor = module(x, timesteps) if cond is None else module(x, timesteps, cond)
    return output


def call_diffusers_unet(
    module: nn.Module, x: torch.Tensor, timesteps: torch.Tensor, cond: torch.Tensor | None
) -> torch.Tensor:
    """Call a diffusers UNet with cross-attention."""
    output: torch.Tensor = module(x, timesteps, encoder_hidden_states=cond, return_dict=False)[0]
    return output


class CallCounter:
    """Counts the rows that enter denoisers, by a forward hook on each module itself.

    with CallCounter(unet) as counter:
        ...
    print(counter.rows / branches)  # calls

    Everything that reports calls reads them here, not from what a policy says it did.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules, self.rows, self.forwards = modules, 0, 0

    def __enter__(self) -> CallCounter:
        self._hooks = [m.register_forward_pre_hook(self._count, with_kwargs=True) for m in self.modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows += find_batch(module, args, kwargs).shape[0]
        self.forwards += 1


@dataclass(frozen=True, eq=False)
class ModuleBackbone:
    """A `torch.nn.Module` and what its output means, answering all queries of a moment in one forward.

    A sample is a tensor without batch axis. Its `Problem.cond` is a mapping from branch to that branch's
    condition, e.g. `{"cond": prompt_states, "uncond": empty_states}`; None where nothing is conditioned.
    With `guidance` other than 1 a full call has the two branches "cond" and "uncond", both of them sites:
    a branch whose output is given does not enter the network. A query that wants `ATTENTION` is given the share of
    each cell's attention that goes to the tokens at the places `cond["content"]`, in the branch "cond".

    Args:
        module: The denoiser.
        schedule: It was trained on.
        prediction: What it puts out: "eps", "v", "x0" or "flow".
        guidance: Weight w of uncond + w (cond - uncond). 1 evaluates the conditional branch alone.
        forward: How the module is called with (batch, timesteps, conditions).
        full_branches: Rows of a call that costs are counted in, >= 1: of a student those of its teacher's; 0 is the
            branches of this guidance.
        network: Folder of the student whose weights the module has; "" of a model itself.

    Raises:
        BackboneError: a query gives an output for a site that is none.
    """

    module: nn.Module
    schedule: Schedule
    prediction: PredictionType = "eps"
    guidance: float = 1.0
    forward: ForwardFunction = call_module
    full_branches: int = 0
    network: str = ""

    @property
    def sites(self) -> tuple[str, ...]:
        """The guidance branches, or none where there is only one."""
        return (COND, UNCOND) if self.guidance != 1.0 else ()

    @property
    def branches(self) -> int:
        """Rows that a full call of one sample puts into the network; of a student, into its teacher's."""
        return self.full_branches or len(self._branches)

    @property
    def rows(self) -> int:
        """Rows of a call under this guidance."""
        return len(self._branches)

    @property
    def _branches(self) -> tuple[str, ...]:
        return self.sites or (COND,)

    @torch.inference_mode()
    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The guided estimate of each query; branches that are not given are computed together."""
        rows: list[tuple[int, str]] = []
        for i, query in enumerate(queries):
            if strange := query.known_outputs.keys() - set(self.sites):
                raise BackboneError(
                    f"Sites of this model: {', '.join(self.sites) or 'none'}; given: {sorted(strange)}."
                )
            rows += [(i, branch) for branch in self._branches if branch not in query.known_outputs]
        attention_rows = [
            k for k, (i, branch) in enumerate(rows) if branch == COND and ATTENTION in queries[i].wanted_sites
        ]
        if not attention_rows:
            computed = dict(zip(rows, self._outputs(queries, rows), strict=True))
            return [self._estimate(i, query, computed) for i, query in enumerate(queries)]
        height, width = queries[rows[attention_rows[0]][0]].x.shape[-2:]
        with AttentionRecorder(self.module, attention_rows, (height, width)) as seen:
            computed = dict(zip(rows, self._outputs(queries, rows), strict=True))
        maps = {
            rows[k][0]: _prompt_share(queries[rows[k][0]], own)
            for k, own in zip(attention_rows, seen.maps(), strict=True)
        }
        return [self._estimate(i, query, computed, maps.get(i)) for i, query in enumerate(queries)]

    def _outputs(self, queries: Sequence[Query], rows: Sequence[tuple[int, str]]) -> Sequence[torch.Tensor]:
        if not rows:
            return ()
        x = torch.stack([queries[i].x for i, _ in rows])
        times = [self.schedule.timestep(queries[i].t) for i, _ in rows]
        conditions = [_condition(queries[i].cond, branch) for i, branch in rows]
        known = [c for c in conditions if c is not None]
        if 0 < len(known) < len(conditions):
            raise BackboneError("Some samples of the batch have a condition and some have none.")
        timesteps = torch.tensor(times, dtype=torch.float32, device=x.device)
        outputs = self.forward(self.module, x, timesteps, torch.stack(known) if known else None)
        if outputs.shape != x.shape:
            raise BackboneError(
                f"{type(self.module).__name__} answered {tuple(outputs.shape)} to a batch of {tuple(x.shape)}."
            )
        return outputs.unbind()

    def _estimate(
        self, i: int, query: Query, computed: Mapping[tuple[int, str], torch.Tensor], seen: torch.Tensor | None = None
    ) -> Estimate:
        fresh = {branch: computed[i, branch] for branch in self._branches if (i, branch) in computed}
        branch_outputs = {**query.known_outputs, **fresh}
        output = branch_outputs[COND]
        if self.sites:
            output = branch_outputs[UNCOND] + self.guidance * (branch_outputs[COND] - branch_outputs[UNCOND])
        x0 = to_x0(self.prediction, output, query.x, self.schedule.alpha(query.t), self.schedule.sigma(query.t))
        wanted = {branch: value for branch, value in fresh.items() if branch in query.wanted_sites}
        wanted |= {} if seen is None else {ATTENTION: seen}
        return Estimate(x0, len(fresh) / self.branches, output, self.prediction, wanted)


def _condition(cond: Any, branch: str) -> torch.Tensor | None:
    if cond is None:
        return None
    if not isinstance(cond, Mapping) or branch not in cond:
        raise BackboneError(
            f"Expected the condition of a sample as a mapping with {branch!r}, got {type(cond).__name__}."
        )
    value: torch.Tensor = cond[branch]
    return value


def _prompt_share(query: Query, maps: torch.Tensor) -> torch.Tensor:
    """Share (height, width) of attention that goes to the prompt's own words."""
    if not isinstance(query.cond, Mapping) or CONTENT not in query.cond:
        raise BackboneError(
            f"A map of attention was asked for: expected the places of the prompt's own tokens as cond[{CONTENT!r}], "
            f"got none. `skipstone.integrations.cross_attention.content_tokens(tokenizer, ids)` finds them."
        )
    return maps[list(query.cond[CONTENT])].sum(0)
