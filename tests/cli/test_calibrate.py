"""`skipstone calibrate` and `skipstone audit` as a shell sees them, on a tiny model in the engine's loop."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import diffusers
import pytest
from outcome import Outcome, Shell

import skipstone
from skipstone import cli
from skipstone.errors import CertificateError
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.folder_lock import lock_folder

PROMPTS = "\n".join(
    f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "bus", "car")
)
ASKED = ("--target", "psnr >= 20 @ 60%", "--confidence", "0.7", "--steps", "6")
CHOICE = ("-p", "stride(tol=0.0)", "-p", "stride(tol=0.01)", "-p", "stride(tol=9.0)")


def command(patch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    """What a command leaves behind; the fixture `shell` is for single tests only."""
    patch.setattr(sys, "argv", ["skipstone", *arguments])
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main()
    return Outcome(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(tiny_pebble: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """All of the command but its --out."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text(PROMPTS + "\na red cat\n")
    where = ("--model", str(tiny_pebble), "--prompts", str(prompts), "--cache", str(cache))
    return ("calibrate", *where, *ASKED, *CHOICE)


@pytest.fixture(scope="module")
def story(base: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Outcome]:
    """A calibration that was stopped, and the same command again."""
    folder = tmp_path_factory.mktemp("story") / "mine"
    draw, left = EngineSubject.draw, [5]

    def cut(self: EngineSubject, items: object, column: object, watch: object = None) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(self, items, column, watch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineSubject, "draw", cut)
        stopped = command(patch, *base, "--out", str(folder))
        assert not folder.exists()
        patch.setattr(EngineSubject, "draw", draw)
        return folder, stopped, command(patch, *base, "--out", str(folder))


@pytest.fixture
def mine(story: tuple[Path, Outcome, Outcome], tmp_path: Path) -> Path:
    """A copy of the policy that the story ends with."""
    return Path(shutil.copytree(story[0], tmp_path / "copy"))


def test_a_calibration_from_one_command_and_from_where_it_was_cut_off(story: tuple[Path, Outcome, Outcome]) -> None:
    folder, stopped, done = story
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    assert done.code == 0, done.err
    assert "1 of the prompts were there before; each is counted once." in done.err
    assert "Asked for: at least 60 % of prompts have psnr >= 20, with confidence 70%." in done.err
    assert "The test needs at least 3 prompts" in done.err
    assert " calls, " in stopped.err
    assert "at least 60 % of prompts have psnr >= 20, with confidence 70%." in done.out
    assert "of a single picture nothing is" in done.out
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "front.png", "policy.json", "prompts.jsonl"]
    made = json.loads((folder / "policy.json").read_text())["certificate"]
    assert made["prompts"]["count"] == 12
    assert made["full_calls"] == 6


def test_the_policy_generates_and_its_steps_are_held_against_the_certificate(
    shell: Shell, mine: Path, tiny_pebble: Path
) -> None:
    told = ("generate", "a red cat", "--model", str(tiny_pebble), "--policy", str(mine), "--force", "--json")
    done = shell(*told, "--steps", "6")
    assert done.code == 0, done.err
    chosen = json.loads((mine / "policy.json").read_text())["policy"]
    assert json.loads(done.out)["spec"].startswith(chosen)
    other = shell(*told, "--steps", "5")
    assert other.code == 2
    assert "was made for adams / trailing / 6 (solver / grid / steps)" in other.err
    guided = shell(*told, "--steps", "6", "--guidance", "2")
    assert guided.code == 2
    assert "guidance is 3.0 in the certificate and 2.0 here" in guided.err
    auto = shell(*told[:4], "--policy", f"auto(certificate={str(mine)!r})", "--steps", "6", "--force")
    assert auto.code == 0, auto.err


def test_a_certificate_brings_its_own_sampler(shell: Shell, mine: Path, tiny_pebble: Path) -> None:
    told = ("generate", "a red cat", "--model", str(tiny_pebble), "--policy", str(mine), "--force", "--json")
    done = shell(*told)
    assert done.code == 0, done.err
    assert json.loads(done.out)["spec"].endswith(" @ adams / trailing / 6")  # 50 steps are the model's default
    for typed in (("--steps", "50"), ("--solver", "unipc"), ("--grid", "uniform")):
        refused = shell(*told, *typed)
        assert refused.code == 2
        assert "was made for adams / trailing / 6 (solver / grid / steps), and this command would run" in refused.err
        assert "Leave --solver, --grid and --steps out" in refused.err


def test_the_command_in_the_error_makes_a_certificate_that_python_loads(
    shell: Shell, base: tuple[str, ...], mine: Path, tiny_pebble: Path, tmp_path: Path
) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_pebble)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(CertificateError, match="made in the engine's loop") as refused:
        skipstone.load_policy(mine, pipe)
    found = re.search(r"skipstone (calibrate .* --out) DIR", str(refused.value))
    assert found is not None
    typed = shlex.split(found[1].replace("FILE", base[4]))
    settings = ("-p", "interval(every=1)", "-p", "interval(every=3)")
    done = shell(*typed, str(tmp_path / "made"), *settings, "--confidence", "0.7", "--steps", "6")
    assert done.code == 0, done.err
    with skipstone.adapt(pipe, tmp_path / "made", uncovered="error") as adapted:
        pipe("a red cat", num_inference_steps=6, guidance_scale=3.0, output_type="latent")
    assert adapted.last.uncovered == ()


