"""Signals that ask a run to leave."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gptfit.train.interrupt import Interrupt

ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in ASKING]


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_sets_the_flag_and_handlers_are_restored(number: signal.Signals) -> None:
    before = handlers()
    with Interrupt() as interrupt:
        assert not interrupt.is_set
        os.kill(os.getpid(), number)
        assert interrupt.is_set
    assert handlers() == before
    assert interrupt.signal == number
    assert interrupt.exit_code == (130 if number == signal.SIGINT else 0)


def test_a_second_ctrl_c_leaves_at_once() -> None:
    before = handlers()
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.is_set
    assert handlers() == before


def test_a_scheduler_may_repeat_itself() -> None:
    with Interrupt() as interrupt:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert interrupt.signal == signal.SIGUSR1
    assert interrupt.exit_code == 0


def test_torchrun_repeats_a_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.exit_code == 130


def test_in_another_thread_it_waits_for_nothing() -> None:
    before, entered = handlers(), []

    def enter() -> None:
        with Interrupt() as interrupt:
            entered.append(interrupt.is_set)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [False]
    assert handlers() == before
