"""lint: what is said, in which form, with which exit code; and what train heeds of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMALL, call
from gptfit.cli.lint_request import first_loss
from gptfit.config import GPT2Config, Recipe

RECIPE = """\
preset = "gpt2"

[model]
attn_pdrop = 0.5  # a lot

[train]
beta2 = 0.9
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_exit_code_by_severity() -> None:
    clean = call("lint", "gpt2", "beta2=0.99")
    assert (clean.code, clean.out, clean.err) == (0, "nothing to remark\n", "")
    hint = call("lint", "gpt2")
    assert hint.code == 0
    assert "hint T05 train.beta2: beta2=0.95" in hint.out
    warned = call("lint", "gpt2", "attn_pdrop=0.5")
    assert warned.code == 1
    assert "warning D06 model.resid_pdrop: attn_pdrop=0.5" in warned.out
    assert "2 of 2 can be repaired by --fix" in warned.err
    broken = call("lint", "gpt2", "n_head=10", "dropout=2", "--json")
    assert broken.code == 2
    assert [finding["code"] for finding in broken.json] == ["A01", "A03", "A03", "A03"]


def test_json_has_all_of_a_finding() -> None:
    finding = call("lint", "gpt2", "attn_pdrop=0.5", "--select", "D", "--json").json[0]
    assert finding["code"] == "D06"
    assert finding["severity"] == "warning"
    assert finding["changes"] == {"model.attn_pdrop": 0.2}
    assert finding.keys() == {
        "code",
        "severity",
        "field",
        "message",
        "fix",
        "source",
        "changes",
        "renames",
    }


def test_select_and_ignore() -> None:
    assert "D06" not in call("lint", "gpt2", "attn_pdrop=0.5", "--ignore", "D06,T").out
    only = call("lint", "gpt2", "attn_pdrop=0.5", "--select", "T,A").out
    assert "T05" in only
    assert "D06" not in only
    unknown = call("lint", "gpt2", "--select", "Q1")
    assert unknown.code == 2
    assert "there is no rule 'Q1'" in unknown.err


def test_explain() -> None:
    result = call("lint", "--explain", "r04")
    assert result.code == 0
    assert "R04 (warning): a loss on all logits at once" in result.out
    assert "arXiv 2411.09009" in result.out
    assert call("lint", "--explain", "A01", "--json").json["needs"] == []
    assert call("lint", "--explain", "nonsense").code == 2


def test_comments_in_a_recipe_leave_rules_out(recipe: Path) -> None:
    assert call("lint", recipe).code == 1
    recipe.write_text(RECIPE + "# lint: ignore D06, T05\n", encoding="utf-8")
    result = call("lint", recipe)
    assert (result.code, result.out) == (0, "nothing to remark\n")


def test_fix_writes_the_file_and_shows_the_difference(recipe: Path) -> None:
    result = call("lint", recipe, "--fix")
    assert result.code == 0
    assert "-attn_pdrop = 0.5  # a lot\n+attn_pdrop = 0.2  # a lot\n" in result.out
    assert result.out.endswith("nothing to remark\n")
    fixed = RECIPE.replace("0.5", "0.2").replace("0.9", "0.99")
    assert recipe.read_text(encoding="utf-8") == fixed
    assert Recipe.load(recipe).model.attn_pdrop == 0.2
    again = call("lint", recipe, "--fix")
    assert again.out == "nothing to remark\n"
    assert not list(recipe.parent.glob(".*"))


def test_fix_as_json(recipe: Path) -> None:
    result = call("lint", recipe, "--fix", "--json").json
    assert "+beta2 = 0.99" in result["difference"]
    assert result["findings"] == []


def test_fix_of_a_config_that_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "gpt2", "n_emb": 768, "n_head": 10}\n', encoding="utf-8")
    result = call("lint", path, "--fix")
    assert result.code == 2  # n_head=10 is left to the user
    assert "error A01" in result.out
    assert json.loads(path.read_text(encoding="utf-8"))["n_embd"] == 768


def test_fix_of_a_preset_prints_the_overrides() -> None:
    result = call(
        "lint", "gpt2", "attn_pdrop=0.5", "n_layers=6", "activation_function=gleu", "--fix"
    )
    assert "corrected: gpt2 " in result.out
    words = result.out.splitlines()[0].removeprefix("corrected: ").split()
    assert {"model.attn_pdrop=0.2", "n_layer=6", "model.activation_function=gelu"} < set(words)
    assert [f["severity"] for f in call("lint", *words, "--json").json] == ["hint"]  # A28


def test_fix_leaves_checkpoints_alone(tmp_path: Path) -> None:
    GPT2Config(attn_pdrop=0.5).save(tmp_path / "config.json")
    before = (tmp_path / "config.json").read_bytes()
    assert "model.attn_pdrop=0.2" in call("lint", tmp_path, "--fix").out
    assert (tmp_path / "config.json").read_bytes() == before


