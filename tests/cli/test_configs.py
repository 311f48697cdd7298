"""show, presets, lint, new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import call
from gptfit.config import GPT2Config, Recipe, presets


def test_show_preset_with_origins() -> None:
    result = call("show", "gpt2", "n_layer=6", "--lr", "1e-3")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["model.n_layer", "6", "command", "line"] in lines
    assert ["train.learning_rate", "0.001", "command", "line"] in lines
    assert ["model.n_inner", "3072", "follows", "n_embd"] in lines
    assert "81,912,576 parameters" in result.out


def test_show_formula() -> None:
    out = call("show", "gpt2", "--formula").out
    assert "V·C" in out
    assert "50257·768" in out
    assert "124,439,808" in out
    assert "tied 124,439,808 · untied 163,037,184" in out


def test_show_json() -> None:
    values = call("show", "gpt2-xl", "--json").json
    assert values["parameters"]["total"] == 1_557_611_200
    assert values["recipe"]["model"]["n_embd"] == 1600
    assert values["origins"]["model.n_embd"] == "preset gpt2-xl"


def test_show_old_name_with_a_note() -> None:
    result = call("show", "117M")
    assert result.code == 0
    assert "117M is the old name of gpt2" in result.err


def test_show_file_run_and_checkpoint(tmp_path: Path, run: Path) -> None:
    GPT2Config(n_layer=3).save(tmp_path / "config.json")
    assert "model.n_layer" in call("show", tmp_path / "config.json").out
    assert "(checkpoint)" in call("show", tmp_path).out
    shown = call("show", run)
    assert "(run)" in shown.out
    assert "model.n_embd" in shown.out
    assert call("show", run / "checkpoints/best").code == 0


@pytest.mark.parametrize("preset", [preset.name for preset in presets()])
def test_show_every_preset(preset: str) -> None:
    result = call("show", preset)
    assert result.code == 0
    assert result.err == ""


def test_presets_lists_counts_and_names_that_are_off() -> None:
    result = call("presets")
    assert result.code == 0
    for preset in presets():
        assert preset.name in result.out
    assert "Really 538M." in result.out
    assert "152,101,632" in result.out
    assert len(call("presets", "--json").json) == len(presets())


def test_new_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    result = call("new", path, "--preset", "tiny", "n_layer=6", "--lr=2e-4")
    assert result.code == 0
    recipe = Recipe.load(path)
    assert (recipe.model.n_layer, recipe.model.n_embd, recipe.train.learning_rate) == (6, 192, 2e-4)
    again = call("new", path)
    assert again.code == 2
    assert "exists" in again.err
    assert call("new", path, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "gtp2"], "did you mean 'gpt2'"),
        (["show", "gpt2", "n_layers=3"], "did you mean 'n_layer'"),
        (["show", "gpt2", "n_layer=three"], "must be an integer"),
        (["show", "gpt2", "--jsn"], "no such option: --jsn; did you mean '--json'"),
        (["show", "gpt2", "frobnicate=1"], "`gptfit show gpt2` lists all keys"),
        (["show", "gpt2", "--n-layer"], "--n-layer has no value"),
        (["show", "gpt2", "gpt2-xl"], "expected one preset"),
        (["show", "gpt2", "n_head=10"], "n_head=10 does not divide n_embd=768"),
        (["show", "no/such/file.json"], "no such file, and no preset has that name"),
        (["new", "recipe.yaml"], "ends in .toml or .json"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"n_embd": 768, "n_head": 10, "n_hed": 1}), encoding="utf-8")
    result = call("show", path)
    assert result.code == 2
    assert "n_head=10 does not divide" in result.err
    assert "did you mean 'n_head'" in result.err
    assert str(path) in result.err


def test_new_and_show_agree(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    said = call("new", path, "--preset", "nanogpt-shakespeare-char-cpu", "n_layer=6").err
    count = f"{call('show', path, '--json').json['parameters']['total']:,} parameters"
    assert count in said
    assert call("show", path, "--json").json["origins"]["model.vocab_size"].startswith("preset")
    assert "--time 2m" not in said  # the preset has an end
    assert "--time 2m" in call("new", tmp_path / "endless.toml").err
