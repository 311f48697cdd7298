"""Slots and queue: who waits, who leaves, who is told what. No network."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gptfit.generate.engine import Engine, Request
from gptfit.generate.sampling import SamplingOptions
from gptfit.generate.text import StoppingStream
from gptfit.serve import ServedModel
from gptfit.serve.refusal import Refusal
from gptfit.serve.worker import Delta, Job, Worker

FOREVER = 10**9


@contextmanager
def working(model: ServedModel, slots: int = 2, waiting: int = 3) -> Iterator[Worker]:
    worker = Worker(Engine(model.network, slots, vocab_size=model.vocab_size), waiting)
    worker.start()
    yield worker
    worker.close()
    assert (worker.slots_in_use, worker.queue_length, worker.is_ready) == (0, 0, False)


class Reader:
    """What a job has delivered."""

    def __init__(self, listener: Callable[[Delta], None] = lambda delta: None) -> None:
        self.deltas: queue.Queue[Delta] = queue.Queue()
        self.listener = listener

    def deliver(self, delta: Delta) -> None:
        self.deltas.put(delta)
        self.listener(delta)

    def next(self) -> Delta:
        return self.deltas.get(timeout=30)

    def end(self) -> Delta:
        """The last one, when it is there."""
        while not (delta := self.next()).is_last:
            pass
        return delta


def job(reader: Reader, tokens: int = FOREVER, seconds: float = 600, seed: int = 0) -> Job:
    request = Request(prompt=[1, 2], max_new_tokens=tokens, options=SamplingOptions(seed=seed))
    return Job(request, None, reader.deliver, time.monotonic() + seconds)


def test_more_jobs_than_slots(model: ServedModel) -> None:
    with working(model, slots=2, waiting=9) as worker:
        readers = [Reader() for _ in range(11)]
        worker.submit([job(reader, tokens=4, seed=7) for reader in readers])
        told = [[reader.next().token for _ in range(4)] for reader in readers]
        assert [reader.next().finish_reason for reader in readers] == ["length"] * 11
    assert told.count(told[0]) == 11


def test_full(model: ServedModel) -> None:
    with working(model, slots=2, waiting=3) as worker:
        readers = [Reader() for _ in range(5)]
        jobs = [job(reader) for reader in readers]
        worker.submit(jobs)
        readers[1].next()  # two of them run
        with pytest.raises(Refusal, match="5 of 5 places are taken") as caught:
            worker.submit([job(Reader())])
        assert caught.value.status == 429
        assert caught.value.headers == {"Retry-After": "1"}
        worker.cancel([jobs[4]])  # one that waited
        worker.submit([job(Reader())])
        with pytest.raises(Refusal):
            worker.submit([job(Reader())])
        worker.cancel([jobs[0]])  # one that ran
        readers[2].next()


def test_cancelled_within_two_tokens(model: ServedModel) -> None:
    with working(model, slots=1, waiting=1) as worker:
        counts = {"before": 0, "after": 0}

        def leave_at_five(delta: Delta) -> None:
            counts["after" if leaving.is_cancelled else "before"] += 1
            if counts["before"] == 5:
                worker.cancel([leaving])

        leaving, next_one = job(Reader(leave_at_five)), Reader()
        worker.submit([leaving, job(next_one, tokens=3)])
        assert next_one.end().finish_reason == "length"
        assert counts["before"] == 5
        assert counts["after"] <= 2


def test_deadlines(model: ServedModel) -> None:
    with working(model, slots=1) as worker:
        running, waiting = Reader(), Reader()
        worker.submit([job(running, seconds=0.2), job(waiting, seconds=0.1)])
        for reader in (waiting, running):
            refusal = reader.end().refusal
            assert refusal is not None
            assert (refusal.status, refusal.code) == (408, "timeout")


def test_draining(model: ServedModel) -> None:
    with working(model, slots=1) as worker:
        short, long = Reader(), Reader()
        worker.submit([job(short, tokens=5), job(long)])
        worker.drain(0.3)
        assert not worker.is_ready
        with pytest.raises(Refusal, match="shutting down") as caught:
            worker.submit([job(Reader())])
        assert caught.value.status == 503
        assert short.end().finish_reason == "length"
        refusal = long.end().refusal
        assert refusal is not None
        assert refusal.status == 503


def test_an_engine_that_fails_once(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with working(model) as worker:
        step, failures = worker._engine.step, [RuntimeError("out of memory")]

        def fail_once() -> object:
            if failures:
                raise failures.pop()
            return step()

        monkeypatch.setattr(worker._engine, "step", fail_once)
        first, second = Reader(), Reader()
        worker.submit([job(first)])
        refusal = first.end().refusal
        assert refusal is not None
        assert (refusal.status, refusal.message) == (
            500,
            "the model failed: the server's log says why",
        )
        worker.submit([job(second, tokens=3)])
        assert second.end().finish_reason == "length"


def test_a_prompt_that_the_engine_refuses(model: ServedModel) -> None:
    with working(model) as worker:
        bad, good = Reader(), Reader()
        impossible = Job(Request(prompt=[10**6], max_new_tokens=1), None, bad.deliver, FOREVER)
        worker.submit([impossible, job(good, tokens=2)])
        refusal = bad.end().refusal
        assert refusal is not None
        assert "vocabulary ends at 279" in refusal.message
        assert good.end().finish_reason == "length"


def test_text_is_held_back_until_it_is_certain(model: ServedModel) -> None:
    assert model.tokenizer is not None
    with working(model) as worker:
        reader = Reader()
        ids = model.tokenizer.encode("😀").tolist()
        for token in ids:  # each of its bytes alone, by force
            bias = SamplingOptions(logit_bias={int(token): 100.0})
            request = Request(prompt=[1], max_new_tokens=1, options=bias)
            stream = StoppingStream(model.tokenizer)
            worker.submit([Job(request, stream, reader.deliver, FOREVER)])
            assert [reader.next().text, reader.end().text] == ["", "\ufffd"]
