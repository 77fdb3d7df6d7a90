"""Verdicts of an evaluation for people and for machines: JSON, Markdown, and a page that opens offline."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstone.evaluation.figures import svg
from skipstone.evaluation.files import put
from skipstone_bench.summary import jsonable

from .evaluated import Evaluated, evaluated
from .figures import drawn
from .gap import gap
from .gates import gates
from .hypotheses import Verdict, hypotheses
from .refined import Arms, refined
from .scores import Row, Scores, mean_of

NAME = "hypotheses"
TEMPLATE = "hypotheses.html.j2"
WORDS = {True: "holds", False: "does not hold", None: "not tested"}
TONES = {True: "ahead", False: "behind", None: "even"}


@dataclass(frozen=True)
class Report:
    """All verdicts on an evaluation.

    Args:
        found: The evaluation.
        hypotheses: H1 to H4, and the shares of the gaps closed.
        gates: G0 to G4.
        command: That made the report.
    """

    found: Evaluated
    hypotheses: tuple[Verdict, ...]
    gates: tuple[Verdict, ...]
    command: str = ""

    @classmethod
    def of(
        cls,
        found: Evaluated,
        refine: Arms | None = None,
        elsewhere: Scores | None = None,
        command: str = "",
    ) -> Report:
        """Decide everything that these scores say something about; `refine` as `hypotheses` takes it."""
        decided = hypotheses(found.scores, refine)
        closed = [gap(found.scores, "oracle"), gap(found.scores, "ceiling")]
        gated = gates(found.scores, found.learnt, found.machine, elsewhere)
        return cls(found, (*decided, *closed), tuple(gated), command)

    @property
    def document(self) -> dict[str, Any]:
        """For machines."""
        scores = self.found.scores
        document: dict[str, Any] = jsonable(
            {
                "about": {**self.found.about, "report": self.command},
                "utility": scores.utility,
                "hypotheses": self.hypotheses,
                "gates": self.gates,
                "rows": [told(row, scores) for row in scores.rows],
                "trainings": self.found.learnt,
            }
        )
        return document

    @property
    def markdown(self) -> str:
        """For a repository."""
        scores, about = self.found.scores, self.found.about
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
            _line(["row", "kind", "calls", "PSNR", "SSIM", "judge", "utility"]),
            _line([":--", ":--", *["--:"] * 5]),
        ]
        for row in ordered(scores):
            t = told(row, scores)
            figures = [_number(t[name], form) for name, form in FORMS.items()]
            lines.append(_line([f"`{row.name}`", row.kind, *figures]))
        return "\n".join([*lines, ""])

    @property
    def page(self) -> str:
        """For a browser; fetches nothing."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        there = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        scores = self.found.scores
        plots = [(title, svg(figure, f"plot-{k}")) for k, (title, figure) in enumerate(drawn(self.found).items())]
        return there.get_template(TEMPLATE).render(
            about=self.found.about, prompts=self.found.about["prompts"], utility=scores.utility,
            trainings=len(scores.trainings), groups=[("Hypotheses", self.hypotheses), ("Gates", self.gates)],
            words=WORDS, tones=TONES, plots=plots, forms=FORMS, number=_number,
            rows=[(row, told(row, scores)) for row in ordered(scores)],
            figures={v.name: json.dumps(jsonable(v.figures), indent=1) for v in (*self.hypotheses, *self.gates)},
        )  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """hypotheses.html, .md and .json in a folder. Raises BenchError where that cannot be."""
        text = json.dumps(self.document, indent=1, ensure_ascii=False, allow_nan=False)
        files = {"html": self.page, "md": self.markdown, "json": text}
        return [put(folder / f"{NAME}.{kind}", content.encode()) for kind, content in files.items()]


FORMS = {"calls": ".2f", "psnr": ".2f", "ssim": ".4f", "judge": ".4f", "utility": ".2f"}


def told(row: Row, scores: Scores) -> dict[str, Any]:
    """Means of a row, for tables only: nothing is decided on them."""
    price = scores.utility.price if math.isnan(row.price) else row.price
    means = {name: mean_of(row.values(name)) for name in ("calls", "psnr", "ssim", "judge")}
    utility = mean_of(row.utilities(type(scores.utility)(price, scores.utility.floor, scores.utility.cap)))
    return {
        "name": row.name,
        "kind": row.kind,
        "price": price,
        "samples": len(row.samples),
        **means,
        "utility": utility,
    }


def ordered(scores: Scores) -> list[Row]:
    """Rows as a reader wants them: agents, what has to be beaten, what knows more."""
    kinds = ("agent", "rule", "fixed", "full", "random", "ceiling", "oracle")
    return sorted(scores.rows, key=lambda row: (kinds.index(row.kind), row.calls))


def _verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [_line([f"**{v.name}**", WORDS[v.holds], v.claim, v.why]) for v in verdicts]
    return [_line(["", "", "claim", "what was found"]), _line([":--", ":--", ":--", ":--"]), *rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def write(
    folder: Path,
    oracle: Path | None = None,
    ceiling: Path | None = None,
    refine: Path | None = None,
    transfer: Path | None = None,
    command: str = "",
) -> tuple[Report, list[Path]]:
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
    elsewhere = evaluated(transfer).scores if transfer is not None else None
    arms = refined(refine) if refine is not None else None
    report = Report.of(evaluated(folder, oracle, ceiling), arms, elsewhere, command)
    return report, report.write(folder)
