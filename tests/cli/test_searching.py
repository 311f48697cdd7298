"""plan --data: which model to train."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import call
from gptfit.config import Recipe

FIXED = ["n_layer=2", "n_positions=32", "micro_batch_size=8", "batch_size=8", "tokenizer=char"]
ON = ["--time", "1h", "--device", "rtx4090"]


def test_search_names_a_model_and_what_would_help(text: Path) -> None:
    result = call("plan", *FIXED, "--data", text, *ON, "--price", "0.40 USD")
    assert result.code == 0, result.err
    assert "RTX 4090 in 1.00 hours: best of" in result.out
    assert "bits/byte" in result.out
    assert "the best takes only" in result.out
    assert "USD" in result.out
    assert "next: write the recipe, with --out recipe.toml" in result.out
    assert "families.txt, 3,080 bytes" in result.err


def test_search_json_and_recipe_agree(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.toml"
    result = call("plan", *FIXED, "--data", text, *ON, "--out", out, "--json")
    assert result.code == 0, result.err
    values = result.json
    best = values["best"][0]
    assert values["fitting"] <= values["considered"]
    assert best["n_layer"] == 2
    assert best["n_positions"] == 32
    assert best["bits_per_byte"] == min(one["bits_per_byte"] for one in values["best"])
    recipe = Recipe.load(out)
    assert recipe.model.n_embd == best["n_embd"] == values["recipe"]["model"]["n_embd"]
    assert recipe.train.batch_size == 8
    assert recipe.train.has_end


def test_the_next_command_names_the_recipe(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.toml"
    shown = call("plan", *FIXED, "--data", text, *ON, "--out", out).out
    assert shown.splitlines()[-1] == f"next: gptfit train {out} --data {text}"


def test_search_picture(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "search.png"
    result = call("plan", *FIXED, "--data", text, *ON, "--picture", path)
    assert result.code == 0, result.err
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt2", "--time", "1h"], ["gpt2", "plan one model, or search for one"]),
        ([], ["--data needs the time to train", "--time 8h"]),
        (["--time", "soon"], ["soon", "1h30m"]),
        (["--time", "1h", "n_head=7", "n_embd=32"], ["n_head"]),
        (["--time", "1h", "--out", "found.yaml"], ["found.yaml", ".toml"]),
        (["--time", "1h", "--out", "no/such/folder/found.toml"], ["no/such/folder"]),
        (["--time", "1h", "dtype=bfloat16", "--device", "t4"], ["not supported by T4"]),
    ],
)
def test_bad_input(text: Path, arguments: list[str], words: list[str]) -> None:
    on = [] if "--device" in arguments else ["--device", "rtx4090"]
    result = call("plan", *arguments, "--data", text, *on)
    assert result.code == 2
    for word in words:
        assert word in result.err


def test_missing_and_empty_data(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for name in ("missing.txt", "empty.txt"):
        result = call("plan", "--data", tmp_path / name, *ON)
        assert result.code == 2
        assert name in result.err


def test_an_existing_recipe_is_not_replaced(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("# mine\n")
    result = call("plan", *FIXED, "--data", text, *ON, "--out", out)
    assert result.code == 2
    assert "exists" in result.err
    assert out.read_text() == "# mine\n"


def test_out_is_for_searches() -> None:
    result = call("plan", "gpt2", "--device", "rtx4090", "--out", "found.toml")
    assert result.code == 2
    assert "--out" in result.err
