"""`auto`: what a certificate over policies and samplers advises, and what it may change."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import ASKED, PROMPTS

import skipstone
from skipstone import registry
from skipstone.errors import GuestWarning, SpecError
from skipstone.evaluation.columns import parse_column
from skipstone.policies.certified import Certified


@pytest.fixture(scope="module")
def folder(pipe: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate in which a sampler with fewer steps is fastest."""
    settings = ("error_control(tol=0.0)", "fixed @ unipc / trailing / 5")
    policy = skipstone.calibrate(
        pipe, PROMPTS, settings=settings, cache=cache, **{**ASKED, "target": "psnr >= 3 @ 60%"}
    )
    assert policy.point.label == "5 steps of unipc / trailing"
    folder: Path = policy.save_pretrained(tmp_path_factory.mktemp("auto") / "out")
    return folder


@pytest.mark.parametrize("spec", ["auto", "auto()", "auto(certificate='nowhere')"])
def test_without_a_certificate_it_says_how_to_make_one(spec: str, pipe: Any) -> None:
    for use in (registry.parse, lambda kind, spec: skipstone.adapt(pipe, spec)):
        with pytest.raises(SpecError, match="Make one: skipstone calibrate --samplers"):
            use("policy", spec)


def test_it_advises_and_changes_nothing_unless_it_may(folder: Path, pipe: Any) -> None:
    own = pipe.scheduler
    with pytest.warns(GuestWarning, match=r"5 steps of unipc / trailing serves you better.*allow_sampler=True"):
        adapted = skipstone.adapt(pipe, f"auto(certificate={str(folder)!r})")
    with adapted:
        pipe("a red cat", num_inference_steps=6, output_type="latent")
    assert adapted.last[0].calls == 6
    assert pipe.scheduler is own


def test_allowed_it_brings_scheduler_and_steps_for_the_time_of_a_call(folder: Path, pipe: Any) -> None:
    import diffusers
    import torch

    own = pipe.scheduler
    told: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 6}
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuestWarning)
        with skipstone.adapt(pipe, f"auto(certificate={str(folder)!r}, allow_sampler=True)") as adapted:
            made = pipe("a red cat", **told, generator=torch.Generator().manual_seed(0)).images
            positional = pipe(
                "a red cat", None, None, 6, output_type="latent", generator=torch.Generator().manual_seed(0)
            )
    assert adapted.last[0].calls == 5
    assert pipe.scheduler is own
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(
        own.config, solver_type="bh2", predict_x0=True, solver_order=2, timestep_spacing="trailing"
    )
    try:
        by_hand = pipe("a red cat", **{**told, "num_inference_steps": 5}, generator=torch.Generator().manual_seed(0))
    finally:
        pipe.scheduler = own
    assert torch.equal(made, by_hand.images)
    assert torch.equal(positional.images, made)


def test_as_a_column_it_is_the_sampler_itself(folder: Path) -> None:
    column = parse_column(f"auto(certificate={str(folder)!r}, allow_sampler=True)", None, None, 50)
    assert (column.spec, column.steps) == ("fixed @ unipc / trailing / 5", 5)


def test_a_policy_without_a_certificate_is_none(tmp_path: Path) -> None:
    skipstone.save_policy("third_order", tmp_path)
    with pytest.raises(SpecError, match="without a certificate"):
        registry.parse("policy", f"auto(certificate={str(tmp_path)!r})")
    with pytest.raises(SpecError, match=r"no argument 'certificat'\. Did you mean 'certificate'"):
        registry.parse("policy", "auto(certificat='x')")


def test_it_loads_as_the_same_policy(folder: Path) -> None:
    loaded = skipstone.load_policy(folder, allow_sampler=True)
    assert isinstance(loaded, Certified)
    assert loaded.point.fixed
