"""Repairs: they end, they are valid, and what they leave cannot be repaired further."""

from __future__ import annotations

import dataclasses
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gptfit.config import GPT2Config, Recipe, presets
from gptfit.config.dialects import to_hf
from gptfit.config.gpt2 import ACTIVATIONS
from gptfit.errors import ConfigError, Problem
from gptfit.plan.lint import (
    DataFacts,
    Finding,
    Pretrained,
    Program,
    Subject,
    fix,
    hard_findings,
    lint,
)
from gptfit.plan.lint.rewrite import edited, inline_ignores, repaired
from gptfit.plan.lint.rules import assignments
from lint_cases import ADVISED, AMPERE, HOPPER, SMALL_CARD, SMALLEST_CARD, TURING, subject

# Rules whose repair the catalogue calls for, as far as the model itself does not refuse the fault.
REPAIRED = {
    *("A06", "A08", "A09", "A10", "A11", "A14", "A17", "A18", "A20", "A22", "A23"),
    *("P04", "P06", "D01", "D04", "D05", "D06", "D09", "T03", "T05", "T06", "T07"),
    *("R01", "R02", "R03", "R04", "R05", "R06", "R07", "R08", "R10", "R11", "R17"),
}


def random_subject(seed: int) -> Subject:
    """A valid recipe with odd values, and odd surroundings."""
    draw = random.Random(seed)
    head_dim = draw.choice([2, 20, 32, 60, 64, 80, 128])
    n_head = draw.randint(1, 25)
    vocab = draw.choice([65, 300, 4099, 32000, 50257, 50304])
    micro = draw.choice([1, 2, 3, 8])
    rate = draw.choice([1e-6, 1e-4, 6e-4, 3e-2])
    values: dict[str, Any] = {
        "model.vocab_size": vocab,
        "model.n_positions": draw.choice([7, 64, 500, 1024, 4096]),
        "model.n_head": n_head,
        "model.n_embd": n_head * head_dim,
        "model.n_inner": draw.choice([None, None, 100, 3000, 4 * n_head * head_dim]),
        "model.n_layer": draw.choice([1, 3, 12, 30, 50]),
        "model.activation_function": draw.choice([*ACTIVATIONS, "gelu_new", "gelu_new"]),
        "model.layer_norm_epsilon": draw.choice([1e-5, 1e-2]),
        "model.initializer_range": draw.choice([0.02, 0.2]),
        "model.bias": draw.random() < 0.5,
        "model.tie_word_embeddings": draw.random() < 0.5,
        "model.scale_attn_weights": draw.random() < 0.7,
        "model.scale_attn_by_inverse_layer_idx": draw.random() < 0.3,
        "model.reorder_and_upcast_attn": draw.random() < 0.3,
        "model.eos_token_id": draw.choice([None, vocab - 1]),
        "model.pad_token_id": draw.choice([None, vocab - 1]),
        "data.tokenizer": draw.choice(["auto", "char", "gpt2"]),
        "train.batch_size": micro * draw.choice([1, 4, 9]),
        "train.micro_batch_size": micro,
        "train.learning_rate": rate,
        "train.min_lr": draw.choice([0.0, rate / 10, rate]),
        "train.beta2": draw.choice([0.9, 0.99]),
        "train.grad_clip": draw.choice([0.0, 1.0]),
        "train.weight_decay": draw.choice([0.0, 0.1]),
        "train.max_steps": draw.choice([None, 100, 100_000]),
        "run.dtype": draw.choice(["auto", "float32", "bfloat16"]),
        "run.pad_vocab_to_multiple": draw.choice([None, 1, 64]),
        "run.loss_chunks": draw.choice([1, 1, 4]),
        "run.checkpointed_blocks": draw.choice([0, 0, 1]),
    }
    values |= {
        f"model.{name}": draw.choice([0.0, 0.1, 0.5])
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    }
    recipe = Recipe.resolve(overrides=values)
    return Subject(
        recipe=recipe,
        device=draw.choice([None, None, AMPERE, HOPPER, TURING, SMALL_CARD, SMALLEST_CARD]),
        data=draw.choice([None, _random_data(draw)]),
        program=draw.choice([None, None, _random_program(draw)]),
        pretrained=draw.choice([None, None, None, Pretrained(recipe.model)]),
    )


