"""The state of runs, told from their folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptfit.errors import ConfigError
from gptfit.train.events import Event, MetricsFile, NonFinite, Sampled, SaveFailed
from gptfit.train.history import list_runs, summarize
from gptfit.train.lock import RunLock
from written_run import evaluated, saved, started, stepped, told, write_run

NAN = NonFinite(20, 20, None, None, "stop")

STATES: dict[str, tuple[list[Event], bool, str]] = {
    "whole": (told(3.0, 2.0, 2.5, 2.1), False, "finished"),
    "with a sample at the end": ([*told(3, 2, 2, 2), Sampled(40, "a", "ab")], False, "finished"),
    "spent but not saved": (told(3, 2, 2, 2)[:-1], False, "stopped unexpectedly"),
    "resumed and gone": ([*told(3, 2, 2, 2), started(40, 10**6)], True, "stopped unexpectedly"),
    "left on request": ([*told(3), stepped(13), saved(13)], False, "interrupted"),
    "killed": ([*told(3), stepped(13)], True, "stopped unexpectedly"),
    "killed after a save": (told(3), True, "stopped unexpectedly"),
    "an error": ([*told(3), stepped(13)], False, "stopped unexpectedly"),
    "not finite": ([*told(3), stepped(20), NAN], False, "failed"),
    "skipped": ([*told(3), NonFinite(12, 12, None, 1.0, "skip"), stepped(13)], True, "stopped"),
    "disk full": ([*told(3), stepped(20), SaveFailed(20, "no room")], False, "failed"),
    "nothing yet": ([], False, "not started"),
}


@pytest.mark.parametrize("state", STATES)
def test_status(tmp_path: Path, state: str) -> None:
    events, signed, status = STATES[state]
    run = write_run(tmp_path / "run", events, signed=signed)
    summary = summarize(run)
    assert summary.status.startswith(status), summary
    assert summary.parameters
    if events:
        assert summary.step == max(e.step for e in events if e is not NAN)


def test_numbers(tmp_path: Path) -> None:
    summary = summarize(write_run(tmp_path / "run", told(3.0, 2.0, 2.5)))
    assert (summary.step, summary.max_steps, summary.progress) == (30, 40, 0.75)
    assert (summary.last_loss, summary.best_loss, summary.best_step) == (2.5, 2.0, 20)
    assert (summary.last_bits_per_byte, summary.best_bits_per_byte) == (3.75, 3.0)
    assert (summary.tokens_per_second, summary.elapsed_seconds) == (500.0, 15.0)
    assert summary.parameters == 1000


def test_a_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", told(3.0, 2.0, 2.0, 2.0))
    with RunLock(run):
        assert summarize(run).status == "running"
        assert summarize(run).status == "running"  # asking has not taken it away
    assert summarize(run).status == "finished"


def test_asking_leaves_a_lock_that_was_not_given_back(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", told(3.0), signed=True)
    before = (run / ".lock").read_bytes()
    assert summarize(run).status == "stopped unexpectedly"
    assert (run / ".lock").read_bytes() == before


def test_a_resumed_run_forgets_what_it_went_back_over(tmp_path: Path) -> None:
    """As ``MetricsFile.read`` has it, which reads every line."""
    run = write_run(tmp_path / "run", told(3.0))
    back_to = (run / "metrics.jsonl").stat().st_size
    metrics = MetricsFile(run / "metrics.jsonl")
    for event in (stepped(15), evaluated(20, 1.0), saved(20), stepped(25), started(10, back_to)):
        metrics.append(event)
    summary = summarize(run)
    assert (summary.step, summary.best_loss, summary.progress) == (10, 3.0, 0.25)
    metrics.append(stepped(12))
    assert summarize(run).step == 12
    assert [e["step"] for e in metrics.read() if e["event"] == "step"] == [10, 12]


HALVES = {
    "half a line": b'{"event": "step", "step": 35, "lo',
    "half a line that was ended": b'{"event": "step", "step": 35, "lo\n',
    "half a letter": '{"event": "sample", "step": 30, "text": "é'.encode()[:-1],
    "foreign lines": b'3\nnull\n[1]\n{"step": 99}\n{"event": "x"}\n{"event": "x", "step": "y"}\n',
    "brackets": b"[" * 100_000,
    "an event of a later version": b'{"event": "later", "step": 30, "what": [1]}\n',
}


@pytest.mark.parametrize("kind", HALVES)
def test_lines_that_are_no_events_are_passed_over(tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "run", told(3.0, 2.0, 2.5))
    before = summarize(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(HALVES[kind])
    after = summarize(run)
    assert (after.step, after.best_loss, after.fault) == (before.step, before.best_loss, "")
    MetricsFile(run / "metrics.jsonl").read()


def test_a_text_with_line_ends_of_unicode_is_one_line(tmp_path: Path) -> None:
    sample = Sampled(30, "a", "a\u2028b\x85c")
    run = write_run(tmp_path / "run", [*told(3.0, 2.0, 2.5), sample])
    assert MetricsFile(run / "metrics.jsonl").read()[-1]["text"] == sample.text


def test_damaged_and_foreign_folders_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "good", told(3.0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("none of ours", encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    (write_run(tmp_path / "no-recipe", told(3.0)) / "recipe.toml").unlink()
    broken = write_run(tmp_path / "bad-recipe", told(3.0)) / "recipe.toml"
    broken.write_text("n_layer = [", encoding="utf-8")
    odd = write_run(tmp_path / "odd-metrics", told(3.0)) / "metrics.jsonl"
    odd.write_text(json.dumps({"event": "evaluation", "step": 1}) + "\n", encoding="utf-8")
    folder = write_run(tmp_path / "no-metrics", []) / "metrics.jsonl"
    folder.mkdir()
    faults = {summary.name: summary.fault for summary in list_runs([tmp_path])}
    assert faults.keys() == {
        "good", "photos", "no-recipe", "bad-recipe", "odd-metrics", "no-metrics"
    }  # fmt: skip
    assert faults["good"] == ""
    assert faults["photos"] == "no run: it holds no recipe.toml"
    assert "recipe.toml: no such file" in faults["no-recipe"]
    assert "not TOML" in faults["bad-recipe"]
    assert faults["odd-metrics"] == "metrics.jsonl is damaged (KeyError: 'loss')"
    assert "directory" in faults["no-metrics"].lower()


def test_the_latest_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(["b", "c", "a"]):
        os.utime(write_run(tmp_path / name, told(3.0)) / "metrics.jsonl", (1000 - age, 1000 - age))
    assert [summary.name for summary in list_runs([tmp_path])] == ["b", "c", "a"]
    twice = list_runs([tmp_path / "c", tmp_path])
    assert [summary.name for summary in twice] == ["b", "c", "a"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere holds no runs: No such file"):
        list_runs([tmp_path / "nowhere"])


def test_of_a_million_steps_only_the_latest_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptfit.train import history

    run = write_run(tmp_path / "run", [started(), *(stepped(n, of=1000) for n in range(1, 900))])
    parsed: list[bytes] = []
    parse = history.parse
    monkeypatch.setattr(history, "parse", lambda line: parsed.append(line) or parse(line))
    assert summarize(run).step == 899
    assert len(parsed) == 2
