"""fit, train, prepare, generate: the way a user goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import SMALL, TEXT, call
from gptfit.data import TokenDataset


def test_fit_from_text_to_sample(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted"
    result = call("fit", text, "--time", "4s", "--out", out, *SMALL)
    assert result.code == 0, result.err
    for said in ("tokenizer:", "model:", "one step takes", "validation"):
        assert said in result.err
    for shown in ("nats/token", "bits/byte", "--resume", "gptfit generate", "from_pretrained"):
        assert shown in result.out
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "checkpoints/best/model.safetensors").is_file()
    sample = call("generate", out, "--prompt", "All", "-n", 20, "--seed", 3)
    assert sample.code == 0
    assert sample.out.startswith("All")
    assert len(sample.out) > 10


def test_train_prepared_data_json(text: Path, tmp_path: Path) -> None:
    made = call("prepare", text, "--out", tmp_path / "tokens", "--tokenizer", "char", "--json")
    assert made.code == 0
    assert made.json["train_tokens"] == int(len(TEXT) * 0.9)
    result = call(
        "train", "tiny-char", *SMALL, "max_steps=4", "--data", tmp_path / "tokens",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["step"] == 4
    assert not (tmp_path / "run/data").exists()
    longer = call("train", "--resume", tmp_path / "run", "max_steps=6", "--json")
    assert longer.json["step"] == 6


def test_prepare_from_stdin(tmp_path: Path) -> None:
    result = call("prepare", "-", "--out", tmp_path / "t", "tokenizer=char", stdin=TEXT)
    assert result.code == 0, result.err
    assert "training is the first 2,772 bytes" in result.out
    dataset = TokenDataset.open(tmp_path / "t")
    assert len(dataset.train) + len(dataset.val) == len(TEXT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"caf\xe9 au lait" * 100, "UTF-8"),
        (b"abc\x00def" * 100, "zero byte at byte 3"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "train", "prepare"])
def test_bad_text(verb: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    out = tmp_path / "out"
    given = ["tiny-char", "--data", path, "max_steps=1"] if verb == "train" else [path]
    result = call(verb, *given, "--out", out)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere.txt"], "nowhere.txt: no such file"),
        (["fit", "--time", "soon"], "'soon' is no duration"),
        (["fit", "--time", "0"], "must be positive"),
        (["train", "tiny-char", "max_steps=1", "--data", "nowhere.txt"], "no such file"),
        (["train", "--resume", "nowhere"], "is no run folder"),
        (["train"], "expected one preset"),
        (["generate", "runs/nowhere"], "no such run"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


def test_generate_streams_samples_and_json(run: Path) -> None:
    greedy = call("generate", run, "--prompt", "All ", "--temperature", 0, "-n", 30)
    assert greedy.code == 0
    assert greedy.out == call("generate", run, "--prompt", "All ", "--temperature", 0, "-n", 30).out
    three = call("generate", run, "--prompt", "All ", "--samples", 3, "-n", 12, "--json").json
    assert len(three["samples"]) == 3
    assert len(set(three["samples"])) > 1
    assert call("generate", run, "-n", 5).code == 0  # no prompt: starts at a new line


def test_prompt_from_file_and_stdin(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("each ", encoding="utf-8")
    options = ["--temperature", 0, "-n", 8]
    from_file = call("generate", run, "--prompt-file", tmp_path / "prompt.txt", *options)
    from_stdin = call("generate", run, "--prompt", "-", *options, stdin="each ")
    assert from_file.out == from_stdin.out
    assert from_file.out.startswith("each ")


def test_prompt_with_an_unknown_character(run: Path) -> None:
    result = call("generate", run, "--prompt", "naïve")
    assert result.code == 2
    assert "'ï'" in result.err
    assert "U+00EF" in result.err


def test_prompt_longer_than_the_context_slides_and_says_so(run: Path) -> None:
    result = call("generate", run, "--prompt", TEXT[:100], "-n", 40)
    assert result.code == 0
    assert result.err.count("past the context of 16 tokens") == 1
    assert len(result.out) > 130


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature=-1.0 must be at least 0"),
        (["--temperature", "nan"], "not a finite number"),
        (["--top-k", "0"], "top_k=0"),
        (["--top-p", "1.5"], "top_p=1.5"),
        (["--prompt", "a", "--prompt-file", "b"], "not both"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_generation_options(run: Path, options: list[str], message: str) -> None:
    result = call("generate", run, *options)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_wrong_tokenizer_for_the_model(run: Path, tmp_path: Path) -> None:
    import shutil

    from gptfit.data import Tokenizer

    model = tmp_path / "model"
    shutil.copytree((run / "checkpoints/best").resolve(), model)
    Tokenizer.char([chr(0x4E00 + i) for i in range(500)]).save(model)
    result = call("generate", model, "--prompt", "\u4e00")
    assert result.code == 2
    assert "do not belong together" in result.err


def test_run_that_exists_with_another_config(run: Path, text: Path) -> None:
    result = call("train", "tiny-char", "max_steps=1", "--data", text, "--out", run)
    assert result.code == 2
    assert "already holds a run" in result.err
    assert f"gptfit train --resume {run}" in result.err


def test_resume_with_another_shape(run: Path) -> None:
    result = call("train", "--resume", run, "n_layer=7")
    assert result.code == 2
    assert "n_layer=7 conflicts with n_layer=1" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(text: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gptfit", "train", "tiny-char", *SMALL, "max_steps=1000000"]
    command += ["--data", str(text), "--out", str(out), "log_interval=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert f"gptfit train --resume {out}" in stdout
    pointer = json.loads((out / "checkpoints/last.json").read_text(encoding="utf-8"))
    step = int(pointer["folder"].removeprefix("step-"))
    assert step > 0
    resumed = call("train", "--resume", out, f"max_steps={step + 2}", "--json")
    assert resumed.json["step"] == step + 2