def _random_data(draw: random.Random) -> DataFacts:
    return DataFacts(
        train_tokens=draw.choice([None, 1, 50, 10**5, 10**9]),
        val_tokens=draw.choice([None, 2, 10**4]),
        vocab_size=draw.choice([None, 65, 50257]),
        text_bytes=draw.choice([None, 10**5, 10**6, 10**9]),
        tokenizer_kind=draw.choice([None, "char", "gpt2"]),
    )


def _random_program(draw: random.Random) -> Program:
    program = Program.named(draw.choice(["gptfit", "nanogpt", "huggingface"]))
    return dataclasses.replace(
        program,
        residual_scaling=draw.random() < 0.5,
        grad_scaler=draw.random() < 0.5,
        decay_steps=draw.choice([None, 50]),
        tokens_per_step=draw.choice([None, 524_288]),
        head=draw.choice(["language model", "sequence classification"]),
        step={
            "dtype": draw.choice(["float32", "bfloat16", "float16"]),
            "attention": draw.choice(["sdpa", "eager"]),
            "world_size": (ranks := draw.choice([1, 4])),
            "parallel": "ddp" if ranks > 1 else "single",
        },
    )


def errors(of: Subject) -> set[str]:
    return {finding.code for finding in lint(of) if finding.severity == "error"}


@pytest.mark.parametrize("seed", range(100))
def test_repairs_leave_nothing_to_repair(seed: int) -> None:
    before = random_subject(seed)
    after, made = fix(before)
    left = [f"{f.code} {assignments(f.changes)}" for f in lint(after) if f.fixable]
    assert left == []
    assert fix(after) == (after, {})
    # A vocabulary that grows to hold the data's ids may bring the memory's limit to light.
    assert errors(after) <= errors(before) | {"R01"}
    # What the repairs say is what was made of it; building it has checked it.
    assert before.changed(made).recipe == after.recipe


def test_random_subjects_need_most_repairs() -> None:
    needed = {f.code for seed in range(60) for f in lint(random_subject(seed)) if f.fixable}
    assert needed >= REPAIRED - {"A17", "D04", "R02", "R04", "R11", "T06"}


@pytest.mark.parametrize("code", sorted(REPAIRED))
def test_each_repair_silences_its_rule(code: str) -> None:
    bad = ADVISED[code][0]
    finding = next(finding for finding in lint(bad) if finding.code == code)
    assert finding.changes
    assert code not in {f.code for f in lint(bad.changed(finding.changes))}


@pytest.mark.parametrize("preset", [preset.name for preset in presets()])
def test_repaired_presets_are_clean(preset: str) -> None:
    after, _ = fix(Subject(recipe=Recipe.resolve(preset=preset)))
    assert [finding.code for finding in lint(after) if finding.fixable] == []


def test_repair_takes_only_what_is_selected() -> None:
    _, made = fix(subject("attn_pdrop=0.5", "beta2=0.9"), select=["D"])
    assert made == {"model.attn_pdrop": 0.2}


def test_widths_keep_their_heads_where_these_divide_a_near_one() -> None:
    _, made = fix(subject("n_embd=780", "n_head=13"), select=["A14"])
    assert made == {"model.n_embd": 832}
    _, made = fix(subject("n_embd=100", "n_head=10"), select=["A14"])
    assert made == {"model.n_embd": 128, "model.n_head": 2}


# Files


def examine(document: dict[str, Any]) -> list[Finding]:
    try:
        recipe = Recipe.from_dict(document)
    except ConfigError as error:
        return hard_findings(error)
    return lint(Subject(recipe=recipe))


TOML = """\
preset = "gpt2"  # the base

[model]
n_layer = 13   # a deep one
dropout = 0.5  # half of it

[train]
beta2 = 0.9
# lint: ignore A28
"""


def test_toml_keeps_comments_and_order() -> None:
    text, left = repaired(TOML, ".toml", examine, "mine.toml")
    assert text == TOML.replace("0.5", "0.2").replace("beta2 = 0.9\n", "beta2 = 0.99\n")
    assert [finding for finding in left if finding.fixable] == []


