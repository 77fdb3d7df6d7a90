"""Verdicts of an evaluation for people and for machines: JSON, Markdown, and a page that opens offline."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstone.evaluation.figures import figure_to_svg
from skipstone.evaluation.files import write_file
from skipstone.evaluation.markdown import format_line
from skipstone_bench.summary import to_jsonable

from .figures import draw_figures
from .gap import measure_gap_closed
from .gates import check_gates
from .hypotheses import Verdict, check_hypotheses
from .loaded_evaluation import LoadedEvaluation, load_evaluation
from .refine_scores import ArmScores, load_refine_scores
from .scores import ScoreRow, Scores, mean_over_prompts

FILE_STEM = "hypotheses"
TEMPLATE = "hypotheses.html.j2"
VERDICT_WORDS = {True: "holds", False: "does not hold", None: "not tested"}
VERDICT_CLASSES = {True: "ahead", False: "behind", None: "even"}


@dataclass(frozen=True)
class VerdictReport:
    """All verdicts on an evaluation.

    Args:
        evaluation: The evaluation.
        hypotheses: H1 to H4, and the shares of the gaps closed.
        gates: G0 to G4.
        command: That made the report.
    """

    evaluation: LoadedEvaluation
    hypotheses: tuple[Verdict, ...]
    gates: tuple[Verdict, ...]
    command: str = ""

    @classmethod
    def from_evaluation(
        cls,
        found: LoadedEvaluation,
        refine: ArmScores | None = None,
        transfer_scores: Scores | None = None,
        command: str = "",
    ) -> VerdictReport:
        """Decide everything that these scores say something about; `refine` as `hypotheses` takes it."""
        decided = check_hypotheses(found.scores, refine)
        closed = [measure_gap_closed(found.scores, "oracle"), measure_gap_closed(found.scores, "ceiling")]
        gated = check_gates(found.scores, found.learnt, found.machine, transfer_scores)
        return cls(found, (*decided, *closed), tuple(gated), command)

    @property
    def document(self) -> dict[str, Any]:
        """For machines."""
        scores = self.evaluation.scores
        document: dict[str, Any] = to_jsonable(
            {
                "about": {**self.evaluation.about, "report": self.command},
                "utility": scores.utility,
                "hypotheses": self.hypotheses,
                "gates": self.gates,
                "rows": [summarize_row(row, scores) for row in scores.rows],
                "trainings": self.evaluation.learnt,
            }
        )
        return document

    @property
    def markdown(self) -> str:
        """For a repository."""
        scores, about = self.evaluation.scores, self.evaluation.about
        prompts = about["prompts"]
        lines = [
            "# Hypotheses on agents",
            "",
            f"Model {about['model']}, {prompts.get('count', '?')} prompts of {prompts.get('source', '?')}, "
            f"{len(scores.trainings)} trainings, {about['machine']}, {about['date']}. Made by `{about['command']}`.",
            "",
            f"Utility: PSNR to the converged picture, clipped to {scores.utility.floor:g} to {scores.utility.cap:g} "
            f"dB, less {scores.utility.price:g} dB a call. Samples are joined by id, seeds and trainings averaged, "
            f"p-values of H1 to H4 Holm-corrected.",
            "",
            *_verdict_table(self.hypotheses),
            "",
            "## Gates",
            "",
            *_verdict_table(self.gates),
            "",
            "## Rows",
            "",
            format_line(["row", "kind", "calls", "PSNR", "SSIM", "judge", "utility"]),
            format_line([":--", ":--", *["--:"] * 5]),
        ]
        for row in sort_rows(scores):
            t = summarize_row(row, scores)
            figures = [_format_number(t[name], form) for name, form in NUMBER_FORMATS.items()]
            lines.append(format_line([f"`{row.name}`", row.kind, *figures]))
        return "\n".join([*lines, ""])

    @property
    def page(self) -> str:
        """For a browser; fetches nothing."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        there = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        scores = self.evaluation.scores
        plots = [
            (title, figure_to_svg(figure, f"plot-{k}"))
            for k, (title, figure) in enumerate(draw_figures(self.evaluation).items())
        ]
        return there.get_template(TEMPLATE).render(
            about=self.evaluation.about, prompts=self.evaluation.about["prompts"], utility=scores.utility,
            trainings=len(scores.trainings), groups=[("Hypotheses", self.hypotheses), ("Gates", self.gates)],
            words=VERDICT_WORDS, tones=VERDICT_CLASSES, plots=plots, forms=NUMBER_FORMATS, number=_format_number,
            rows=[(row, summarize_row(row, scores)) for row in sort_rows(scores)],
            figures={v.name: json.dumps(to_jsonable(v.figures), indent=1) for v in (*self.hypotheses, *self.gates)},
        )  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """hypotheses.html, .md and .json in a folder. Raises BenchError where that cannot be."""
        text = json.dumps(self.document, indent=1, ensure_ascii=False, allow_nan=False)
        files = {"html": self.page, "md": self.markdown, "json": text}
        return [write_file(folder / f"{FILE_STEM}.{kind}", content.encode()) for kind, content in files.items()]


NUMBER_FORMATS = {"calls": ".2f", "psnr": ".2f", "ssim": ".4f", "judge": ".4f", "utility": ".2f"}


def summarize_row(row: ScoreRow, scores: Scores) -> dict[str, Any]:
    """Means of a row, for tables only: nothing is decided on them."""
    price = scores.utility.price if math.isnan(row.price) else row.price
    means = {name: mean_over_prompts(row.values(name)) for name in ("calls", "psnr", "ssim", "judge")}
    utility = mean_over_prompts(row.utilities(type(scores.utility)(price, scores.utility.floor, scores.utility.cap)))
    return {
        "name": row.name,
        "kind": row.kind,
        "price": price,
        "samples": len(row.samples),
        **means,
        "utility": utility,
    }


def sort_rows(scores: Scores) -> list[ScoreRow]:
    """Rows as a reader wants them: agents, what has to be beaten, what knows more."""
    kinds = ("agent", "rule", "fixed", "full", "random", "ceiling", "oracle")
    return sorted(scores.rows, key=lambda row: (kinds.index(row.kind), row.calls))


def _verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [format_line([f"**{v.name}**", VERDICT_WORDS[v.holds], v.claim, v.why]) for v in verdicts]
    return [format_line(["", "", "claim", "what was found"]), format_line([":--", ":--", ":--", ":--"]), *rows]


def _format_number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def write_report(
    folder: Path,
    oracle: Path | None = None,
    ceiling: Path | None = None,
    refine: Path | None = None,
    transfer: Path | None = None,
    command: str = "",
) -> tuple[VerdictReport, list[Path]]:
    """The report of an evaluation's folder, into it.

    Args:
        folder: The --out of `skipstone evaluate agent`.
        oracle, ceiling: JSON Lines of samples that know more; see `evaluated`.
        refine: Of H4; see `refined`.
        transfer: The folder of an evaluation on another model, of G4.
        command: That made it.

    Raises:
        BenchError: what cannot be read or written.
    """
    transfer_scores = load_evaluation(transfer).scores if transfer is not None else None
    arms = load_refine_scores(refine) if refine is not None else None
    report = VerdictReport.from_evaluation(load_evaluation(folder, oracle, ceiling), arms, transfer_scores, command)
    return report, report.write(folder)
