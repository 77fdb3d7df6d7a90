"""`skipstone distill`: a student of a model, which needs a few steps."""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import progress_bar
from skipstone.cli.tracking import tracked
from skipstone.errors import OutputError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from skipstone.evaluation.compare import Comparison
    from skipstone.policies.student import StudentCard

    from ..students.quality import QualityCheck
    from ..students.settings import DistillSettings
    from ..students.teacher import Teacher

SHOWN_PROMPTS = 24  # withheld prompts that a student is shown on in the end
SHEET = "sheet.png"
CHECKED_PROMPTS = 48  # held-out prompts that a target is measured on
RIVALS = ("ddim", "dpmpp", "unipc")  # fixed samplers of the teacher with as many steps; the best one counts


@dataclass(frozen=True)
class StudentOptions:
    """The options of `skipstone distill` that say what is trained, and how long."""

    method: Annotated[str, typer.Option(help="consistency or progressive.")] = "consistency"
    steps: Annotated[int, options.number(least=1, most=64, help="Of the student.")] = 4
    minutes: Annotated[
        float | None,
        options.number(
            least=0.1, most=100_000, help="Of drawing and training; --train-steps without.", show_default=False
        ),
    ] = None
    train_steps: Annotated[int, options.number(least=1, most=10_000_000, help="Training steps of all stages.")] = 1000
    first_steps: Annotated[
        int, options.number(least=0, most=1024, help="Of the first student of progressive; 0 is four times --steps.")
    ] = 0
    target: Annotated[
        str,
        typer.Option(
            help="What every stage of progressive must keep on --check, such as 'judge >= 0.9 @ 80%'; the last one "
            "that does is the student."
        ),
    ] = ""
    guidance: options.GuidanceOption = None
    guidance_range: Annotated[
        tuple[float, float] | None,
        options.number(
            least=1,
            most=100,
            help="Two numbers, such as 1 8: guidance of a student that takes it as an input; full weights of a U-Net.",
            show_default=False,
        ),
    ] = None
    rank: Annotated[int, options.number(least=0, most=1024, help="Of the LoRA; 0 trains all weights.")] = 32
    batch: Annotated[int, options.number(least=1, most=4096, help="Samples of a training step.")] = 64
    accumulate: Annotated[int, options.number(least=1, most=1024, help="Parts that a batch is computed in.")] = 1
    rate: Annotated[
        float, options.number(least=0, most=1, help="Peak learning rate; 0 is 1e-3 with a LoRA, 1e-4 without.")
    ] = 0.0
    pictures: Annotated[
        int,
        options.number(least=1, most=10_000_000, help="That the teacher draws to learn from; fewer if time is short."),
    ] = 2048
    picture_steps: Annotated[int, options.number(least=1, most=1000, help="Of each of them.")] = 16
    precision: Annotated[str, typer.Option(help="bf16, fp16 or no (float32).")] = "bf16"
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, a third more time.")] = False
    max_memory: Annotated[
        float,
        options.number(
            least=0,
            most=100_000,
            help="GiB that training may take, known before it starts at every size; 0 allows any.",
        ),
    ] = 0.0
    sizes: Annotated[
        str,
        typer.Option(
            help="Pixels, such as 512x512,768x512 (width x height); a training step has samples of one of them. The "
            "model's own size if not given.",
            metavar="WxH,...",
            show_default=False,
        ),
    ] = ""
    grow: Annotated[
        float, options.number(least=0, most=0.9, help="Share of the steps until the largest of --sizes joins.")
    ] = 0.0
    shift: Annotated[
        bool, typer.Option("--shift", help="Train more at high noise at larger --sizes, less at smaller ones.")
    ] = False
    seed: Annotated[int, options.number(least=0, most=2**31, help="Of the training.")] = 0

    def settings(self, guidance: float | None) -> DistillSettings:
        """The options as settings; `guidance` is the model's own. Raises SpecError."""
        from ..students.settings import DistillSettings

        chosen: Any = {
            name: getattr(self, name)
            for name in vars(self)
            if name not in ("minutes", "guidance", "guidance_range", "target")
        }
        chosen["sizes"] = tuple(self.sizes.split(",")) if self.sizes else ()
        own = 7.5 if guidance is None else guidance
        return DistillSettings(
            **chosen,
            minutes=self.minutes or 0.0,
            guidance=own if self.guidance is None else self.guidance,
            guidance_range=tuple(self.guidance_range or ()),
        )