def test_fix_wants_no_overrides_beside_a_file(recipe: Path) -> None:
    result = call("lint", recipe, "n_layer=6", "--fix")
    assert result.code == 2
    assert "leave the overrides out" in result.err
    assert recipe.read_text(encoding="utf-8") == RECIPE


def test_sarif(recipe: Path) -> None:
    log = call("lint", recipe, "--sarif").json
    assert log["version"] == "2.1.0"
    driver = log["runs"][0]["tool"]["driver"]
    assert len(driver["rules"]) == 71
    dropout, beta2 = log["runs"][0]["results"]
    assert (dropout["ruleId"], dropout["level"], beta2["level"]) == ("D06", "warning", "note")
    assert driver["rules"][dropout["ruleIndex"]]["id"] == "D06"
    place = beta2["locations"][0]["physicalLocation"]
    assert place["region"]["startLine"] == RECIPE.splitlines().index("beta2 = 0.9") + 1
    assert place["artifactLocation"]["uri"].endswith("mine.toml")
    assert (
        "physicalLocation"
        not in call("lint", "gpt2", "--sarif").json["runs"][0]["results"][0]["locations"][0]
    )


def test_device() -> None:
    result = call("lint", "gpt2", "--device", "rtx3060", "--select", "R01")
    assert result.code == 2
    assert "RTX 3060 has 11.6 GiB" in result.out
    unknown = call("lint", "gpt2", "--device", "rtx9999")
    assert unknown.code == 2
    assert "rtx9999" in unknown.err


def test_program() -> None:
    result = call("lint", "gpt2", "--program", "huggingface", "--select", "R02")
    assert "warning R02" in result.out
    assert "did you mean" in call("lint", "gpt2", "--program", "hugging").err


def test_data(run: Path) -> None:
    wide = call("lint", "gpt2", "vocab_size=50257", "--data", run / "data", "--select", "A09")
    assert "rows have no token" in wide.out
    text = call("lint", "gpt2", "tokenizer=gpt2", "--data", run.parent / "families.txt")
    assert "D09" in text.out


def test_a_run_brings_its_data_and_its_first_loss(run: Path, tmp_path: Path) -> None:
    assert "D02" in call("lint", run).out  # a validation split of a few windows
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    loss = first_loss(run / "metrics.jsonl")
    assert 0 < loss < 5
    (copy / "metrics.jsonl").write_text(
        lines.replace(f'"loss": {loss}', '"loss": 99.0'), encoding="utf-8"
    )
    assert "R18" in call("lint", copy).out
    assert "R18" not in call("lint", run).out


def test_weights(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/best"
    for origin in (run, checkpoint if checkpoint.is_dir() else run, "gpt2"):
        assert "error P01" in call("lint", "tiny", "n_layer=7", "--from", origin).out
    missing = call("lint", "gpt2", "--from", tmp_path / "nowhere")
    assert missing.code == 2
    assert "no such run" in missing.err
    GPT2Config(n_layer=3).save(tmp_path / "config.json")
    assert "n_layer=4, but the weights were made with 3" in call("lint", tmp_path, "n_layer=4").out


def test_another_tokenizer_than_the_weights(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("0123456789\n" * 500, encoding="utf-8")
    assert (
        call(
            "prepare", tmp_path / "other.txt", "--out", tmp_path / "data", "--tokenizer", "char"
        ).code
        == 0
    )
    result = call("lint", "gpt2", "--from", run, "--data", tmp_path / "data", "--select", "P05")
    assert result.code == 2
    assert "not that of the weights" in result.out
    assert "P05" not in call("lint", "gpt2", "--from", run, "--data", run / "data").out


def test_a_bare_model_says_nothing_about_training(tmp_path: Path) -> None:
    GPT2Config(attn_pdrop=0.5).save(tmp_path / "config.json")
    codes = [finding["code"] for finding in call("lint", tmp_path, "--json").json]
    assert codes == ["D06"]


@pytest.mark.parametrize("arguments", [["lint"], ["lint", "gtp2"], ["lint", "no/such.toml"]])
def test_bad_input(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert result.err
    assert result.out == ""


def test_train_shows_warnings(text: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, "max_steps=2", "dropout=0.5", "--data", text, "--out", tmp_path / "run"]
    result = call("train", "tiny-char", *arguments)
    assert result.code == 0
    assert "warning: model.resid_pdrop: " in result.err
    quiet = call("train", "tiny-char", *arguments[:-1], tmp_path / "quiet", "--ignore", "D05,D06")
    assert "resid_pdrop" not in quiet.err


def test_train_stops_at_errors_and_leaves_nothing(text: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, "max_steps=2", "n_positions=5000", "--data", text]
    result = call("train", "tiny-char", *arguments, "--out", tmp_path / "run")
    assert result.code == 2
    assert "D01 model.n_positions: " in result.err
    assert not (tmp_path / "run").exists()