def test_a_certificate_of_python_is_used_and_audited_on_the_command_line(
    shell: Shell, base: tuple[str, ...], tiny_pebble: Path, tmp_path: Path, cache: Path
) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_pebble)
    pipe.set_progress_bar_config(disable=True)
    options = skipstone.CalibrationOptions(steps=6, guidance=2.0, arguments={"guidance_rescale": 0.5})
    policy = skipstone.calibrate(
        pipe, base[4], ASKED[1], confidence=0.7, settings=["interval(every=1)"], cache=cache, options=options
    )
    policy.save_pretrained(tmp_path / "python")
    told = ("generate", "a red cat", "--model", str(tiny_pebble), "--policy", "python", "--json", "--force")
    refused = shell(*told)
    assert refused.code == 2
    assert "made in a diffusers pipeline. Run it there: --as-guest" in refused.err
    done = shell(*told, "--as-guest", "--guidance", "2", "--set", "guidance_rescale=0.5")
    assert done.code == 0, done.err
    assert json.loads(done.out)["spec"].endswith(" @ own / 6")
    assert "not cover" not in done.err
    audited = skipstone.audit(tmp_path / "python", pipe, samples=1, cache=cache)
    assert audited.new == 1
    refused = shell("audit", "python", "--model", str(tiny_pebble), "--cache", str(cache))
    assert refused.code == 2
    assert "guidance_rescale is 0.5 in the certificate and 0.0 here" in refused.err


def test_an_audit_is_quiet_and_goes_on(shell: Shell, mine: Path, cache: Path) -> None:
    first = shell("audit", str(mine), "--samples", "2", "--cache", str(cache))
    assert first.code == 0, first.err
    assert "2 samples were drawn now, 2 in all" in first.out
    assert "No alarm" in first.out
    assert "3 in all" in shell("audit", str(mine), "--samples", "1", "--cache", str(cache)).out


def test_two_audits_at_once_would_count_the_same_samples(shell: Shell, mine: Path, cache: Path) -> None:
    with lock_folder(mine):
        refused = shell("audit", str(mine), "--samples", "1", "--cache", str(cache))
    assert refused.code == 2
    assert "Another command is writing to" in refused.err


def test_the_alarm_is_exit_code_4(shell: Shell, mine: Path, cache: Path) -> None:
    line = {"prompt": "a", "seed": 0, "value": 1.0, "calls": 1.0, "false_alarm": 0.05, "date": "today"}
    (mine / "audit.jsonl").write_text(20 * (json.dumps(line) + "\n"))
    found = shell("audit", str(mine), "--samples", "1", "--cache", str(cache))
    assert found.code == 4
    assert "ALARM" in found.out


def test_where_nothing_keeps_the_promise_the_code_is_3_and_nothing_is_saved(
    shell: Shell, base: tuple[str, ...], tmp_path: Path
) -> None:
    refused = shell(
        *base[:-6], "-p", "stride(tol=9.0)", "--target", "psnr >= 95 @ 60%", "--out", str(tmp_path / "none")
    )
    assert refused.code == 3, refused.err
    assert "The nearest is stride(tol=9.0)" in refused.err
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_there_is_not_overwritten_unasked(shell: Shell, base: tuple[str, ...], mine: Path) -> None:
    refused = shell(*base, "--out", str(mine))
    assert refused.code == 2
    assert "--force" in refused.err
    assert shell(*base, "--out", str(mine), "--force").code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--target", "sharpness >= 3 @ 90%"), "no metric is called 'sharpness'"),
        (("--target", "ssim >= 1.5 @ 90%"), "expected a level in the range of ssim"),
        (("--target", "psnr >= 30 @ 0.9"), "@ 90%"),
        (("--target", "psnr >= 30 @ 99%"), "needs at least 120 prompts in the final test"),
        (("--confidence", "high"), "expected a number such as 0.9, or none"),
        (("--confidence", "none"), "promised with a confidence"),
        (("--prompts", "nowhere.txt"), "No prompt set or file"),
        (("--model", "nowhere"), "no folder nowhere"),
        (("--reference", "nowhere"), "No policy is called 'nowhere'"),
        (("-p", "strid"), "Did you mean 'stride'"),
        (("-p", "balanced", "-p", "adaptive_grid"), "'balanced' and 'adaptive_grid' are the same"),
    ],
)
def test_bad_input_is_one_sentence(
    shell: Shell, base: tuple[str, ...], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    refused = shell(*base, "--out", str(tmp_path / "none"), *more)
    assert refused.code == 2
    assert said in " ".join(refused.err.split())
    assert "Traceback" not in refused.err
    assert not (tmp_path / "none").exists()


def test_auto_without_a_certificate_and_an_audit_of_none(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    refused = shell("generate", "a red cat", "--model", str(tiny_pebble), "--policy", "auto")
    assert refused.code == 2
    assert "Make one: skipstone calibrate --samplers" in refused.err
    refused = shell("audit", str(tmp_path))
    assert refused.code == 2
    assert "Expected a folder with a policy.json" in refused.err


def test_a_preset_falls_back_before_it_is_calibrated(
    shell: Shell, tiny_model: Path, tmp_path: Path, cache: Path
) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "noisy")
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    where = ("--model", "noisy", "--prompts", "prompts.txt", "--cache", str(cache), "--out", "mine")
    done = shell("calibrate", *where, *ASKED, "-p", "fast", "-p", "balanced", "-p", "stride")
    assert done.code == 0, done.err
    assert "fast would take the pipeline's loop over, and cannot here: its scheduler adds noise" in done.err
    assert "stride @ adams / own / 6 is left out: The pipeline cannot be taken over" in done.err
    points = json.loads((tmp_path / "mine" / "policy.json").read_text())["certificate"]["points"]
    assert {p["setting"] for p in points} <= {"error_control", "error_control(tol=0.01)"}
