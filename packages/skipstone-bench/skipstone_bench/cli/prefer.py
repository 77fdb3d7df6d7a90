"""`skipstone prefer`: which pictures a vision-language model prefers, and whether it can be believed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import progress_bar
from skipstone.evaluation.limits import MAX_SIDE

if TYPE_CHECKING:
    from rich.console import Console

    from ..vlm.budget import SpendingCaps
    from ..vlm.client import JudgeEndpoint
    from ..vlm.judging import JudgingPlan, JudgingRun, RequestSettings
    from ..vlm.material import JudgingMaterial
    from ..vlm.protocol import JudgingProtocol
    from ..vlm.report import JudgingReport

MAX_REQUESTS = 1_000_000_000
MAX_MONEY = 1e9  # in the currency of the prices


@dataclass(frozen=True)
class MaterialOptions:
    """What is compared."""

    row: Annotated[
        list[str] | None, typer.Option("--row", "-r", help="A row to compare: its label or spec. Repeat it.")
    ] = None
    against: Annotated[
        str | None, typer.Option(help="Compare each row with this one only; all with all by default.", metavar="ROW")
    ] = None
    prompts: Annotated[
        Path | None, typer.Option(help="Of folders: a table or JSON with name and prompt.", metavar="FILE")
    ] = None
    prompt_format: options.FormatOption = None
    limit: Annotated[
        int,
        options.number(least=0, most=options.MAX_COUNT, help="Samples, all categories alike; 0 takes all of them."),
    ] = 40
    seed: Annotated[
        int, options.number(least=0, most=options.MAX_SEED, help="Of the choice of samples, and sent to the judges.")
    ] = 0

    def material(self, sources: Sequence[Path]) -> JudgingMaterial:
        """The rows and the samples that were chosen. Raises BenchError, PromptError."""
        from ..vlm.material import load_material

        rows = self.row or []
        named = [*rows, self.against] if rows and self.against else rows
        return load_material(sources, named, self.prompts, self.prompt_format).subsample(self.limit or None, self.seed)


@dataclass(frozen=True)
class SpendingOptions:
    """What may be spent."""

    calls: Annotated[
        int | None, options.number(least=0, most=MAX_REQUESTS, help="Send no more requests than this.")
    ] = None
    spend: Annotated[
        float | None, options.number(least=0, most=MAX_MONEY, help="Spend no more than this; needs prices.")
    ] = None
    price_in: Annotated[
        list[float] | None,
        options.number(least=0, most=MAX_MONEY, help="Of a million tokens sent; once, or once a judge."),
    ] = None
    price_out: Annotated[
        list[float] | None, options.number(least=0, most=MAX_MONEY, help="Of a million tokens answered; likewise.")
    ] = None

    def caps(self, judges: Sequence[JudgeEndpoint], tokens: int) -> SpendingCaps:
        """The caps; prices are one for all judges, or one for each.

        Args:
            judges: Who is asked.
            tokens: Of the longest answer.

        Raises:
            SpecError: another number of prices.
        """
        from skipstone.errors import SpecError

        from ..vlm.budget import SpendingCaps

        for name, prices in (("--price-in", self.price_in), ("--price-out", self.price_out)):
            if prices and len(prices) not in (1, len(judges)):
                raise SpecError(f"Expected {name} once, or once for each of {len(judges)} judges, got {len(prices)}.")
        both = [(list(p or [0.0]) * len(judges))[: len(judges)] for p in (self.price_in, self.price_out)]
        by_judge = {j.name: pair for j, pair in zip(judges, zip(*both, strict=True), strict=True)}
        return SpendingCaps(self.calls, self.spend, by_judge if self.price_in or self.price_out else {}, tokens)


@dataclass(frozen=True)
class ProtocolOptions:
    """How a question is asked."""

    layout: Annotated[str, typer.Option(help="One image with both pictures, or two images.", metavar="joined|two")] = (
        "joined"
    )
    side: Annotated[
        int, options.number(least=64, most=MAX_SIDE, help="Longest side of a picture as it is sent, in pixels.")
    ] = 1024
    attempts: Annotated[
        int, options.number(least=1, most=100, help="Times a question is asked until its answer is readable.")
    ] = 3
    tokens: Annotated[int, options.number(least=16, most=100_000, help="Most tokens of an answer.")] = 300
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A field of every request, as JSON; null takes it out. Repeat it.", metavar="NAME=VALUE"
        ),
    ] = None

    def protocol(self, seed: int) -> JudgingProtocol:
        """Raises SpecError."""
        from ..vlm.protocol import JudgingProtocol

        fields = _fields(self.settings or ())
        return JudgingProtocol(self.layout, self.side, seed, self.attempts, self.tokens, fields)


@dataclass(frozen=True)
class RequestOptions:
    """How requests are sent."""

    together: Annotated[int, options.number(least=1, most=256, help="Requests under way at once.")] = 4
    timeout: Annotated[
        float,
        options.number(least=0.1, most=86_400, help="Seconds of silence until a request counts as unanswered."),
    ] = 120.0
    tries: Annotated[int, options.number(least=1, most=100, help="Times a request is sent until it is answered.")] = 5

    def settings(self) -> RequestSettings:
        """Raises BenchError."""
        from ..vlm.judging import RequestSettings

        return RequestSettings(self.together, self.timeout, self.tries)


@grouped
def prefer(
    sources: Annotated[
        list[Path], typer.Argument(help="The --out of skipstone bench, or two or more folders of pictures.")
    ],
    judge: Annotated[
        list[str], typer.Option("--judge", "-j", help="Whom to ask. Repeat it.", metavar="MODEL@URL[#KEY_VARIABLE]")
    ],
    *,
    material: MaterialOptions,
    spending: SpendingOptions,
    protocol: ProtocolOptions,
    requests: RequestOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much there is to ask, and ask nothing.")] = False,
    out: Annotated[Path, options.folder()] = Path("preference"),
) -> None:
    """Ask vision-language models which pictures are better.

    Works with any endpoint that speaks OpenAI's chat completions. Each pair of
    pictures is shown [bold]both ways round[/bold]: a judge that names the same side twice
    has seen the order, not the pictures, and the pair is a tie. Answers that
    are not what was asked for are asked again, and never guessed at. A judge
    that is mostly biased, or mostly unreadable, gets no verdict.

    Keys come from environment variables, which are named after the #. Every
    answer is kept as it comes: the same command goes on after Ctrl-C, a cap or
    an endpoint that was down, and asks nothing twice. Caps count what earlier
    runs of the same --out have spent. Pictures and prompts are sent to the
    endpoint: mind whose they are.

    [bold]Examples[/bold]

      skipstone prefer bench -r balanced -r "fewer steps" \\
        -j Qwen2.5-VL-7B-Instruct@http://localhost:8000/v1
      skipstone prefer bench -r balanced -r fast --limit 100 --spend 2.50 \\
        --price-in 2.5 --price-out 10 \\
        -j "gpt-4o@https://api.openai.com/v1#OPENAI_API_KEY"
      skipstone prefer ours/ theirs/ --prompts prompts.csv --calls 200 \\
        -j a@http://localhost:8000/v1 -j b@http://localhost:8001/v1
    """
    from ..vlm.judging import JudgingPlan, list_pairs

    judges = _judges(judge)
    asking = protocol.protocol(material.seed)
    caps = spending.caps(judges, asking.longest)
    chosen = material.material(sources)
    plan = JudgingPlan(chosen, list_pairs(chosen, material.against), judges, asking)
    for one in () if dry_run else judges:
        one.key()
    _ask(plan, out, caps, requests.settings(), dry_run)


def _judges(specs: Sequence[str]) -> tuple[JudgeEndpoint, ...]:
    """The judges of these specs. Raises SpecError, BenchError."""
    from ..vlm.client import JudgeEndpoint, check_distinct

    return tuple(check_distinct([JudgeEndpoint.parse(spec) for spec in specs]))


def _ask(plan: JudgingPlan, out: Path, caps: SpendingCaps, requests: RequestSettings, dry_run: bool) -> None:
    """Say what there is to ask; ask it, and write and show the verdict."""
    from rich.console import Console

    from skipstone.evaluation.folder_lock import lock_folder

    from ..vlm.judging import JudgingRun

    with lock_folder(out):
        _run(JudgingRun(plan, out, caps, requests), dry_run, Console(stderr=True))


def _run(run: JudgingRun, dry_run: bool, console: Console) -> None:
    from ..vlm.report import JudgingReport

    _announce(console, run)
    if dry_run:
        return
    try:
        with progress_bar(console) as on_progress:
            run.run(on_progress)
    except KeyboardInterrupt:
        _print(console, "Stopped. What is answered is kept; the same command goes on.")
        raise
    with console.status("Writing the verdict ..."):
        report = JudgingReport.from_run(run)
        written = report.write(run.answer_log.path.parent, shlex.join(["skipstone", *sys.argv[1:]]))
    _show(report, written)
    _fail(report)


def _fields(settings: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the values read as JSON where they are."""
    split = options.split_settings(settings, "temperature=null")
    return {name: options.read_setting(name, value) for name, value in split}


