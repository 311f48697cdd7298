"""The one thread that computes: it takes continuations from a queue into the engine's slots."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptfit.errors import GptfitError
from gptfit.generate.engine import Engine, Request, Row, Token
from gptfit.generate.text import StoppingStream
from gptfit.serve.logprobs import prompt_tokens
from gptfit.serve.refusal import FINAL, RETRY, Refusal

logger = logging.getLogger("gptfit.serve")


@dataclass(frozen=True)
class Delta:
    """What a continuation has gained: its prompt's tokens, text that is certain, a token, its end."""

    text: str = ""
    token: Token | None = None
    prompt: Sequence[Token] = ()
    finish_reason: str | None = None
    refusal: Refusal | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.refusal is not None


@dataclass(eq=False)
class Job:
    """One continuation; ``deliver`` is called in the worker's thread and must not block.

    With ``scores_prompt`` the tokens of the prompt are delivered first. ``max_new_tokens`` may be 0.
    """

    request: Request
    text: StoppingStream | None
    deliver: Callable[[Delta], None]
    deadline: float
    """By ``time.monotonic``."""
    scores_prompt: bool = False
    is_cancelled: bool = False

    def push(self, token: Token) -> None:
        """Hand on a token."""
        self.deliver(Delta(self.text.push(token.id) if self.text else "", token))

    def finish(self, reason: str) -> None:
        """Hand on what was held back, and the end."""
        rest = self.text.flush() if self.text else ""
        self.deliver(Delta(rest, finish_reason="stop" if self.has_stopped else reason))

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.text is not None and self.text.stopped


class Worker:
    """Owns the engine. Other threads call ``submit``, ``cancel``, ``drain``, ``close``; none waits long.

    Between two steps waiting jobs take free slots, in their order, and those that were cancelled or
    are past their deadline leave.
    """

    def __init__(self, engine: Engine, queue: int) -> None:
        self._engine = engine
        self.places = engine.free + queue
        self._waiting: deque[Job] = deque()
        self._running: dict[Row, Job] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._last_call: float | None = None
        self._thread = threading.Thread(target=self._run, name="gptfit-worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether new jobs are taken."""
        return self._thread.is_alive() and self._last_call is None

    @property
    def queue_length(self) -> int:
        """Jobs without a slot."""
        return len(self._waiting)

    @property
    def slots_in_use(self) -> int:
        """Jobs in a slot."""
        return len(self._running)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of them, or raise ``Refusal``."""
        with self._changed:
            if not self.is_ready:
                raise Refusal(503, "the server is shutting down", headers=RETRY)
            taken = len(self._waiting) + len(self._running)
            if taken + len(jobs) > self.places:
                raise Refusal(
                    429,
                    f"the server is full: {taken} of {self.places} places are taken; try again",
                    code="rate_limit_exceeded",
                    headers=RETRY,
                )
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more; one that has ended already is no error."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.is_cancelled)

    def drain(self, seconds: float) -> None:
        """Take no more jobs, and end what runs after so many seconds."""
        with self._changed:
            self._last_call = time.monotonic() + seconds

    def close(self) -> None:
        """Stop computing. What still runs is told; returns when the thread has ended, or nearly."""
        self.drain(0)
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._end_overdue()
                self._fill_slots()
                self._step()
            except Exception as error:
                logger.exception("the engine failed; its requests are given up")
                self._give_up(error)

    def _wait_for_work(self) -> bool:
        """False when the thread shall end."""
        with self._changed:
            while not (self._waiting or self._running or self._is_closed):
                self._changed.wait()
            return bool(self._waiting or self._running)

    def _end_overdue(self) -> None:
        now, last_call = time.monotonic(), self._last_call
        with self._changed:
            jobs = [*self._running.values(), *self._waiting]
        for job in jobs:
            if last_call is not None and now >= last_call:
                self._refuse(job, Refusal(503, "the server is shutting down", headers=RETRY))
            elif now >= job.deadline:
                message = "the request took longer than this server allows; ask for fewer tokens"
                self._refuse(job, Refusal(408, message, code="timeout", headers=FINAL))
        for row in [row for row, job in self._running.items() if job.is_cancelled]:
            self._leave(row)

    def _refuse(self, job: Job, refusal: Refusal) -> None:
        if not job.is_cancelled:
            job.deliver(Delta(refusal=refusal))
        self.cancel([job])

    def _fill_slots(self) -> None:
        while self._engine.free and (job := self._next()) is not None:
            row = None
            try:
                row = self._begin(job)
            except Exception as error:
                logger.exception("a request could not begin")
                self._refuse(job, _failure(error))
            with self._changed:  # it always counts in one place; cancelled, it has left this one
                self._waiting = deque(other for other in self._waiting if other is not job)
                if row is not None:
                    self._running[row] = job

    def _next(self) -> Job | None:
        with self._changed:
            return self._waiting[0] if self._waiting else None

    def _begin(self, job: Job) -> Row | None:
        """The job's row in the engine; None where there is nothing to continue."""
        request, engine = job.request, self._engine
        if job.scores_prompt:
            top = request.top_logprobs or 0
            tokens = prompt_tokens(engine.model, request.prompt, top, engine.vocab_size)
            job.deliver(Delta(prompt=tokens))
        if request.max_new_tokens:
            return engine.add(request)
        job.finish("length")
        return None

    def _step(self) -> None:
        for row, token in self._engine.step():
            job = self._running[row]
            if not job.has_stopped:
                job.push(token)
        for row, job in list(self._running.items()):
            if job.has_stopped or row.finish_reason:
                job.finish(row.finish_reason or "stop")
                self._leave(row)

    def _leave(self, row: Row) -> None:
        del self._running[row]
        self._engine.remove(row)

    def _give_up(self, error: Exception) -> None:
        for row, job in list(self._running.items()):
            self._refuse(job, _failure(error))
            self._leave(row)


def _failure(error: Exception) -> Refusal:
    reason = str(error) if isinstance(error, GptfitError) else "the server's log says why"
    return Refusal(500, f"the model failed: {reason}", headers=FINAL)
