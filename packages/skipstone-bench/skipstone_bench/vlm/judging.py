"""Asking every judge about every pair of pictures, both ways round, a few at a time, until done or out of means."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from skipstone.errors import BenchError
from skipstone.evaluation.progress import ProgressCallback, no_progress

from .answer_log import AnswerLog, RequestRecord
from .budget import SpendingCaps, SpendingLedger
from .client import JudgeEndpoint, JudgeReply, RequestError, post_request
from .images import encode_images, hash_image, prepare_image
from .material import JudgedSample, JudgingMaterial
from .protocol import Answer, JudgingProtocol, parse_answer

Pair: TypeAlias = tuple[str, str]
MAX_LOST_QUESTIONS = 3  # in a row without an answer after which a judge is given up


@dataclass(frozen=True)
class RequestSettings:
    """How an endpoint is treated.

    Args:
        max_concurrent: Requests under way at once, >= 1.
        timeout: Seconds of silence until a request counts as unanswered, > 0.
        max_tries: Times that a request is sent until it is answered, >= 1.
        retry_delay: Seconds before the second try, doubled each time, unless the server asks for more.

    Raises:
        BenchError: a number out of range.
    """

    max_concurrent: int = 4
    timeout: float = 120.0
    max_tries: int = 5
    retry_delay: float = 1.0

    def __post_init__(self) -> None:
        if self.max_concurrent < 1 or self.max_tries < 1 or self.timeout <= 0 or self.retry_delay < 0:
            raise BenchError("Expected at least 1 request at once and 1 try, timeout > 0, pause >= 0.")


@dataclass(frozen=True)
class JudgeQuestion:
    """One pair of pictures, one way round, for one judge. Without a key the pictures are identical: nobody is asked."""

    judge: JudgeEndpoint
    sample: JudgedSample
    left: str
    right: str
    key: str


@dataclass(frozen=True)
class JudgingPlan:
    """Everything that is to be asked.

    Args:
        material: Rows and samples.
        pairs: Of rows that are compared.
        judges: Who is asked.
        protocol: How.
    """

    material: JudgingMaterial
    pairs: tuple[Pair, ...]
    judges: tuple[JudgeEndpoint, ...]
    protocol: JudgingProtocol = field(default_factory=JudgingProtocol)

    def questions(self) -> Iterator[JudgeQuestion]:
        """Sample by sample, so that a run that is cut off has asked about all pairs alike, and both orders at once."""
        for sample in self.material.samples:
            known = {
                row: hash_image(prepare_image(sample.pictures[row], self.protocol.side)) for row in self.material.rows
            }
            for (a, b), judge in itertools.product(self.pairs, self.judges):
                for left, right in ((a, b), (b, a)):
                    pixels = [known[left], known[right]]
                    same = pixels[0] == pixels[1]
                    key = "" if same else self.protocol.key(judge.url, judge.model, sample.prompt, pixels)
                    yield JudgeQuestion(judge, sample, left, right, key)

    def open(self, answer_log: AnswerLog) -> list[JudgeQuestion]:
        """Questions that have neither an answer nor used up their attempts."""
        return [
            q
            for q in self.questions()
            if q.key and answer_log.answer(q.key) is None and answer_log.attempts(q.key) < self.protocol.attempts
        ]


def list_pairs(material: JudgingMaterial, against: str | None = None) -> tuple[Pair, ...]:
    """All pairs of rows in their order, or those with one row. Raises BenchError where that row is not among them."""
    rows = material.rows
    if against is None:
        return tuple(itertools.combinations(rows, 2))
    rival = material.aliases.get(against, against)
    if rival not in rows:
        raise BenchError(f"--against: expected one of the rows {'; '.join(rows)}, got {against!r}.")
    return tuple((row, rival) for row in rows if row != rival)


class JudgingRun:
    """One run over the open questions of a folder. `stopped`: judge -> why it was given up."""

    def __init__(
        self, plan: JudgingPlan, folder: Path, caps: SpendingCaps, request_settings: RequestSettings | None = None
    ) -> None:
        self.plan, self.request_settings = plan, request_settings or RequestSettings()
        self.answer_log = AnswerLog(folder)
        self.ledger = SpendingLedger(caps)
        for line in self.answer_log.lines:
            self.ledger.add_past_request(line.judge, line.tokens_in, line.tokens_out)
        self.stopped: dict[str, str] = {}
        self.capped = False
        self._in_a_row: dict[str, set[str]] = {}
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def run(self, on_progress: ProgressCallback = no_progress) -> None:
        """Ask. Returns when all is asked, no judge is left, or a cap is reached; answers are in `answer_log`.

        After Ctrl-C the requests under way are waited for and their answers written, for they have been paid.

        Raises:
            SkipstoneError: no key, an answer that cannot be written; what a judge does wrong is in `stopped`.
        """
        for judge in self.plan.judges:
            judge.key()  # raises where it is missing
        self.answer_log.prepare()
        waiting = self.plan.open(self.answer_log)
        source, total = iter(waiting), len(waiting)
        done = itertools.count(1)
        on_progress("Asking", 0, total)

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
                    on_progress("Asking", next(done), total)

        threads = [
            threading.Thread(target=work, name=f"asking {k}")
            for k in range(min(self.request_settings.max_concurrent, total))
        ]
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

    def _ask(self, question: JudgeQuestion) -> None:
        """One question, until its answer can be parsed or its attempts are used up."""
        judge = question.judge
        while self.answer_log.answer(question.key) is None and not self._halt.is_set():
            attempt = self.answer_log.attempts(question.key)
            if attempt >= self.plan.protocol.attempts or judge.name in self.stopped:
                return
            try:
                self._attempt(question, attempt)
            except RequestError as e:
                self._lost(question, e)
                return
            with self._lock:
                self._in_a_row.pop(judge.name, None)

    def _lost(self, question: JudgeQuestion, e: RequestError) -> None:
        """Give the judge up after MAX_LOST_QUESTIONS questions in a row, or as many samples where these are refused."""
        name = question.judge.name
        with self._lock:
            lost = self._in_a_row.setdefault(name, set())
            lost.add(question.sample.id if e.kind == "question" else question.key)
            if e.kind == "judge" or len(lost) >= MAX_LOST_QUESTIONS:
                self.stopped.setdefault(name, str(e))

    def _attempt(self, question: JudgeQuestion, attempt: int) -> None:
        """One answer, after as many tries as it takes. Raises RequestError where there is none."""
        judge, protocol = question.judge, self.plan.protocol
        left, right = (question.sample.pictures[row] for row in (question.left, question.right))
        sent = encode_images(left, right, protocol.side, protocol.layout)
        body = protocol.body(judge.model, question.sample.prompt, sent, attempt)
        asked = RequestRecord(question.key, judge.name, question.sample.id, question.left, question.right, attempt)
        for last in range(self.request_settings.max_tries - 1, -1, -1):
            try:
                self._send(asked, judge, body)
                return
            except RequestError as e:
                if e.kind != "again" or not last:
                    raise
                pause = self.request_settings.retry_delay * 2 ** (self.request_settings.max_tries - 1 - last)
                if self._halt.wait(max(pause, e.wait)):
                    return

    def _send(self, asked: RequestRecord, judge: JudgeEndpoint, body: dict[str, object]) -> None:
        """One request and its line."""
        share = self.ledger.reserve(judge.name)
        if share is None:
            self.capped = True
            self._halt.set()
            return
        if self._halt.is_set() or judge.name in self.stopped:  # while it waited for its share
            self.ledger.release(share)
            return
        reply = JudgeReply(None, None, None)
        try:
            reply = post_request(judge, body, self.request_settings.timeout)
            if self.ledger.caps.spend is not None and None in (reply.tokens_in, reply.tokens_out):
                self.stopped.setdefault(
                    judge.name, f"{judge.name} counts no tokens, so that money cannot be capped: use --calls."
                )
        except RequestError as e:
            self.answer_log.append(replace(asked, failed=str(e)))
            raise
        finally:
            self.ledger.settle(judge.name, share, reply.tokens_in, reply.tokens_out)
        answer = parse_answer(reply.text) or Answer("", "")
        answered = replace(asked, text=reply.text, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        self.answer_log.append(replace(answered, winner=answer.winner, reason=answer.reason))