def _announce(console: Console, run: JudgingRun) -> None:
    """What there is to ask, before anything is spent."""
    plan = run.plan
    found, pairs, judges = plan.material, len(plan.pairs), len(plan.judges)
    if found.missing:
        _print(console, f"{found.missing} samples are left out: not all rows have a picture of them.")
    every = list(plan.questions())
    same = sum(not q.key for q in every)
    left = len(plan.open(run.answer_log))
    line = (
        f"{pairs} pairs of rows, {len(found.samples)} samples, {judges} judges, both ways round: {len(every)} questions"
    )
    line += f", {same} of them about identical pictures, which nobody is asked" if same else ""
    _print(console, f"{line}. {left} are open.")
    keys = {q.key for q in every}
    if other := sum(line.key not in keys for line in run.answer_log.lines):
        _print(console, f"{other} answers in {run.answer_log.path} are of other questions, and are kept apart.")


def _show(report: JudgingReport, written: Sequence[Path]) -> None:
    """The tables, the verdict, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    from ..vlm import report as lines

    console = Console()
    head, *body = lines.short_table(report.verdicts)
    table = Table(box=None, pad_edge=False)
    for k, title in enumerate(head):
        table.add_column(title, justify="right" if 2 <= k <= 7 else "left", overflow="fold")
    for cells in body:
        table.add_row(*cells)
    console.print(table, highlight=False, markup=False)
    console.print()
    notes = [f"{j.judge}: {j.note}." for j in report.verdicts.judges if j.note]
    words = [
        *lines.describe_missing(report.verdicts),
        *lines.agreement_lines(report.verdicts),
        *notes,
        *lines.panel_lines(report.verdicts),
        lines.CAVEAT,
    ]
    for text in (*words, *lines.describe_unfinished(report), *map(str, written)):
        _print(console, text)


def _fail(report: JudgingReport) -> None:
    """A judge that was given up is an error, though the answers of the others are shown."""
    from skipstone.errors import BenchError

    if report.stopped:
        raise BenchError(f"{'; '.join(report.stopped.values())} What is answered is kept; the same command goes on.")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
