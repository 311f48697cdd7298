"""runs and plot, as a user calls them."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from command_line import SMALL, call
from gptfit.train.lock import RunLock
from written_run import told, write_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/first"), told(3.0, 2.0, 2.5, 2.25))
    write_run(Path("runs/second [b] é"), told(6.0, 4.0), tokenizer="another", signed=True)
    Path("runs/photos").mkdir()
    for age, name in enumerate(("runs/first/metrics.jsonl", "runs/photos")):
        os.utime(name, (10**9 - age, 10**9 - age))
    return tmp_path


def test_runs(runs: Path) -> None:
    result = call("runs")
    assert result.code == 0
    header, second, first, photos, fault = result.out.splitlines()
    assert header.split()[:2] == ["run", "status"]
    assert second.startswith("runs/second [b] é")
    assert "stopped unexpectedly" in second
    words = [
        "runs/first",
        "finished",
        "40/40",
        "2.2500",
        "2.0000",
        "3.0000",
        "500",
        "1,000",
        "0:20",
    ]
    when = datetime.fromtimestamp(10**9).strftime("%Y-%m-%d %H:%M")
    assert first.split() == [*words, *when.split()]
    assert photos.split()[:2] == ["runs/photos", "unreadable"]
    assert fault == "runs/photos: no run: it holds no recipe.toml"


def test_runs_json(runs: Path) -> None:
    with RunLock(Path("runs/first")):
        listed = {run["name"]: run for run in call("runs", "--json").json}
    assert listed["first"]["status"] == "running"
    assert listed["first"]["best_loss"] == 2.0
    assert listed["photos"]["fault"] == "no run: it holds no recipe.toml"
    assert listed["photos"]["step"] is None


def test_runs_of_given_folders(runs: Path) -> None:
    assert [run["name"] for run in call("runs", "runs/first", "--json").json] == ["first"]
    (runs / "empty").mkdir()
    result = call("runs", "empty")
    assert (result.code, result.out) == (0, "")
    assert "no runs in empty yet; start one: gptfit fit" in result.err
    result = call("runs", "nowhere")
    assert result.code == 2
    assert "nowhere holds no runs: No such file" in result.err


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no runs in runs yet" in call("runs").err
    assert call("runs", "--json").json == []


def test_a_real_run(run: Path) -> None:
    (listed,) = call("runs", run, "--json").json
    assert listed["status"] == "finished"
    assert listed["step"] == listed["max_steps"] == 30
    assert listed["parameters"] > 1000
    assert 0 < listed["best_loss"] <= listed["last_loss"] < 5


def test_plot(runs: Path) -> None:
    result = call("plot", "runs/first")
    assert (result.code, result.out) == (0, "drew curves.png, in nats per token\n")
    result = call("plot", "runs/first", "runs/second [b] é", "--x", "tokens", "--out", "b.svg")
    assert result.out == "drew b.svg, in bits per byte: the runs have different tokenizers\n"
    assert Path("b.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/nowhere"], "runs/nowhere is no run that has begun: metrics.jsonl: No such file"),
        (["runs/first", "--x", "epochs"], "--x epochs is not known; choose from steps, tokens"),
        (["runs/first", "--out", "a.pdf"], "a.pdf: a picture ends in .svg or .png"),
        (["runs/first", "--out", "none/a.png"], "the folder none does not exist"),
        (["runs/first", "--out", "taken.png"], "taken.png cannot be written (Is a directory)"),
    ],
)
def test_plot_refuses(runs: Path, words: list[str], message: str) -> None:
    Path("taken.png").mkdir()
    result = call("plot", *words)
    assert result.code == 2
    assert message in result.err
    assert not Path("curves.png").exists()


@pytest.mark.parametrize("verb", ["train", "fit"])
def test_a_sink_that_is_not_installed_is_found_before_anything_is_done(
    verb: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptfit.train.sinks.find_spec", lambda name: None)
    given = ["tiny-char", "--data", text, "max_steps=2"] if verb == "train" else [text]
    result = call(verb, *given, *SMALL, 'track=["wandb"]', "--out", tmp_path / "run")
    assert result.code == 2
    assert "track=wandb needs wandb; install it with: pip install 'gptfit[track]'" in result.err
    assert not (tmp_path / "run").exists()


def test_a_tracked_run_and_its_continuation(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["tiny-char", *SMALL, "max_steps=4", "track=tensorboard", "tokenizer=char"]
    result = call("train", *words, "--data", text, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    result = call("train", "--resume", tmp_path / "run", "max_steps=6", "--json")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2
    assert json.loads(result.out)["step"] == 6
