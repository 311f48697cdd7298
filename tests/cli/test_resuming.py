"""Taking runs up again, by hand and by themselves, and starting from the weights of others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import SMALL, TEXT, Result, call
from gptfit.formats.hf import load_model
from gptfit.formats.integrity import verify
from gptfit.train.recovery import newest

ARGUMENTS = ["train", "tiny-char", *SMALL, "eval_interval=2", "log_interval=1"]


def auto(out: Path, text: Path, *more: object) -> Result:
    return call(*ARGUMENTS, *more, "--data", text, "--out", out, "--resume", "auto")


@pytest.fixture
def stopped(text: Path, tmp_path: Path) -> Path:
    """A run of six steps, with checkpoints at 4 and 6 and another best or none."""
    out = tmp_path / "run"
    assert auto(out, text, "max_steps=6").code == 0
    return out


def damage(checkpoint: Path) -> None:
    path = checkpoint / "training/optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def test_auto_starts_goes_on_and_stops_by_the_same_command(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = auto(out, text, "max_steps=4", "--json")
    assert first.code == 0, first.err
    assert f"{out} holds no checkpoint: it starts afresh" in first.err
    assert first.json["step"] == 4
    second = auto(out, text, "max_steps=8", "--json")
    assert second.code == 0, second.err
    assert second.json["step"] == 8
    third = auto(out, text, "max_steps=8")
    assert third.code == 0
    assert "has spent its budget after 8 steps" in third.err


def test_auto_passes_over_a_damaged_checkpoint_and_says_so(stopped: Path, text: Path) -> None:
    damage(stopped / "checkpoints/step-000006")
    by_hand = call("train", "--resume", stopped, "max_steps=8")
    assert by_hand.code == 2
    assert "training/optimizer.safetensors is damaged" in by_hand.err
    assert f"gptfit train --resume {stopped}/checkpoints/step-000004" in by_hand.err
    result = auto(stopped, text, "max_steps=8", "--json")
    assert result.code == 0, result.err
    warning = next(line for line in result.err.splitlines() if "optimizer.safetensors" in line)
    assert warning.startswith("warning: ")
    assert "its sha256 is " in warning
    assert "expected is " in warning
    assert "falling back to step-000004" in warning
    assert (stopped / "checkpoints/left-step-000006").is_dir()
    assert result.json["step"] == 8
    verify(newest(stopped))


def test_nothing_is_started_over_when_all_checkpoints_are_damaged(
    stopped: Path, text: Path
) -> None:
    for folder in (stopped / "checkpoints").glob("step-*"):
        damage(folder)
    result = auto(stopped, text, "max_steps=8")
    assert result.code == 2
    assert "optimizer.safetensors is damaged" in result.err


def test_a_checkpoint_that_no_pointer_names_is_found(stopped: Path, text: Path) -> None:
    """Killed between the rename and the pointer; or before the first pointer."""
    pointer = stopped / "checkpoints/last.json"
    pointer.write_text('{"folder": "step-000004"}', encoding="utf-8")
    assert call("train", "--resume", stopped, "max_steps=7", "--json").json["step"] == 7
    pointer.unlink()
    assert auto(stopped, text, "max_steps=8", "--json").json["step"] == 8


def test_going_back_to_an_earlier_checkpoint(stopped: Path, text: Path) -> None:
    result = call("train", "--resume", stopped / "checkpoints/step-000004", "max_steps=5", "--json")
    assert result.code == 0, result.err
    assert "what came later is now left-step-000006" in result.err
    assert result.json["step"] == 5
    assert newest(stopped).name == "step-000005"
    assert auto(stopped, text, "max_steps=7", "--json").json["step"] == 7


def test_links_name_checkpoints_too(stopped: Path) -> None:
    result = call("train", "--resume", stopped / "checkpoints/last", "max_steps=7", "--json")
    assert result.json["step"] == 7


@pytest.mark.parametrize("where", ["nowhere", "run/checkpoints/step-000099", "run/checkpoints"])
def test_what_is_not_there_cannot_be_resumed(stopped: Path, where: str) -> None:
    result = call("train", "--resume", stopped.parent / where, "max_steps=9")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert where.split("/")[-1] in result.err


def test_auto_needs_a_folder(text: Path) -> None:
    result = call(*ARGUMENTS, "max_steps=1", "--data", text, "--resume", "auto")
    assert result.code == 2
    assert "--resume auto needs --out RUN" in result.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["n_layer=2"], "n_layer=2 conflicts with n_layer=1"),
        (["lr=0.5"], "learning_rate=0.5 conflicts with"),
        (["tokenizer=bpe"], "tokenizer='bpe' conflicts with tokenizer='char'"),
    ],
)
def test_auto_refuses_another_run(stopped: Path, text: Path, more: list[str], message: str) -> None:
    result = auto(stopped, text, "max_steps=8", *more)
    assert result.code == 2
    assert message in result.err


def test_auto_refuses_another_text(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    result = auto(stopped, tmp_path / "other.txt", "max_steps=8")
    assert result.code == 2
    assert "other.txt" in result.err
    assert "--new-data" in result.err


def test_new_data_has_to_be_asked_for_and_told_apart(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    tokenizer = ["--tokenizer", stopped / "data/tokenizer.json"]
    made = call("prepare", tmp_path / "other.txt", "--out", tmp_path / "tokens", *tokenizer)
    assert made.code == 0, made.err
    resume = ["train", "--resume", stopped, "max_steps=8", "--data", tmp_path / "tokens"]
    refused = call(*resume)
    assert refused.code == 2
    assert "--new-data" in refused.err
    result = call(*resume, "--new-data", "--json")
    assert result.code == 0, result.err
    assert f"warning: from step 6 on, {stopped} is trained on other data" in result.err
    assert result.json["best_step"] == 8
    assert call("train", "--resume", stopped, "max_steps=9").code == 0


def test_new_data_of_another_tokenizer_is_refused(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT + "ß", encoding="utf-8")
    call("prepare", tmp_path / "other.txt", "--out", tmp_path / "tokens", "--tokenizer", "char")
    result = call(
        "train", "--resume", stopped, "max_steps=8", "--data", tmp_path / "tokens", "--new-data"
    )
    assert result.code == 2
    assert "another tokenizer" in result.err
    text = call("train", "--resume", stopped, "--data", tmp_path / "other.txt", "--new-data")
    assert "gptfit prepare TEXT" in text.err


def test_data_changed_in_place_is_noticed(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    tokenizer = stopped / "data/tokenizer.json"
    call("prepare", tmp_path / "other.txt", "--out", tmp_path / "new", "--tokenizer", tokenizer)
    shutil.rmtree(stopped / "data")
    (tmp_path / "new").rename(stopped / "data")
    refused = call("train", "--resume", stopped, "max_steps=8")
    assert refused.code == 2
    assert "is not the data that" in refused.err
    assert call("train", "--resume", stopped, "max_steps=8", "--new-data").code == 0


@pytest.mark.parametrize("left", ["setting up", "half the data", "no checkpoint", "half a save"])
def test_auto_starts_a_run_that_was_killed_before_its_first_checkpoint(
    stopped: Path, text: Path, left: str
) -> None:
    checkpoints = stopped / "checkpoints"
    if left == "half a save":
        (checkpoints / "step-000006").rename(checkpoints / ".tmp-step-000002")
        (checkpoints / ".tmp-step-000002/manifest.json").unlink()
    for folder in checkpoints.glob("step-*" if left == "half a save" else "*"):
        folder.unlink() if folder.is_file() or folder.is_symlink() else shutil.rmtree(folder)
    if left in ("setting up", "half the data"):
        shutil.rmtree(checkpoints)
        (stopped / "data/tokens.json").unlink()
        (stopped / "metrics.jsonl").unlink()
    if left == "setting up":
        (stopped / "recipe.toml").unlink()
        shutil.rmtree(stopped / "data")
        (stopped / "data/.preparing-xyz").mkdir(parents=True)
    (stopped / "loss.png").unlink()
    result = auto(stopped, text, "max_steps=3", "--json")
    assert result.code == 0, result.err
    assert "starts afresh" in result.err
    assert result.json["step"] == 3
    assert not list(stopped.rglob(".preparing-*")) + list(stopped.rglob(".tmp-*"))


def test_a_run_killed_while_it_trains_goes_on(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gptfit", *ARGUMENTS, "max_steps=1000000"]
    command += ["--data", str(text), "--out", str(out), "--resume", "auto"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    while not (out / "checkpoints/last.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    second = call(*ARGUMENTS, "max_steps=9", "--data", text, "--out", out, "--resume", "auto")
    assert second.code == 2
    assert f"is being trained by process {process.pid} on " in second.err
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = int(newest(out).name.removeprefix("step-"))
    result = auto(out, text, f"max_steps={step + 2}", "--json")
    assert result.code == 0, result.err
    assert result.json["step"] == step + 2


@pytest.mark.parametrize("kind", ["run", "checkpoint"])
def test_a_run_starts_from_the_weights_of_another(stopped: Path, tmp_path: Path, kind: str) -> None:
    origin = stopped if kind == "run" else stopped / "checkpoints/step-000006"
    (tmp_path / "tune.txt").write_text(TEXT[500:], encoding="utf-8")
    out = tmp_path / "tuned"
    result = call(
        "train", "tiny-char", "max_steps=2", "dropout=0.3", "lr=1e-9", "device=cpu",
        "--data", tmp_path / "tune.txt", "--init-from", origin, "--out", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    best = stopped / "checkpoints" / ("best" if kind == "run" else "step-000006")
    given, tuned = load_model(best), load_model(out / "checkpoints/last")
    assert tuned.config == given.config.replace(dropout=0.3)
    difference = (given.wte.weight - tuned.wte.weight).abs().max()
    assert 0 < difference < 1e-6
    assert (out / "data/tokenizer.json").read_bytes() == (best / "tokenizer.json").read_bytes()
    recipe = (out / "recipe.toml").read_text(encoding="utf-8")
    assert f'init_from = "{origin}"' in recipe
    assert call("train", "--resume", out, "max_steps=3", "--json").json["step"] == 3


def test_auto_starts_from_weights_once(stopped: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    words = ["train", "tiny-char", "device=cpu", "--data", text, "--init-from", stopped]
    words += ["--out", out, "--resume", "auto", "--json"]
    assert call(*words, "max_steps=2").json["step"] == 2
    result = call(*words, "max_steps=4")
    assert result.code == 0, result.err
    assert result.json["step"] == 4


def test_weights_keep_their_shape(stopped: Path, text: Path, tmp_path: Path) -> None:
    result = call(
        "train", "tiny-char", "max_steps=2", "n_layer=3", "bias=false", "activation_function=relu",
        "--data", text, "--init-from", stopped, "--out", tmp_path / "tuned",
    )  # fmt: skip
    assert result.code == 2
    assert "n_layer=3 (command line), but the weights of" in result.err
    assert "have 1" in result.err
    assert "activation_function='relu'" in result.err
    assert not (tmp_path / "tuned").exists()


def test_weights_keep_their_tokenizer(stopped: Path, text: Path, tmp_path: Path) -> None:
    common = ["train", "tiny-char", "max_steps=2", "--init-from", stopped]
    common += ["--out", tmp_path / "tuned"]
    other = call(*common, "--data", text, "tokenizer=bpe")
    assert other.code == 2
    assert "has its tokenizer, so data.tokenizer cannot change" in other.err
    (tmp_path / "other.txt").write_text(TEXT + "ß", encoding="utf-8")
    unknown = call(*common, "--data", tmp_path / "other.txt")
    assert unknown.code == 2
    assert "'ß'" in unknown.err
    call("prepare", tmp_path / "other.txt", "--out", tmp_path / "tokens", "--tokenizer", "char")
    prepared = call(*common, "--data", tmp_path / "tokens")
    assert prepared.code == 2
    assert "was made with another tokenizer" in prepared.err


def test_weights_that_are_not_there(text: Path, tmp_path: Path) -> None:
    result = call(
        "train", "tiny-char", "max_steps=2", "--data", text, "--init-from", tmp_path / "nowhere",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.code == 2
    assert "no such run or checkpoint folder" in result.err
    assert not (tmp_path / "run").exists()


def test_no_room_for_a_checkpoint_is_said_before_the_first_step(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = call(*ARGUMENTS, "max_steps=2", "--data", text, "--out", tmp_path / "run")
    assert result.code == 2
    assert "bytes" in result.err
    metrics = tmp_path / "run/metrics.jsonl"
    assert not metrics.exists() or '"step"' not in metrics.read_text(encoding="utf-8")
    monkeypatch.undo()
    assert auto(tmp_path / "run", text, "max_steps=2").code == 0
    assert json.loads((tmp_path / "run/checkpoints/last.json").read_text())
