"""Asking every judge about every pair of pictures, both ways round, a few at a time, until done or out of means."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from skipstone.errors import BenchError

from .answer_cache import Kept, Line
from .budget import Caps, Purse
from .client import Judge, Reply, Trouble, post
from .images import fingerprint, images, shown
from .material import Material, Sample
from .protocol import Answer, Protocol, parse

Pair: TypeAlias = tuple[str, str]
Tell: TypeAlias = Callable[[str, float, float], None]
DEAD = 3  # in a row without an answer after which a judge is given up


@dataclass(frozen=True)
class Manners:
    """How an endpoint is treated.

    Args:
        together: Requests under way at once, >= 1.
        timeout: Seconds of silence until a request counts as unanswered, > 0.
        tries: Times that a request is sent until it is answered, >= 1.
        pause: Seconds before the second try, doubled each time, unless the server asks for more.

    Raises:
        BenchError: a number out of range.
    """

    together: int = 4
    timeout: float = 120.0
    tries: int = 5
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.together < 1 or self.tries < 1 or self.timeout <= 0 or self.pause < 0:
            raise BenchError("Expected at least 1 request at once and 1 try, timeout > 0, pause >= 0.")


@dataclass(frozen=True)
class Question:
    """One pair of pictures, one way round, for one judge. Without a key the pictures are identical: nobody is asked."""

    judge: Judge
    sample: Sample
    left: str
    right: str
    key: str


@dataclass(frozen=True)
class Plan:
    """Everything that is to be asked.

    Args:
        material: Rows and samples.
        pairs: Of rows that are compared.
        judges: Who is asked.
        protocol: How.
    """

    material: Material
    pairs: tuple[Pair, ...]
    judges: tuple[Judge, ...]
    protocol: Protocol = field(default_factory=Protocol)

    def questions(self) -> Iterator[Question]:
        """Sample by sample, so that a run that is cut off has asked about all pairs alike, and both orders at once."""
        for sample in self.material.samples:
            known = {row: fingerprint(shown(sample.pictures[row], self.protocol.side)) for row in self.material.rows}
            for (a, b), judge in itertools.product(self.pairs, self.judges):
                for left, right in ((a, b), (b, a)):
                    pixels = [known[left], known[right]]
                    same = pixels[0] == pixels[1]
                    key = "" if same else self.protocol.key(judge.url, judge.model, sample.prompt, pixels)
                    yield Question(judge, sample, left, right, key)

    def open(self, kept: Kept) -> list[Question]:
        """Questions that have neither an answer nor used up their attempts."""
        return [
            q
            for q in self.questions()
            if q.key and kept.answer(q.key) is None and kept.attempts(q.key) < self.protocol.attempts
        ]


def pairs_of(material: Material, against: str | None = None) -> tuple[Pair, ...]:
    """All pairs of rows in their order, or those with one row. Raises BenchError where that row is not among them."""
    rows = material.rows
    if against is None:
        return tuple(itertools.combinations(rows, 2))
    rival = material.aliases.get(against, against)
    if rival not in rows:
        raise BenchError(f"--against: expected one of the rows {'; '.join(rows)}, got {against!r}.")
    return tuple((row, rival) for row in rows if row != rival)


class Round:
    """One run over the open questions of a folder. `stopped` says of each judge why it was given up, if it was."""

    def __init__(self, plan: Plan, folder: Path, caps: Caps, manners: Manners | None = None) -> None:
        self.plan, self.manners = plan, manners or Manners()
        self.kept = Kept(folder)
        self.purse = Purse(caps)
        for line in self.kept.lines:
            self.purse.book(line.judge, line.tokens_in, line.tokens_out)
        self.stopped: dict[str, str] = {}
        self.capped = False
        self._in_a_row: dict[str, set[str]] = {}
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def run(self, tell: Tell = lambda *_: None) -> None:
        """Ask. Returns when all is asked, no judge is left, or a cap is reached; answers are in `kept`.

        After Ctrl-C what is under way is waited for and kept, for it has been paid.

        Raises:
            SkipstoneError: no key, an answer that cannot be written; what a judge does wrong is in `stopped`.
        """
        for judge in self.plan.judges:
            judge.key()  # one that is missing is missed now
        self.kept.prepare()
        waiting = self.plan.open(self.kept)
        source, total = iter(waiting), len(waiting)
        done = itertools.count(1)
        tell("Asking", 0, total)

        def work() -> None:
            while not self._halt.is_set():
                with self._lock:
                    question = next(source, None)
                if question is None:
                    return
                try:
                    self._ask(question)
                except BaseException as e:  # of a thread: brought to the caller
                    self._error = self._error or e
                    self._halt.set()
                with self._lock:
                    tell("Asking", next(done), total)

        threads = [threading.Thread(target=work, name=f"asking {k}") for k in range(min(self.manners.together, total))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._halt.set()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _ask(self, question: Question) -> None:
        """One question, until its answer can be parsed or its attempts are used up."""
        judge = question.judge
        while self.kept.answer(question.key) is None and not self._halt.is_set():
            attempt = self.kept.attempts(question.key)
            if attempt >= self.plan.protocol.attempts or judge.name in self.stopped:
                return
            try:
                self._attempt(question, attempt)
            except Trouble as e:
                self._lost(question, e)
                return
            with self._lock:
                self._in_a_row.pop(judge.name, None)

    def _lost(self, question: Question, e: Trouble) -> None:
        """Give the judge up after DEAD questions in a row, or DEAD samples where it is they that are refused."""
        name = question.judge.name
        with self._lock:
            lost = self._in_a_row.setdefault(name, set())
            lost.add(question.sample.id if e.kind == "question" else question.key)
            if e.kind == "judge" or len(lost) >= DEAD:
                self.stopped.setdefault(name, str(e))

    def _attempt(self, question: Question, attempt: int) -> None:
        """One answer, after as many tries as it takes. Raises Trouble where there is none."""
        judge, protocol = question.judge, self.plan.protocol
        left, right = (question.sample.pictures[row] for row in (question.left, question.right))
        sent = images(left, right, protocol.side, protocol.layout)
        body = protocol.body(judge.model, question.sample.prompt, sent, attempt)
        asked = Line(question.key, judge.name, question.sample.id, question.left, question.right, attempt)
        for last in range(self.manners.tries - 1, -1, -1):
            try:
                self._send(asked, judge, body)
                return
            except Trouble as e:
                if e.kind != "again" or not last:
                    raise
                pause = self.manners.pause * 2 ** (self.manners.tries - 1 - last)
                if self._halt.wait(max(pause, e.wait)):
                    return

    def _send(self, asked: Line, judge: Judge, body: dict[str, object]) -> None:
        """One request and its line."""
        share = self.purse.take(judge.name)
        if share is None:
            self.capped = True
            self._halt.set()
            return
        if self._halt.is_set() or judge.name in self.stopped:  # while it waited for its share
            self.purse.give_back(share)
            return
        reply = Reply(None, None, None)
        try:
            reply = post(judge, body, self.manners.timeout)
            if self.purse.caps.spend is not None and None in (reply.tokens_in, reply.tokens_out):
                self.stopped.setdefault(
                    judge.name, f"{judge.name} counts no tokens, so that money cannot be capped: use --calls."
                )
        except Trouble as e:
            self.kept.append(replace(asked, failed=str(e)))
            raise
        finally:
            self.purse.settle(judge.name, share, reply.tokens_in, reply.tokens_out)
        said = parse(reply.text) or Answer("", "")
        answered = replace(asked, text=reply.text, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        self.kept.append(replace(answered, winner=said.winner, reason=said.reason))
