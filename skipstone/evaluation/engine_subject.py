"""A model in the engine's own loop, as a comparison's subject."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import registry
from ..engine.contracts import Policy, Run
from ..engine.drivers import denoise_many
from ..engine.requests import Problem, Result
from ..errors import BackboneError, PromptError
from ..integrations.identity import identity
from ..integrations.students import student_facts
from ..integrations.torch import CallCounter
from ..policies.certified import Certified
from .columns import Column, Sampler
from .models import EmbeddedModel, ModelPackage, find_model_package, load_embedded
from .student_models import paired_model, student_model
from .subject import GeneratedSample, SampleProgressCallback, SampleRequest

# The best fixed sampler on Pebble among those tried.
DEFAULT_SAMPLER = Sampler(registry.parse("solver", "unipc"), registry.parse("grid", "trailing"), 50)


@dataclass(frozen=True)
class EngineSubject:
    """A model of a package, such as Pebble, denoised by the engine.

    Args:
        model: Its name or folder.
        name: What tables call it.
        guidance_override: Weight of guidance; None is the model's own.
    """

    model: str
    name: str
    guidance_override: float | None = None
    default_sampler: Sampler = DEFAULT_SAMPLER
    policy: str = "balanced"
    is_video: bool = False

    @classmethod
    def from_loaded(cls, model: EmbeddedModel) -> EngineSubject:
        """Return the subject of a model that is already loaded."""
        engine = cls(model.name, model.name, model.guidance)
        vars(engine)["embedded"] = model  # where `cached_property` looks
        return engine

    @cached_property
    def embedded(self) -> EmbeddedModel:
        """The model itself, loaded when it is first asked for."""
        return load_embedded(self.model, self.guidance)

    @cached_property
    def _students(self) -> dict[str, EmbeddedModel]:
        """Folder -> the student that was loaded from it."""
        return {}

    @cached_property
    def _pairs(self) -> dict[str, EmbeddedModel]:
        """Folder -> the model with that student beside it."""
        return {}

    def model_of(self, policy: Policy) -> EmbeddedModel:
        """The model, the student whose network a policy runs, or the model with the student beside it: ModelError."""
        if policy.student:
            return self.paired_with(policy.student)
        return self.student_of(policy.network) if policy.network else self.embedded

    def student_of(self, folder: str) -> EmbeddedModel:
        """The student in a folder, loaded once. Raises ModelError."""
        if folder not in self._students:
            self._students[folder] = student_model(self.embedded, folder)
        return self._students[folder]

    def paired_with(self, folder: str) -> EmbeddedModel:
        """The model with the student in a folder beside it. Raises ModelError."""
        if folder not in self._pairs:
            self._pairs[folder] = paired_model(self.embedded, folder, self.student_of(folder))
        return self._pairs[folder]

    @cached_property
    def _package(self) -> ModelPackage:
        package = find_model_package(self.model)
        assert package is not None, self.model
        return package

    @property
    def guidance(self) -> float:
        """Weight of guidance."""
        return self._package.guidance if self.guidance_override is None else self.guidance_override

    @property
    def settings(self) -> Mapping[str, Any]:
        """None: the engine has no other arguments."""
        return {}

    @property
    def judge(self) -> Callable[[Any, str], float] | None:
        """The judge of the model that ships."""
        return self.embedded.judge

    @property
    def folder(self) -> Path:
        """Folder of the model's weights."""
        return self._package.find(self.model)

    @property
    def denoisers(self) -> Sequence[Any]:
        """The model's denoisers: its one network."""
        return (self.embedded.unet,)

    def check(self, prompts: Sequence[str]) -> None:
        """Raise PromptError where there is no prompt or an empty one."""
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise PromptError('The prompt is empty. Say what to draw: "a red apple on a blue background".')

    def resolve_column(self, column: Column) -> Column:
        """The column with a solver and a grid in place of `own`. Raises SpecError of a peer."""
        _ = column.effective_policy
        return replace(column, solver=column.solver or DEFAULT_SAMPLER.solver, grid=column.grid or DEFAULT_SAMPLER.grid)

    def load(self, columns: Sequence[Column]) -> None:
        """Load the model; it runs every column but those that were calibrated on something else: CertificateError."""
        _ = self.embedded
        for column in columns:
            self.check_policy(column.effective_policy)
            _ = self.model_of(column.effective_policy)
            if isinstance(column.policy, Certified):
                known = column.policy.certificate.identity  # without the student in files of before
                student = student_facts(column.policy) if "student" in known else {}
                column.policy.check({**identity(self.embedded), **student}, self.name)
                column.policy.check_sampler(self.resolve_column(column).way, self.name)

    def check_policy(self, policy: Policy) -> None:
        """Raise SpecError for a policy that the model cannot run."""

    def warm_up(self, items: Sequence[SampleRequest], column: Column) -> None:
        """One full batch, so that the first column does not pay for what a first call allocates."""
        self.draw(items, replace(column, policy=None, solver=registry.parse("solver", "ddim"), steps=1))

    def prepare(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Do nothing: peers do not run in the engine."""

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
    ) -> tuple[list[GeneratedSample], float]:
        """The samples in one batch, and its seconds."""
        column = self.resolve_column(column)
        assert column.solver is not None
        model = self.model_of(column.effective_policy)
        problems = [model.problem(item.prompt, item.seed, column.steps, column.grid) for item in items]
        results, seconds = denoise_counted(model, problems, column, watch and _share_callback(watch))
        full = float(column.steps * column.solver.stages)
        branches = model.backbone.branches
        return [_make_sample(result, full, branches) for result in results], seconds

    def draw_each(self, items: Sequence[SampleRequest], columns: Sequence[Column]) -> list[GeneratedSample]:
        """A sample under each of these columns, of one solver and different policies, in one batch."""
        columns = [self.resolve_column(column) for column in columns]
        policies = [column.effective_policy for column in columns]
        beside = {policy.student: policy for policy in policies if policy.student}
        if len(beside) > 1 or any(policy.network for policy in policies):
            return [self.draw([item], column)[0][0] for item, column in zip(items, columns, strict=True)]
        model = self.model_of(*beside.values()) if beside else self.embedded
        problems = [model.problem(i.prompt, i.seed, c.steps, c.grid) for i, c in zip(items, columns, strict=True)]
        results, _ = denoise_counted(model, problems, columns[0], policies=policies)
        branches = model.backbone.branches
        full = [float(c.steps * (c.solver.stages if c.solver else 1)) for c in columns]
        return [_make_sample(result, calls, branches) for result, calls in zip(results, full, strict=True)]

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        """Return the decoded latents; NaN becomes black."""
        import numpy as np

        return [np.nan_to_num(pixels) for pixels in self.embedded.decode([m.x for m in generated])]


def _make_sample(result: Result, full_calls: float, branches: int) -> GeneratedSample:
    import numpy as np

    return GeneratedSample(
        result.x, result.run, result.run.cost, full_calls, result.status, np.asarray(result.x), branches
    )


def count_rows(model: EmbeddedModel) -> AbstractContextManager[Any]:
    """Count the `rows` that enter a model's denoiser, by a hook on it; a denoiser that is no torch module has its own.

    Args:
        model: Loaded.
    """
    if hasattr(model.unet, "count"):
        counter: AbstractContextManager[Any] = model.unet.count()
        return counter
    return CallCounter(*getattr(model.backbone, "modules", (model.unet,)))


def _share_callback(watch: SampleProgressCallback) -> Callable[[int, Run], None]:
    return lambda sample, run: watch(sample, (run.grid[0] - run.next_start) / (run.grid[0] - run.t_end))


def denoise_counted(
    model: EmbeddedModel,
    problems: Sequence[Problem],
    column: Column,
    watch: Callable[[int, Run], None] | None = None,
    policies: Sequence[Policy] = (),
) -> tuple[list[Result], float]:
    """Results and seconds of one batch, with the calls that its runs claim held against the hook's count.

    `policies` are one for each problem, in place of the column's.
    """
    solver = column.solver or registry.parse("solver", "unipc")
    with count_rows(model) as counter:
        began = time.perf_counter()
        results = denoise_many(model.backbone, problems, solver, policies or column.effective_policy, watch)
        took = time.perf_counter() - began
    if hasattr(model, "check_results"):
        model.check_results(problems, solver, results)
    verify_calls(column, sum(r.run.cost for r in results), counter.rows / model.backbone.branches)
    return results, took


def verify_calls(column: Column, claimed: float, counted: float) -> None:
    """Raise BackboneError where the calls that runs claim are not those that a hook has counted."""
    if abs(claimed - counted) > 1e-6:
        raise BackboneError(
            f"{column.spec}: the runs say that they cost {claimed:g} calls, but the hook on the denoiser counted "
            f"{counted:g}. Please report this."
        )
