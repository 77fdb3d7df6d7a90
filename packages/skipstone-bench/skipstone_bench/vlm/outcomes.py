"""What two answers about one pair of pictures, shown both ways round, come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .answer_log import AnswerLog
from .judging import JudgeQuestion, JudgingPlan, Pair
from .material import JudgedSample
from .protocol import LEFT, RIGHT, TIE, Answer

FIRST, SECOND, TIED = 0, 1, 2  # what tables of outcomes count
CATEGORY_OF_KIND = {"first": FIRST, "second": SECOND, "tie": TIED, "flip": TIED, "unsure": TIED, "identical": TIED}


@dataclass(frozen=True)
class Outcome:
    """One pair of rows on one sample, as one judge has it.

    Args:
        judge: Who was asked.
        pair: Rows.
        sample: What was shown.
        first_left, second_left: The answers, by which row was on the left; None where there is none.
        open: Whether an answer is still to be had.
        identical: Whether the pictures are, to the last pixel that would be sent: nobody was asked.
    """

    judge: str
    pair: Pair
    sample: JudgedSample
    first_left: Answer | None
    second_left: Answer | None
    open: bool = False
    identical: bool = False

    @property
    def kind(self) -> str:
        """What both orders say together.

        first or second: both name that row. tie: both answers are tie. flip: the same side both times, which is a tie
        by position bias. unsure: a row once and a tie once, a tie too. identical: a tie that nobody was asked about.
        unparsed, open: not both orders have an answer, and the pair counts nowhere.
        """
        if self.identical:
            return "identical"
        if self.first_left is None or self.second_left is None:
            return "open" if self.open else "unparsed"
        both = self.first_left.winner, self.second_left.winner
        known = {(LEFT, RIGHT): "first", (RIGHT, LEFT): "second", (TIE, TIE): "tie"}
        return known.get(both, "unsure" if TIE in both else "flip")

    @property
    def category(self) -> int | None:
        """FIRST, SECOND or TIED; None where the pair counts nowhere."""
        return CATEGORY_OF_KIND.get(self.kind)

    @property
    def flipped_to(self) -> str:
        """The side that a flip chose twice; empty of all else."""
        return self.first_left.winner if self.kind == "flip" and self.first_left else ""


def collect_outcomes(plan: JudgingPlan, answer_log: AnswerLog) -> list[Outcome]:
    """Of all judges, pairs and samples of a plan, from what has been answered so far."""
    asked: dict[tuple[str, str, Pair], JudgeQuestion] = {}
    for q in plan.questions():
        asked[q.judge.name, q.sample.id, (q.left, q.right)] = q
    return [
        _outcome(plan, answer_log, [asked[judge.name, sample.id, order] for order in ((a, b), (b, a))])
        for judge in plan.judges
        for a, b in plan.pairs
        for sample in plan.material.samples
    ]


def _outcome(plan: JudgingPlan, answer_log: AnswerLog, both: Sequence[JudgeQuestion]) -> Outcome:
    one = both[0]
    answers = [answer_log.answer(q.key) if q.key else None for q in both]
    more = any(
        s is None and answer_log.attempts(q.key) < plan.protocol.attempts for q, s in zip(both, answers, strict=True)
    )
    return Outcome(one.judge.name, (one.left, one.right), one.sample, answers[0], answers[1], more, not one.key)
