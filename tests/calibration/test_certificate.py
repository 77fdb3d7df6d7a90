"""What is handed on: it plans as the bare policy, survives the disk, and runs on nothing else than it was made for."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPTS
from hypothesis import given
from hypothesis import strategies as st

import skipstone
from skipstone import registry
from skipstone.calibration.target import Target
from skipstone.engine.contracts import Chain, Run
from skipstone.errors import CertificateError, GuestWarning, OutputError, SpecError
from skipstone.policies.certificate_files import read_saved_policy
from skipstone.policies.certified import CalibrationPoint, Certificate, Certified

CALL = {"num_inference_steps": 6}


def point(calls: float, accepted: bool, fixed: bool = False, steps: int = 20) -> CalibrationPoint:
    setting = "fixed" if fixed else f"interval(every={round(calls)})"
    scheduler = {"class": "DDIMScheduler", "num_train_timesteps": 1000}
    return CalibrationPoint(
        setting, f"ddim / trailing / {steps}", steps, calls, 0.9, 0.8, 1.0, 50, 5, 0.01, accepted, fixed, scheduler
    )


def certificate(*points: CalibrationPoint) -> Certificate:
    return Certificate(
        "psnr >= 30 @ 90%",
        "at least 90 % of prompts have psnr >= 30",
        0.9,
        "method",
        "fixed @ ddim / trailing / 50",
        "fixed @ ddim / trailing / 50",
        points,
        50.0,
        "toy",
        {"pipeline": "Pebble", "weights": "abc"},
        {"num_inference_steps": 50, "guidance_scale": 3.0},
        {"source": "a list", "count": 60, "search": 10, "test": 50},
        0,
        {"search": 100.0},
        {"skipstone": "0"},
        "today",
    )


# -- Which setting is used --------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(point, st.floats(1, 49).map(lambda x: round(x, 2)), st.booleans(), st.booleans()),
        min_size=1,
        max_size=8,
    ).filter(lambda points: any(p.accepted for p in points)),
    st.booleans(),
)
def test_the_fastest_that_is_promised_and_allowed_is_used(points: list[CalibrationPoint], allowed: bool) -> None:
    found, advice = certificate(*points).choose_point(allowed)
    promised = [p for p in points if p.accepted]
    usable = [p for p in promised if allowed or not p.fixed]
    assert found.calls == min((p.calls for p in usable), default=50.0)
    assert bool(advice) == (min(p.calls for p in promised) < found.calls)
    assert not found.fixed or allowed


def test_where_only_a_sampler_keeps_the_promise_nothing_is_changed_and_it_is_advised() -> None:
    made = certificate(point(12.0, True, fixed=True, steps=12), point(8.0, False))
    policy, advice = Certified.from_certificate(made, allow_sampler=False)
    assert registry.spell(policy) == "fixed"
    assert "12 steps of ddim / trailing serves you better" in advice
    assert "allow_sampler=True" in advice
    allowed, silent = Certified.from_certificate(made, allow_sampler=True)
    assert (allowed.point.steps, silent) == (12, "")
    assert allowed.replacement_scheduler["class"] == "DDIMScheduler"
    assert policy.replacement_scheduler == {}
    policy.check({"pipeline": "another"}, "it")  # what changes nothing may run on anything
    policy.check_sampler("own / 7", "it")
    assert policy.call_differences({"num_inference_steps": 7}) == []
    with pytest.raises(CertificateError, match="pipeline is Pebble in the certificate and another here"):
        allowed.check({"pipeline": "another"}, "it")


# -- A policy like any other ------------------------------------------------------------------------


def test_it_is_the_bare_policy_in_all_that_the_engine_asks() -> None:
    policy, _ = Certified.from_certificate(certificate(point(20.0, True)))
    bare = registry.parse("policy", "interval(every=20)")
    assert registry.spell(policy) == registry.spell(bare)
    assert (policy.needs, policy.scope, policy.sites, policy.solver) == (
        bare.needs,
        bare.scope,
        bare.sites,
        bare.solver,
    )
    run = Run(1.0, 0.0, (1.0, 0.5, 0.0), (-5.0, 0.0, 5.0))
    assert policy.consult([run], [run.proposal()]) == bare.consult([run], [run.proposal()])


def test_in_a_chain_it_promises_nothing() -> None:
    policy, _ = Certified.from_certificate(certificate(point(20.0, True)))
    chained = policy | registry.parse("policy", "budget(calls=9)")
    assert type(chained) is Chain
    assert registry.spell(chained) == "interval(every=20) | budget(calls=9)"


# -- On disk ----------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(policy: Certified, saved: Path, pipe: Any) -> None:
    assert {p.name for p in saved.iterdir()} == {"policy.json", "README.md", "front.png", "prompts.jsonl"}
    loaded = skipstone.load_policy(saved, pipe)
    assert isinstance(loaded, Certified)
    assert loaded == policy
    assert loaded.certificate == read_saved_policy(str(saved / "policy.json")).certificate
    assert loaded.certificate.points == policy.certificate.points
    assert loaded.files == policy.files
    again = loaded.save_pretrained(saved.parent / "again")
    assert (again / "policy.json").read_bytes() == (saved / "policy.json").read_bytes()


def test_the_card_says_what_is_promised_to_whom_and_what_is_not(policy: Certified, saved: Path) -> None:
    card = (saved / "README.md").read_text()
    for said in ("at least 60 % of prompts have psnr >= 20", "confidence 70%", "What is not promised", "exchangeable"):
        assert said in card, said
    assert all(p.label in card for p in policy.certificate.points)
    lines = [json.loads(line) for line in (saved / "prompts.jsonl").read_text().splitlines()]
    assert sorted(line["prompt"] for line in lines) == sorted(PROMPTS)
    assert (saved / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_certificate_is_refused(saved: Path) -> None:
    document = json.loads((saved / "policy.json").read_text())
    del document["certificate"]["points"]
    (saved / "policy.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match="damaged"):
        skipstone.load_policy(saved)


def test_a_folder_that_cannot_be_written_is_an_error(policy: Certified, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder"):
        policy.save_pretrained(tmp_path / "file")


# -- What it was made for ---------------------------------------------------------------------------


def test_a_pipeline_with_other_weights_is_refused(policy: Certified, saved: Path, tiny_model: Path) -> None:
    import diffusers
    import torch

    other = diffusers.DiffusionPipeline.from_pretrained(tiny_model)
    with torch.no_grad():
        next(iter(other.unet.parameters())).mul_(1.01)
    for load in (lambda: skipstone.load_policy(saved, other), lambda: skipstone.adapt(other, str(saved))):
        with pytest.raises(
            CertificateError, match=r"the weights differ \(sha256 [0-9a-f]{12}\.\.\. in the certificate, "
        ):
            load()
    forced = skipstone.load_policy(saved, other, force=True)
    with skipstone.adapt(other, forced):
        pass
    with skipstone.adapt(other, registry.spell(policy)):
        pass


def test_another_scheduler_is_refused_and_another_call_is_warned_of(policy: Certified, pipe: Any) -> None:
    import diffusers

    own = pipe.scheduler
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    try:
        with pytest.raises(CertificateError, match=r"scheduler.class is DDIMScheduler in the certificate"):
            skipstone.adapt(pipe, policy)
    finally:
        pipe.scheduler = own
    with skipstone.adapt(pipe, policy):
        with pytest.warns(GuestWarning, match="num_inference_steps is 6 in the certificate and 7 here"):
            pipe("a red cat", num_inference_steps=7, output_type="latent")
        with pytest.warns(GuestWarning, match="guidance_scale"):
            pipe("a red cat", **CALL, guidance_scale=2.0, output_type="latent")
        with warnings.catch_warnings():
            warnings.simplefilter("error", GuestWarning)
            pipe("a red cat", **CALL, output_type="latent")
    with skipstone.adapt(pipe, replace(policy, forced=True)), warnings.catch_warnings():
        warnings.simplefilter("error", GuestWarning)
        pipe("a red cat", num_inference_steps=7, output_type="latent")


def test_the_engine_refuses_what_was_calibrated_in_a_pipeline(policy: Certified, tiny_model: Path) -> None:
    from skipstone.calibration.subjects import make_subject
    from skipstone.evaluation.columns import parse_column

    engine = make_subject(skipstone.Pebble.load(tiny_model))
    column = replace(parse_column("fixed", *engine.default_sampler), policy=policy)
    with pytest.raises(
        CertificateError, match="pipeline is StableDiffusionPipeline in the certificate and Pebble here"
    ):
        engine.load([column])


def test_the_words_of_the_target_are_those_of_the_certificate(policy: Certified) -> None:
    assert Target.parse(policy.certificate.target).words == policy.certificate.promise
