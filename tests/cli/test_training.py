"""fit, train, prepare, generate: the way a user goes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import SMALL, TEXT, call
from gptfit.data import TokenDataset, Tokenizer
from gptfit.formats.integrity import verify


def test_fit_from_text_to_sample(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted"
    result = call("fit", text, "--time", "4s", "--out", out, *SMALL)
    assert result.code == 0, result.err
    for said in ("data:", "search:", "model:", "time:", "forecast:", "validation"):
        assert said in result.err
    shows = ("nats/token", "bits/byte", "--resume", "gptfit generate", "from_pretrained")
    for shown in (*shows, "predicted", "came", "tokens/s", "MiB of memory"):
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
    assert len({sample["text"] for sample in three["samples"]}) > 1
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


@pytest.mark.parametrize("size", [23, 500])
def test_wrong_tokenizer_for_the_model(run: Path, tmp_path: Path, size: int) -> None:
    model = tmp_path / "model"
    shutil.copytree((run / "checkpoints/best").resolve(), model)
    Tokenizer.char([chr(0x4E00 + i) for i in range(size)]).save(model)
    result = call("generate", model, "--prompt", "\u4e00")
    assert result.code == 2
    assert "tokenizer.json" in result.err
    (model / "manifest.json").unlink()  # a folder from elsewhere has none
    if size > 23:
        assert "do not belong together" in call("generate", model, "--prompt", "\u4e00").err


def test_damaged_weights_are_not_sampled(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree((run / "checkpoints/best").resolve(), model)
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1000:] = bytes(1000)
    (model / "model.safetensors").write_bytes(content)
    result = call("generate", model)
    assert result.code == 2
    assert "model.safetensors is damaged" in result.err


def test_run_that_exists_with_another_config(run: Path, text: Path) -> None:
    result = call("train", "tiny-char", "max_steps=1", "--data", text, "--out", run)
    assert result.code == 2
    assert "already holds a run" in result.err
    assert f"gptfit train --resume {run}" in result.err


def test_resume_with_another_shape(run: Path) -> None:
    result = call("train", "--resume", run, "n_layer=7")
    assert result.code == 2
    assert "n_layer=7 conflicts with n_layer=1" in result.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGUSR1, 0)]
)
def test_interrupt_saves_and_says_how_to_go_on(
    text: Path, tmp_path: Path, number: int, code: int
) -> None:
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
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert f"gptfit train --resume {out}" in stdout
    pointer = json.loads((out / "checkpoints/last.json").read_text(encoding="utf-8"))
    verify(out / "checkpoints" / pointer["folder"])
    step = int(pointer["folder"].removeprefix("step-"))
    assert step > 0
    resumed = call("train", "--resume", out, f"max_steps={step + 2}", "--json")
    assert resumed.json["step"] == step + 2


@pytest.mark.parametrize("repeats", [5, 25])
def test_the_smallest_text_gets_a_model_that_fits_it(tmp_path: Path, repeats: int) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("A small text, but mine. " * repeats, encoding="utf-8")
    result = call("fit", path, "--time", "2s", "--out", tmp_path / "run", "device=cpu", "--json")
    assert result.code == 0, result.err
    assert result.json["best"]["tokens"] > 0


def test_recipe_of_a_preset_takes_the_vocabulary_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(32 + i % 90) for i in range(4000)), encoding="utf-8")
    assert call("new", tmp_path / "r.toml", "--preset", "nanogpt-shakespeare-char-cpu").code == 0
    result = call(
        "train",
        tmp_path / "r.toml",
        *SMALL,
        "max_steps=2",
        "--data",
        path,
        "--out",
        tmp_path / "run",
    )
    assert result.code == 0, result.err
    config = json.loads((tmp_path / "run/checkpoints/best/config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == 90


def test_text_in_the_overrides_is_the_text(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("fit", f"text={tmp_path}/nowhere.txt", "--out", out)
    assert result.code == 2
    assert "nowhere.txt" in result.err
    assert "named twice" in call("fit", text, f"text={text}", "--out", out).err
    assert not out.exists()


def test_prepared_data_keeps_its_tokenizer(text: Path, tmp_path: Path) -> None:
    call("prepare", text, "--out", tmp_path / "tokens", "--tokenizer", "char")
    result = call(
        "train", "tiny", "max_steps=1", "tokenizer=bpe", "--data", tmp_path / "tokens",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.code == 2
    assert "prepared already, so data.tokenizer cannot change" in result.err


def test_names_with_brackets_and_blanks(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "my [/x] run $a$"
    result = call("train", "tiny-char", *SMALL, "max_steps=2", "--data", text, "--out", out)
    assert result.code == 0, result.err
    assert str(out) in result.out
    assert f"--resume '{out}'" in result.out
    assert call("generate", out, "-n", 3).code == 0


def test_unwritable_places_are_one_line(text: Path, tmp_path: Path) -> None:
    call("prepare", text, "--out", tmp_path / "tokens", "--tokenizer", "char")
    for arguments in (
        [
            "train",
            "tiny-char",
            *SMALL,
            "max_steps=1",
            "--data",
            tmp_path / "tokens",
            "--out",
            text / "x",
        ],
        ["new", tmp_path / "missing" / "r.toml"],
        ["prepare", text, "--out", text / "x"],
    ):
        result = call(*arguments)
        assert result.code == 2
        assert len(result.err.strip().splitlines()) == 1, result.err


def test_interrupted_json_names_the_way_on(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptfit.train.interrupt import Interrupt

    monkeypatch.setattr(Interrupt, "__enter__", lambda self: setattr(self, "is_set", True) or self)
    out = tmp_path / "run"
    result = call(
        "train", "tiny-char", *SMALL, "max_steps=9", "--data", text, "--out", out, "--json"
    )
    assert result.code == 130
    assert result.json["interrupted"] is True
    assert result.json["best"] is None
    assert f"gptfit train --resume {out}" in result.err


@pytest.mark.parametrize("time", ["1h30", "m", "", "-5s", "9" * 400, "2 m"])
def test_bad_durations(time: str) -> None:
    result = call("fit", "--time", time)
    assert result.code == 2
    assert "is no duration" in result.err


def test_time_of_a_resume_is_added(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    call("train", "tiny-char", *SMALL, "--time", "1s", "--data", text, "--out", out)
    spent = call("train", "--resume", out)
    assert spent.code == 2
    assert "has spent its budget" in spent.err
    longer = call("train", "--resume", out, "--time", "1s", "--json")
    assert longer.code == 0, longer.err
    assert longer.json["elapsed_seconds"] > 2


def test_options_are_known(text: Path, tmp_path: Path) -> None:
    result = call("fit", text, "--tiem", "2s", "--out", tmp_path / "run")
    assert result.code == 2
    assert "no such option: --tiem; did you mean '--time'?" in result.err


def test_a_run_without_end_is_refused_before_the_text_is_read(tmp_path: Path) -> None:
    result = call("train", "gpt2", "--data", tmp_path / "nowhere.txt", "--out", tmp_path / "run")
    assert result.code == 2
    assert "the run has no end; give --time 2m" in result.err


def test_a_model_larger_than_the_memory_is_refused(text: Path, tmp_path: Path) -> None:
    result = call(
        "train", "gpt2-xl", "n_layer=1000", "n_positions=8", "tokenizer=char", "max_steps=1", "--data", text,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.code == 2
    assert "R01" in result.err
    assert "GiB" in result.err
    assert not (tmp_path / "run").exists()


def test_prepare_takes_only_what_concerns_tokens(text: Path, tmp_path: Path) -> None:
    result = call("prepare", text, "n_layer=3", "--out", tmp_path / "tokens")
    assert result.code == 2
    assert "model.n_layer has no effect" in result.err


def test_moved_tokens_are_named(text: Path, tmp_path: Path) -> None:
    call("prepare", text, "--out", tmp_path / "tokens", "--tokenizer", "char")
    run = tmp_path / "run"
    call("train", "tiny", *SMALL, "max_steps=1", "--data", tmp_path / "tokens", "--out", run)
    assert call("show", run, "--json").json["recipe"]["data"]["tokenizer"] == "char"
    (tmp_path / "tokens").rename(tmp_path / "elsewhere")
    result = call("train", "--resume", run, "max_steps=2")
    assert result.code == 2
    assert f"{tmp_path / 'tokens'} is missing" in result.err


def test_training_outlives_the_reader_of_its_progress(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gptfit", "train", "tiny-char", *SMALL, "max_steps=30"]
    command += ["--data", str(text), "--out", str(out), "log_interval=1", "eval_interval=5"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (out / "checkpoints/last").resolve().name == "step-000030"


@pytest.mark.parametrize("redirection", ["| true", ">&-"])
def test_nobody_reads_the_result_and_the_locale_is_c(
    text: Path, tmp_path: Path, redirection: str
) -> None:
    arguments = ["tiny-char", *SMALL, "max_steps=2", "--data", str(text), "--out", "run"]
    command = shlex.join([sys.executable, "-m", "gptfit", "train", *arguments])
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {redirection}"],
        cwd=tmp_path, env=os.environ | environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "validation" in result.stderr
    assert not any(word in result.stderr for word in ("Traceback", "Exception", "\x1b"))
    assert (tmp_path / "run/checkpoints/last").resolve().name == "step-000002"