@dataclass(frozen=True)
class PromptOptions:
    """The options that say what the teacher draws."""

    prompts: Annotated[
        str | None,
        typer.Option(
            help="What the teacher draws: a file, or a set. pebble-training for pebble.",
            metavar="FILE|SET",
            show_default=False,
        ),
    ] = None
    captioned: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures with captions (metadata.jsonl or .csv, or NAME.txt) to learn from in place of "
            "what the teacher draws.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None
    check: Annotated[
        str | None,
        typer.Option(
            help="Held-out prompts for --target. pebble-tuning for pebble.", metavar="FILE|SET", show_default=False
        ),
    ] = None
    prompt_format: options.FormatOption = None
    limit: options.LimitOption = 0

    def texts(self, model: str) -> list[str]:
        """The prompts. Raises PromptError, and SpecError where none are given and the model brings none."""
        from skipstone.evaluation.prompts import load_prompts

        source = self.prompts or _own_prompts(model, "-training")
        if source is None:
            raise SpecError("Expected --prompts FILE: a student learns from what its teacher draws.")
        found = load_prompts(source, limit=self.limit or None, prompt_format=self.prompt_format)
        return [prompt.text for prompt in found]

    def captions(self) -> list[str]:
        """The captions of --captioned. Raises SpecError, PromptError."""
        from ..students.captioned import read_captions

        assert self.captioned is not None
        if self.prompts is not None:
            raise SpecError("--captioned and --prompts: expected one of them; captions are the prompts.")
        return [caption for _, caption in read_captions(self.captioned)]

    def held_out(self, model: str) -> list[str]:
        """The prompts for --target. Raises SpecError where none are given and the model brings none."""
        from skipstone.evaluation.prompts import load_prompts

        source = self.check or _own_prompts(model, "-tuning")
        if source is None:
            raise SpecError("--target: expected --check FILE, prompts that it is held against.")
        return [prompt.text for prompt in load_prompts(source, limit=CHECKED_PROMPTS, prompt_format=self.prompt_format)]


def _own_prompts(model: str, ending: str) -> str | None:
    """The prompt set of a model's package whose name ends so."""
    from skipstone.evaluation.models import find_model_package

    package = find_model_package(model)
    return next((name for name in package.prompt_sets if name.endswith(ending)), None) if package else None


@dataclass(frozen=True)
class PlaceOptions:
    """The teacher, and the folder of its student."""

    model: options.ModelOption = "pebble"
    out: Annotated[Path, options.folder("Folder of checkpoints, log and student; what was begun there goes on.")] = (
        Path("student")
    )
    settings: options.SettingsOption = None
    device: options.DeviceOption = None
    dtype: Annotated[str, typer.Option(help="Of the teacher's weights.", metavar="float32|bfloat16")] = "float32"


@tracked
@grouped
def distill(student: StudentOptions, prompts: PromptOptions, place: PlaceOptions) -> None:
    """Train a student of a model that needs a few steps and no guidance.

    The teacher draws the prompts, which is all that the student learns from. By
    consistency distillation every point of a segment of the way learns to agree
    on the segment's end; by progressive distillation two steps become one, stage
    by stage. Guidance becomes part of the student, so that its step costs half a
    guided one.

    Writes a LoRA, or weights, in diffusers' own format, with scheduler, card and
    how to load it, a loss curve and a sheet of pictures; of progressive the
    students of the earlier stages too.
    Ctrl-C keeps the last checkpoint; the same command goes on.

    [bold]Examples[/bold]

      skipstone distill --model pebble --method consistency \\
        --steps 2 --minutes 10 --out mine
      skipstone compare "a cat" --model pebble \\
        -p "student(path='mine', steps=2)" -p balanced
      skipstone distill --method progressive --steps 1 \\
        --first-steps 8 --train-steps 4000 --out halved
      skipstone distill --model stabilityai/stable-diffusion-xl-base-1.0 \\
        --prompts captions.txt --steps 4 --batch 12 --checkpointing --out xl
      skipstone distill --model stabilityai/stable-diffusion-xl-base-1.0 \\
        --prompts captions.txt --sizes 1024,1152x896 --out sizes
    """
    from rich.console import Console

    from skipstone.evaluation.folder_lock import lock_folder
    from skipstone.policies.student import StudentCard

    console = Console(stderr=True)
    texts = prompts.captions() if prompts.captioned else prompts.texts(place.model)
    if place.out.exists() and not place.out.is_dir():
        raise OutputError(f"--out: expected a folder, got a file, {place.out}. Choose another --out.")
    with lock_folder(place.out):
        folder = _train(student, prompts, place, texts, console)
        card = StudentCard.read(folder)
        typer.echo(f"{folder}: a student of {card.steps} steps; README.md says how diffusers loads it")
        _show(place.model, folder, card, console)


def _train(
    student: StudentOptions, prompts: PromptOptions, place: PlaceOptions, texts: list[str], console: Console
) -> Path:
    """The folder of the student."""
    from ..students.course import MEMORY
    from ..students.distill import distill as run

    settings, teacher, quality = _prepare(student, prompts, place, texts, console)
    with progress_bar(console) as show:

        def on_progress(what: str, done: float, total: float) -> None:
            show(what, done, total)
            if what.startswith(MEMORY):
                console.print(what, markup=False, highlight=False, soft_wrap=True)

        return run(
            teacher, prompts.captioned or texts, settings.method, settings.steps,
            out=place.out, settings=settings, quality=quality, on_progress=on_progress,
        )  # fmt: skip


