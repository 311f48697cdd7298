"""Recipes: layers in order, an origin for every value, files that bring back what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptfit.config import DataConfig, GPT2Config, Recipe, RunConfig, TrainConfig, presets
from gptfit.config.checks import names_of
from gptfit.config.sections import SECTIONS
from gptfit.errors import ConfigError
from random_configs import random_config

BABY = "nanogpt-shakespeare-char"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    recipe = Recipe.resolve()
    assert recipe == Recipe()
    assert (recipe.model, recipe.train) == (GPT2Config(), TrainConfig())
    assert set(recipe.origins) == {
        f"{t}.{name}" for t, cls in SECTIONS.items() for name in names_of(cls)
    }
    assert recipe.origins["model.n_layer"] == "default"
    assert recipe.origins["model.n_inner"] == "follows n_embd"
    assert recipe.origins["train.min_lr"] == "follows learning_rate"
    assert recipe.origins["train.learning_rate"] == "rule: for what Muon leaves"


def test_the_learning_rate_follows_the_width_until_somebody_sets_it() -> None:
    narrow = Recipe.resolve(overrides=["n_embd=64", "n_head=1", "optimizer=adamw"])
    assert (narrow.train.learning_rate, narrow.train.min_lr) == (0.004, 0.0004)
    wide = narrow.override(["n_embd=1024", "n_head=16"])
    assert (wide.train.learning_rate, wide.train.min_lr) == (0.001, 0.0001)
    assert wide.override(["lr=5e-4"]).override(["n_embd=64"]).train.learning_rate == 5e-4
    assert wide.override(["optimizer=muon"]).train.learning_rate == 0.004
    assert Recipe.from_dict(wide.to_dict()).train.learning_rate == 0.001


def test_weights_to_start_from_are_tuned_gently() -> None:
    tuned = Recipe.resolve(overrides=["init_from=runs/mine"])
    assert (tuned.train.optimizer, tuned.train.learning_rate) == ("adamw", pytest.approx(1.15e-4))
    assert tuned.origins["train.optimizer"] == "rule: weights that AdamW has trained"
    assert tuned.override(["n_embd=64", "n_head=1"]).train.learning_rate == pytest.approx(4e-4)
    assert tuned.override(["init_from="]).train == Recipe().train
    said = Recipe.resolve(overrides=["init_from=runs/mine", "optimizer=muon", "lr=1e-3"]).train
    assert (said.optimizer, said.learning_rate) == ("muon", 1e-3)


def test_layers(tmp_path: Path) -> None:
    file = write(
        tmp_path / "my.toml", "[model]\nn_layer = 5\ndropout = 0.1\n[train]\nlr = 2e-3\nsteps = 7\n"
    )
    recipe = Recipe.resolve(BABY, file, ["train.lr=3e-3", "n_embd=192"])
    origins = recipe.origins
    assert (recipe.model.n_head, origins["model.n_head"]) == (6, f"preset {BABY}")
    assert (recipe.model.n_layer, origins["model.n_layer"]) == (5, f"file {file}")
    assert (recipe.model.embd_pdrop, origins["model.embd_pdrop"]) == (0.1, f"file {file}")
    assert (recipe.train.max_steps, origins["train.max_steps"]) == (7, f"file {file}")
    assert (recipe.model.n_embd, origins["model.n_embd"]) == (192, "command line")
    assert (recipe.train.learning_rate, origins["train.learning_rate"]) == (3e-3, "command line")
    assert (recipe.model.n_inner, recipe.train.min_lr) == (768, 3e-4)
    assert origins["train.weight_decay"] == "default"
    assert recipe.name == BABY


def test_a_file_may_start_from_a_preset(tmp_path: Path) -> None:
    file = write(tmp_path / "my.toml", 'preset = "gpt2-xl"\nname = "mine"\n[model]\nn_layer = 2\n')
    recipe = Recipe.load(file)
    assert (recipe.name, recipe.model.n_embd, recipe.model.n_layer) == ("mine", 1600, 2)
    assert recipe.origins["model.n_embd"] == "preset gpt2-xl"
    assert Recipe.resolve("1558M", file) == recipe
    with pytest.raises(
        ConfigError, match=r"starts from preset 'gpt2-xl', but preset 'tiny' was asked for"
    ):
        Recipe.resolve("tiny", file)
    write(file, 'preset = "gpt2-xxl"')
    with pytest.raises(
        ConfigError, match=r"my.toml: no preset is called 'gpt2-xxl'; did you mean 'gpt2-xl'"
    ):
        Recipe.load(file)


def test_a_flat_file_is_a_model_with_a_batch_size(tmp_path: Path) -> None:
    values = {
        "name": "T",
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 192,
        "block_size": 128,
        "batch_size": 16,
    }
    file = write(tmp_path / "tiny.json", json.dumps(values | {"device": "cpu", "description": "d"}))
    recipe = Recipe.load(file)
    assert (recipe.name, recipe.description, recipe.run.device) == ("T", "d", "cpu")
    assert (recipe.train.batch_size, recipe.train.micro_batch_size) == (16, 16)
    assert (recipe.model.vocab_size, recipe.origins["model.vocab_size"]) == (50304, f"file {file}")
    assert recipe.origins["train.batch_size"] == f"file {file}"
    with pytest.raises(ConfigError, match=r"train.batch_size='16' must be an integer"):
        Recipe.from_dict(values | {"batch_size": "16"})
    with pytest.raises(ConfigError, match="name=3 must be a string"):
        Recipe.from_dict(values | {"name": 3})


def test_a_nanogpt_file_brings_its_activation(tmp_path: Path) -> None:
    file = write(tmp_path / "args.json", '{"model_args": {"block_size": 64, "vocab_size": 65}}')
    assert Recipe.load(file).model.activation_function == "gelu"
    assert Recipe.from_dict({"model": {"block_size": 64}}).model.activation_function == "gelu_new"


def test_a_hugging_face_file_layers_above_a_preset(tmp_path: Path) -> None:
    file = write(tmp_path / "config.json", '{"n_layer": 3, "model_type": "gpt2"}')
    recipe = Recipe.resolve("gpt2-medium", file)
    assert (recipe.model.n_layer, recipe.model.n_embd) == (3, 1024)


def test_all_faults_of_all_sections_in_one_error(tmp_path: Path) -> None:
    file = write(
        tmp_path / "bad.toml",
        'n_layer = 3\ntrain = {batch_size = 0, learning_rat = 1}\nzzz = 1\n[model]\nn_head = 7\n[run]\ndevice = "gpu"\n[modle]\n',
    )
    with pytest.raises(ConfigError) as caught:
        Recipe.resolve(file=file, overrides=["val_fraction=0.9", "micro_batch_size=x"])
    messages = {problem.field: str(problem) for problem in caught.value.problems}
    assert set(messages) == {
        "n_layer", "zzz", "modle", "model.n_head", "train.batch_size", "train.learning_rat",
        "train.micro_batch_size", "run.device", "data.val_fraction",
    }  # fmt: skip
    assert (
        messages["n_layer"]
        == f"file {file}: n_layer is outside of any section; move it into [model]"
    )
    assert messages["modle"].endswith("did you mean 'model'?")
    assert messages["train.batch_size"].startswith(
        f"file {file}: train.batch_size=0 must be at least 1"
    )
    assert (
        messages["train.learning_rat"]
        == f"file {file}: [train] unknown key 'learning_rat'; did you mean 'learning_rate'?"
    )
    assert messages["data.val_fraction"].startswith(
        "command line: data.val_fraction=0.9 is beyond 0.5"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": 5}, "train=5 must be a section; write its keys under [train]"),
        ({"model": {"n_layers": 1}}, "[model] unknown key 'n_layers'; did you mean 'n_layer'?"),
        ({"preset": 5}, "preset=5 must be a string"),
        ({"train": {1: 2}}, "unknown key 1"),
        ({"train": {"lr": 1, "learning_rate": 2}}, "lr=1 and learning_rate=2 contradict"),
    ],
)
def test_faults_of_form(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("seed", range(8))
def test_save_and_load(tmp_path: Path, suffix: str, seed: int) -> None:
    recipe = Recipe(
        model=random_config(seed, eos_token_id=[None, 1][seed % 2], vocab_size=50257),
        data=DataConfig(text=("a \"b\"\\é\n", "-"), bpe_vocab_size=[None, 300][seed % 2]),
        train=TrainConfig(batch_size=8, **([{}, {"micro_batch_size": 4, "max_seconds": 60}][seed % 2])),
        run=RunConfig(sample_prompt="none"),
        name="a name",
        description="with = signs",
    )  # fmt: skip
    recipe.save(tmp_path / f"recipe{suffix}")
    again = Recipe.load(tmp_path / f"recipe{suffix}")
    assert again == recipe == Recipe.from_dict(recipe.to_dict())
    for title in SECTIONS:
        assert getattr(again, title).following == getattr(recipe, title).following


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
def test_presets_save_and_load(tmp_path: Path, name: str) -> None:
    recipe = Recipe.resolve(name)
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_save_names_its_formats(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown file type '.yaml'; use .json or .toml"):
        Recipe().save(tmp_path / "recipe.yaml")


def test_with_model() -> None:
    recipe = Recipe.resolve("gpt2", overrides=["n_layer=3"])
    changed = recipe.with_model(recipe.model.replace(vocab_size=300, eos_token_id=0), "tokenizer")
    assert changed.model.vocab_size == 300
    assert (
        changed.origins["model.vocab_size"] == changed.origins["model.eos_token_id"] == "tokenizer"
    )
    assert changed.origins["model.bos_token_id"] == "follows vocab_size"
    assert changed.origins["model.n_layer"] == "command line"
    assert changed.origins["model.n_embd"] == "preset gpt2"
    assert recipe.origins["model.vocab_size"] == "preset gpt2"


def test_override_keeps_the_other_origins() -> None:
    recipe = Recipe.resolve("gpt2", overrides=["n_layer=3"])
    recipe = recipe.override({"data.text": ("a",)}, "text")
    changed = recipe.override(["batch_size=24", "n_embd=384"])
    assert (changed.model.n_layer, changed.model.n_inner) == (3, 1536)
    assert (changed.train.batch_size, changed.train.micro_batch_size) == (24, 24)
    expected = {"train.batch_size": "command line", "model.n_embd": "command line"}
    assert changed.origins == recipe.origins | expected
    assert (changed.data.text, changed.origins["data.text"]) == (("a",), "text")
    assert recipe.override([]) == recipe
    fitted = recipe.override({"train.lr": 1e-3}, "fit").named("mine")
    assert (fitted.name, fitted.origins["train.learning_rate"]) == ("mine", "fit")
    with pytest.raises(
        ConfigError, match=r"^command line: train.learning_rate=0.0 must be positive"
    ):
        recipe.override(["lr=0"])


def test_to_dict_resolved_shows_every_value() -> None:
    values = Recipe.resolve("tiny").to_dict(resolved=True)
    assert (values["model"]["n_inner"], values["train"]["micro_batch_size"]) == (768, 16)
    assert "n_inner" not in Recipe.resolve("tiny").to_dict()["model"]
    assert Recipe.from_dict(values) == Recipe.resolve("tiny")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainConfig, {"batch_size": 12, "micro_batch_size": 5}, "micro_batch_size=5 does not divide batch_size=12; try 4"),
        (TrainConfig, {"min_lr": 1e-2}, "min_lr=0.01 is above learning_rate=0.004; use at most 0.004"),
        (TrainConfig, {"schedule": "cosin"}, "did you mean 'cosine'?"),
        (TrainConfig, {"beta2": 1.0}, "beta2=1.0 must be in [0, 1); the default is 0.95"),
        (TrainConfig, {"max_steps": 0}, "max_steps=0 must be positive"),
        (TrainConfig, {"steps": 5, "max_iters": 6}, "contradict each other; give only max_steps"),
        (TrainConfig, {"seed": -1}, "seed=-1 must be at least 0; the default is 1337"),
        (TrainConfig, {"grad_clip": -1}, "grad_clip=-1.0 must be at least 0"),
        (TrainConfig, {"decay_lr": False}, "use schedule=constant"),
        (DataConfig, {"text": "a.txt"}, "text='a.txt' must be a list of strings; write text=['a.txt']"),
        (DataConfig, {"text": [""]}, "names no file"),
        (DataConfig, {"tokenizer": "cahr"}, "did you mean 'char'?"),
        (DataConfig, {"tokenizer": "wordpiece"}, "or the path of a tokenizer.json"),
        (DataConfig, {"val_fraction": 0}, "val_fraction=0.0 must be positive"),
        (DataConfig, {"bpe_vocab_size": 256}, "bpe_vocab_size=256 must be at least 257"),
        (DataConfig, {"input_file": "a"}, "use text=..."),
        (RunConfig, {"device": "gpu"}, "choose one of auto, cpu, cuda, cuda:N, mps"),
        (RunConfig, {"dtype": "float16"}, "dtype='float16' is not known"),
        (RunConfig, {"keep_checkpoints": 0}, "keep_checkpoints=0 must be at least 1; the default is 2"),
        (RunConfig, {"pad_vocab_to_multiple": 0}, "must be at least 1"),
    ],
)  # fmt: skip
def test_bad_section(section: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**values)
    assert message in str(caught.value)


def test_train_fields_follow() -> None:
    train = TrainConfig(batch_size=24)
    assert (train.micro_batch_size, train.grad_accum_steps) == (24, 1)
    assert train.replace(micro_batch_size=8).replace(batch_size=48).grad_accum_steps == 6
    assert train.replace(lr=1e-2).min_lr == 1e-3
