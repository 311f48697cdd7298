"""Overrides: found in their section, read by their type, refused with a suggestion."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from gptfit.config import Recipe
from gptfit.config.overrides import parse_overrides, words_of
from gptfit.config.sections import SECTIONS
from gptfit.errors import ConfigError


def test_bare_words_are_unambiguous() -> None:
    words = Counter(word for title in SECTIONS for word in words_of(title))
    assert [word for word, count in words.items() if count > 1] == []
    elsewhere = {word for cls in SECTIONS.values() for word in cls.ELSEWHERE}
    assert not elsewhere & set(words)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["n_layer=6"], ["n_layer=6"]),
        (["--n_layer=6", "--n-head=6"], ["n_layer=6", "n_head=6"]),
        (["--n-layer", "6", "lr=1e-3"], ["n_layer=6", "lr=1e-3"]),
        (["--train.weight-decay", "0"], ["train.weight_decay=0"]),
        (["--seed", "-1"], ["seed=-1"]),
        (["sample_prompt=a=b --c"], ["sample_prompt=a=b --c"]),
        (["sample_prompt="], ["sample_prompt="]),
        (["text=a\nb"], ["text=a\nb"]),
        ([], []),
    ],
)
def test_parse(args: list[str], expected: list[str]) -> None:
    assert parse_overrides(args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bias"], "--bias has no value; write --bias=..."),
        (["--bias", "--n_layer=3"], "--bias has no value"),
        (["--bias", "--lr", "3"], "--bias has no value"),
        (["6"], "'6' is no override; write key=value"),
        (["=6"], "'=6' is no override"),
        (["-n_layer=6"], "'-n_layer=6' is no override"),
        (["--", "x"], "'--' is no override"),
        (["n layer=6"], "'n layer=6' is no override"),
    ],
)
def test_junk(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(args)
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("n_layer=6", "model.n_layer", 6),
        ("model.n-layer=6", "model.n_layer", 6),
        ("dropout=0", "model.attn_pdrop", 0.0),
        ("bias=False", "model.bias", False),
        ("n_inner=none", "model.n_inner", 3072),
        ("n_inner=auto", "model.n_inner", 3072),
        ("eos_token_id=null", "model.eos_token_id", None),
        ("summary_activation=tanh", "model.summary_activation", "tanh"),
        ("lr=3e-4", "train.learning_rate", 3e-4),
        ("train.lr=1", "train.learning_rate", 1.0),
        ("steps=1_000", "train.max_steps", 1000),
        ("max_iters=7", "train.max_steps", 7),
        ("max_seconds=120", "train.max_seconds", 120.0),
        ("max_steps=none", "train.max_steps", None),
        ("text=a b.txt", "data.text", ("a b.txt",)),
        ('text=["a.txt", "b"]', "data.text", ("a.txt", "b")),
        ("tokenizer=runs/x/tokenizer.json", "data.tokenizer", "runs/x/tokenizer.json"),
        ("device=cuda:1", "run.device", "cuda:1"),
        ("sample_prompt=none", "run.sample_prompt", "none"),
        ("sample_prompt=6", "run.sample_prompt", "6"),
    ],
)
def test_value(override: str, path: str, value: Any) -> None:
    title, name = path.split(".")
    recipe = Recipe.resolve(overrides=[override])
    found = getattr(getattr(recipe, title), name)
    assert (found, type(found)) == (value, type(value))
    assert recipe.origins[path] == ("follows n_embd" if name == "n_inner" else "command line")


@pytest.mark.parametrize(
    ("override", "field", "message"),
    [
        ("n_layer=abc", "model.n_layer", "command line: model.n_layer='abc' must be an integer"),
        ("n_layer=6.0", "model.n_layer", "write n_layer=6"),
        ("max_tokens=1e9", "train.max_tokens", "write max_tokens=1000000000"),
        ("micro_batch_size=none", "train.micro_batch_size", "must be an integer"),
        ("lr=nan", "train.learning_rate", "is not a finite number"),
        ("bias=1", "model.bias", "must be true or false"),
        ("n_layer=none", "model.n_layer", "must be an integer"),
        ("n_layers=6", "n_layers", "did you mean 'n_layer'?"),
        ("weight_deacy=6", "weight_deacy", "did you mean 'weight_decay'?"),
        ("devise=cpu", "devise", "did you mean 'device'?"),
        ("train.n_layer=6", "train.n_layer", "unknown key 'train.n_layer'"),
        ("trian.lr=6", "trian.lr", "did you mean 'train'?"),
        (
            "gradient_accumulation_steps=4",
            "gradient_accumulation_steps",
            "micro_batch_size says how many fit",
        ),
        ("text=[1]", "data.text", "must be a list of strings"),
        ("text=[", "data.text", "must be a list of strings"),
        ("lr=" + "9" * 5000, "train.learning_rate", "is not a finite number"),
    ],
)
def test_refused(override: str, field: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.resolve(overrides=[override])
    assert [problem.field for problem in caught.value.problems] == [field]
    assert message in str(caught.value)


def test_auto_follows_again() -> None:
    recipe = Recipe.resolve("nanogpt-124M", overrides=["micro_batch_size=auto", "batch_size=7"])
    assert recipe.train.micro_batch_size == 7
    assert recipe.origins["train.micro_batch_size"] == "follows batch_size"


def test_twice() -> None:
    assert Recipe.resolve(overrides=["n_layer=6", "model.n_layer=8"]).model.n_layer == 8
    with pytest.raises(ConfigError, match="contradict each other; give only learning_rate"):
        Recipe.resolve(overrides=["lr=1", "learning_rate=2"])


def test_a_mapping_holds_values_as_they_are() -> None:
    recipe = Recipe.resolve(overrides={"n_layer": 6, "train.lr": 1e-3, "text": ["a"]})
    assert (recipe.model.n_layer, recipe.train.learning_rate, recipe.data.text) == (6, 1e-3, ("a",))
    with pytest.raises(ConfigError, match=r"model.n_layer='6' must be an integer"):
        Recipe.resolve(overrides={"n_layer": "6"})