def _prepare(
    student: StudentOptions, prompts: PromptOptions, place: PlaceOptions, texts: list[str], console: Console
) -> tuple[DistillSettings, Teacher, QualityCheck | None]:
    """Settings, the teacher and what must be kept; warns of prompts that the model does not know."""
    from skipstone.calibration.target import Target
    from skipstone.evaluation.models import find_model_package

    from ..students.quality import QualityCheck
    from ..students.teacher import Teacher

    chosen = options.ModelOptions(
        place.model,
        place.settings,
        device=place.device,
        dtype=place.dtype,
        as_guest=find_model_package(place.model) is not None,
    )
    subject: Any = chosen.subject()
    settings = student.settings(subject.guidance)
    package = find_model_package(place.model)
    if package is not None and (said := package.warning(place.model, texts)):
        console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    quality = None
    if student.target:
        if settings.method != "progressive":
            raise SpecError("--target finds the number of stages: expected --method progressive with it.")
        quality = QualityCheck(Target.parse(student.target), prompts.held_out(place.model), subject.judge)
    with console.status("Loading the teacher ..."):
        pipe = subject.pipe
    name = place.model if package is None else Path(place.model).name
    return settings, Teacher.of(pipe, dict(subject.settings), name), quality


def _without_guidance(model: str, steps: int, found: Comparison) -> str:
    """A line about the teacher without guidance, whose steps cost as much as the student's."""
    from skipstone.evaluation.columns import parse_column
    from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
    from skipstone.evaluation.subject import SampleRequest
    from skipstone.metrics import PSNR, Sample

    subject = EngineSubject(model, Path(model).name, 1.0)
    items = [SampleRequest(cell.prompt, cell.seed) for cell in found.cells[0]]
    generated, _ = subject.draw(items, parse_column(f"fixed @ ddim / trailing / {steps}", *DEFAULT_SAMPLER))
    pictures = subject.pictures(generated)
    close = [PSNR().measure(Sample(p, reference=cell.pixels)) for p, cell in zip(pictures, found.cells[0], strict=True)]
    judge = subject.judge
    judged = [judge(p, item.prompt) for p, item in zip(pictures, items, strict=True)] if judge else []
    said = f", judge {statistics.fmean(judged):.3f}" if judged else ""
    close_said = f", PSNR to the full run {statistics.median(close):.1f} dB"
    return f"  the same without guidance, ddim: {steps / 2:g} calls{said}{close_said}"


def _show(model: str, folder: Path, card: StudentCard, console: Console) -> None:
    """The student beside fixed samplers of its teacher with as many steps, on prompts withheld from both."""
    from skipstone.cli.files import write_atomically
    from skipstone.evaluation.columns import parse_columns
    from skipstone.evaluation.compare import compare
    from skipstone.evaluation.contact_sheet import render_sheet
    from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
    from skipstone.evaluation.models import find_model_package
    from skipstone.evaluation.prompts import load_prompts
    from skipstone.evaluation.subject import SampleRequest

    spec = f"student(path={str(folder)!r}, steps={card.steps})"
    package = find_model_package(model)
    held_out = (
        next((n for n in package.prompt_sets if not n.endswith(("-training", "-tuning"))), None) if package else None
    )
    if held_out is not None:
        subject = EngineSubject(model, Path(model).name, card.guidance)
        rivals = [f"fixed @ {solver} / trailing / {card.steps}" for solver in RIVALS]
        columns = parse_columns([spec, *rivals], *DEFAULT_SAMPLER)
        reference = parse_columns(["fixed"], *DEFAULT_SAMPLER)[0]
        items = [SampleRequest(p.text, i) for i, p in enumerate(load_prompts(held_out, limit=SHOWN_PROMPTS))]
        with console.status("Comparing with the teacher ..."):
            found = compare(subject, items, columns, reference, repeats=1)
        write_atomically({folder / SHEET: render_sheet(found)})
        typer.echo(f"On {len(items)} prompts that neither has seen (calls: guided ones):")
        for c, column in enumerate(found.columns):
            judged = found.values(c, "judge") if "judge" in found.metrics else []
            said = f", judge {statistics.fmean(judged):.3f}" if judged else ""
            close = f", PSNR to the full run {found.median(c, 'psnr'):.1f} dB" if c else ""
            typer.echo(f"  {column.label}: {found.mean_calls(c):g} calls{said}{close}")
        if card.guidance != 1.0:
            typer.echo(_without_guidance(model, card.steps, found))
        typer.echo(f"{folder / SHEET}: their pictures")
    own = ["--guidance", f"{card.guidance:g}"] if card.guidance_range else []
    command = ["skipstone", "compare", "a cat", "--model", model, *own, "-p", spec, "-p", "balanced"]
    typer.echo(f"See it: {shlex.join(command)}")
