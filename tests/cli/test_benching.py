"""gptfit bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import call

TINY = ["n_layer=1", "n_embd=32", "n_head=2", "n_positions=16", "vocab_size=99", "device=cpu"]
ALONE = ["--contestants", "gptfit", "--rounds", "2", "--steps", "2"]


def test_cases_are_listed() -> None:
    assert "challenge" in call("bench", "--list").out
    listed = call("bench", "--list", "--json").json
    assert [one["case"] for one in listed] == ["step", "recipe", "challenge", "baby"]


def test_step(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = call("bench", *TINY, "tokenizer=char", "--data", text, *ALONE, "--out", out)
    assert result.code == 0, result.err
    assert "gpt2, changed" in result.out
    assert "GOMP_SPINCOUNT=10000" in result.out
    assert "round 2 of 2" in result.err
    values = json.loads(out.read_text(encoding="utf-8"))
    assert values["case"] == "step"
    assert values["passed"]
    (one,) = values["results"]
    assert [row["key"] for row in one["rows"]] == ["gptfit"]
    assert one["batch_size"] == 1  # not the preset's, unless one is asked for
    assert one["recipe"]["data"]["tokenizer"] == "char"
    assert (tmp_path / "result.png").stat().st_size > 1000
    again = call("bench", "--out", out)
    assert again.code == 2
    assert "exists" in again.err


def test_sweep_of_prepared_data(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    assert call("prepare", text, "--tokenizer", "char", "--out", folder).code == 0
    arguments = [*ALONE, "--sweep", "1,2", "--data", folder, "--json"]
    result = call("bench", "step", "gpt2", *TINY, *arguments)
    assert result.code == 0, result.err
    assert [one["batch_size"] for one in result.json["results"]] == [1, 2]
    assert "of char, " in result.json["results"][0]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stpe"], ["no case is called 'stpe'", "did you mean 'step'"]),
        (["everything"], ["choose from step, recipe"]),
        (["step", "gpt3"], ["gpt3"]),
        (["step", "gpt2", "tiny"], ["one model"]),
        (["step", "--nanogpt", "no/such/folder"], ["no/such/folder", "model.py", "karpathy"]),
        (["step", "--contestants", "huggingfaec"], ["did you mean 'huggingface'"]),
        (["step", "--sweep", "some"], ["'some'", "8,16,32"]),
        (["step", "--sweep", "0"], ["batch_size=0"]),
        (["step", "--time", "5m"], ["--time has no effect on the case step"]),
        (["challenge", "--rounds", "3"], ["--rounds has no effect"]),
        (["challenge", "--time", "soon"], ["soon"]),
        (["challenge", "gpt2"], ["lets fit choose"]),
        (["challenge", "--data", "missing.txt"], ["missing.txt"]),
        (["step", "--data", "-"], ["standard input"]),
        (["step", "dropout=0.2"], ["cannot be compared"]),
        (["step", "device=cuda:7"], ["cuda:7 is not available"]),
        (["step", "batch_size=1048576"], ["GB can be had"]),
        (["step", *TINY[:-2], "vocab_size=9", "tokenizer=char"], ["vocab_size=9"]),
        (["step", "--out", "result.yaml"], [".json"]),
        (["step", "--out", "no/such/folder/a.json"], ["no/such/folder"]),
        (["recipe"], ["--nanogpt DIR"]),
        (["recipe", "gpt2"], ["--recipe gpt2"]),
        (["recipe", "--recipe", "no-such"], ["no preset is called 'no-such'"]),
        (["recipe", "--nanogpt", "."], ["train.py"]),
    ],
)
def test_bad_input(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = call("bench", *arguments)
    assert result.code == 2, result.err
    for word in words:
        assert word in result.err


def test_without_a_gpu_its_cases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = call("bench", "baby")
    assert result.code == 2
    assert "baby needs a GPU: device=cuda is not available on this machine" in result.err