def test_toml_gets_keys_and_sections_that_it_lacks() -> None:
    text = edited(
        "[model]\nn_layer = 2\n\n[run]\ndtype = 'auto'",
        ".toml",
        {("model", "bias"): False, ("train", "beta2"): 0.99},
    )
    assert text == (
        "[model]\nn_layer = 2\nbias = false\n\n[run]\ndtype = 'auto'\n\n[train]\nbeta2 = 0.99\n"
    )


def test_an_alias_for_several_fields_is_split_when_they_part() -> None:
    document = "[model]\nn_layer = 2\ndropout = 0.1\n"
    changes = {"model.attn_pdrop": 0.0}
    finding = Finding("D06", "warning", "model.attn_pdrop", "", "", changes=changes)
    rounds = iter([[finding], [], []])
    text, _ = repaired(document, ".toml", lambda _: next(rounds), "a.toml")
    wanted = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0, "n_layer": 2}
    assert tomllib.loads(text)["model"] == wanted


def test_nanogpt_keeps_its_words() -> None:
    text = json.dumps(
        {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 64, "dropout": 0.5}
    )
    after, _ = repaired(text, ".json", examine, "a.json")
    assert json.loads(after) == json.loads(text) | {"dropout": 0.2}


def test_what_a_dialect_cannot_say_is_not_written() -> None:
    text = json.dumps({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 64})
    changes = {"model.layer_norm_epsilon": 1e-6}
    finding = Finding("A06", "warning", "model.layer_norm_epsilon", "", "", changes=changes)
    after, _ = repaired(text, ".json", lambda _: [finding], "a.json")
    assert after == text
    training = dataclasses.replace(finding, changes={"train.beta2": 0.99})
    after, _ = repaired(text, ".json", lambda _: [training], "a.json")
    assert after == text


def test_faults_that_cannot_run_are_repaired_where_the_way_is_clear() -> None:
    text = '{"model_type": "gpt2", "n_emb": 768, "activation_function": "gleu", "n_head": 12}\n'
    after, left = repaired(text, ".json", examine, "a.json")
    assert after == text.replace("n_emb", "n_embd").replace("gleu", "gelu")
    assert left == []
    unclear = '{"n_embd": 768, "n_head": 10}'
    assert repaired(unclear, ".json", examine, "a.json")[0] == unclear


def test_a_misspelt_key_beside_the_right_one_is_left_alone() -> None:
    text = '{"model_type": "gpt2", "n_emb": 768, "n_embd": 512}'
    assert repaired(text, ".json", examine, "a.json")[0] == text


@pytest.mark.parametrize("seed", range(40))
def test_repaired_files_read_back_clean(seed: int, tmp_path: Path) -> None:
    recipe = random_subject(seed).recipe
    recipe.save(tmp_path / "recipe.toml")
    recipe.save(tmp_path / "recipe.json")
    for suffix in (".toml", ".json"):
        before = (tmp_path / f"recipe{suffix}").read_text(encoding="utf-8")
        after, left = repaired(before, suffix, examine, "recipe")
        assert [finding.code for finding in left if finding.fixable] == []
        assert repaired(after, suffix, examine, "recipe")[0] == after


@pytest.mark.parametrize("seed", range(20))
def test_repaired_model_files_stay_models(seed: int) -> None:
    model = random_subject(seed).recipe.model
    text = json.dumps(to_hf(model), indent=2)
    after, left = repaired(text, ".json", examine, "config.json")
    assert [finding.code for finding in left if finding.fixable] == []
    assert to_hf(GPT2Config.from_dict(json.loads(after))).keys() == to_hf(model).keys()


def test_inline_ignores() -> None:
    assert inline_ignores(TOML) == ["A28"]
    assert inline_ignores("a = 1 # lint: ignore A10, R02 T05\n# lint: ignore D") == [
        "A10",
        "R02",
        "T05",
        "D",
    ]
    assert inline_ignores('name = "lint: ignore A10"') == []


def test_a_vocabulary_smaller_than_the_tokenizers_has_its_code() -> None:
    problem = Problem(
        "model.vocab_size", "vocab_size=10 (command line) is smaller than the tokenizer's 65"
    )
    assert hard_findings(ConfigError(problem))[0].code == "A08"
