"""The shipped presets load, are found by every name, and are what their names say."""

from __future__ import annotations

import pytest

from gptfit.config import GPT2Config, Preset, Recipe, find_preset, presets
from gptfit.config.files import read_config_file
from gptfit.config.presets import FOLDER, ORDER, name_claims, normalised
from gptfit.errors import ConfigError

ALL = presets()


def parameters(config: GPT2Config) -> int:
    """Tied count, by the closed form."""
    d, f, b = config.n_embd, config.n_inner, int(config.bias)
    block = 4 * d * d + 2 * d * f + b * (5 * d + f) + 2 * (d + b * d)
    return (config.vocab_size + config.n_positions) * d + config.n_layer * block + d + b * d


def test_every_file_is_listed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(ORDER)
    assert [preset.name for preset in ALL] == list(ORDER)


@pytest.mark.parametrize("preset", ALL, ids=ORDER)
def test_preset_is_a_valid_recipe(preset: Preset) -> None:
    recipe = Recipe.resolve(preset.name)
    assert recipe.model == preset.config == GPT2Config.from_preset(preset.name)
    assert preset.description
    assert preset.source
    keys = set(read_config_file(FOLDER / f"{preset.name}.toml"))
    assert keys <= {
        "description",
        "source",
        "aliases",
        "notes",
        "alias_notes",
        "model",
        "data",
        "train",
    } | {"run"}


def test_names_and_aliases_are_unique_and_resolve() -> None:
    names = [
        (name, preset)
        for preset in ALL
        for name in (preset.name, *preset.aliases, *preset.alias_notes)
    ]
    keys = [normalised(name) for name, _ in names]
    assert len(set(keys)) == len(keys)
    for name, preset in names:
        assert find_preset(name) is preset
        assert find_preset(f"configs/{name.upper()}.json") is preset


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("150M_1024.json", "150M-1024"),
        ("150m_1024", "150M-1024"),
        ("configs\\tiny_char.json", "tiny-char"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("GPT-Small", "small"),
        ("recipe_1", "recipe-small-efficient"),
        ("1.5B", "gpt2-xl"),
        ("117M", "gpt2"),
        ("345M", "gpt2-medium"),
        ("762M", "gpt2-large"),
    ],
)
def test_spellings(name: str, found: str) -> None:
    assert find_preset(name).name == found


def test_old_names_carry_a_note() -> None:
    assert (
        find_preset("117M").note("117M")
        == "117M is the old name of gpt2 (124M): OpenAI corrected its counts"
    )
    assert find_preset("124M").note("124M") == find_preset("gpt2").note("gpt2") == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2-medum", "did you mean 'gpt2-medium'? gptfit presets lists them"),
        ("medium", "did you mean 'gpt2-medium'?"),
        ("", "no preset is called ''; gptfit presets lists them"),
        ("llama", "gptfit presets lists them"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_preset(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("nanogpt-shakespeare-char", 10_745_088),
        ("nanogpt-124M", 124_373_760),
        ("tiny", 11_454_144),
        ("tiny-char", 1_844_928),
        ("small", 30_036_864),
        ("small-char", 10_818_432),
        ("150M", 152_101_632),
        ("200M", 199_472_000),
        ("250M", 253_133_824),
        ("150M-1024", 152_691_456),
        ("200M-1024", 200_160_128),
        ("250M-1024", 253_920_256),
        ("350M-1024", 354_599_936),
        ("500M-1024", 537_621_760),
        ("recipe-1", 22_364_160),
        ("recipe-2", 124_439_808),
        ("recipe-3", 1_559_249_600),
        ("recipe-4", 110_418_432),
        ("recipe-5", 124_439_808),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert parameters(find_preset(name).config) == count


def test_names_claim_what_the_model_has() -> None:
    off = {}
    for preset in ALL:
        if claim := name_claims(preset):
            ratio = parameters(preset.config) / claim
            if abs(ratio - 1) > 0.05:
                off[preset.name] = round(parameters(preset.config) / 1e6)
    assert off == {"500M-1024": 538}  # its source's name; the listing says so
    assert name_claims(find_preset("1B-1024")) == 10**9
    assert name_claims(find_preset("nanogpt-124M")) == 124 * 10**6
    assert name_claims(find_preset("gpt2")) is None


def test_heads_are_64_wide_except_where_the_source_says_otherwise() -> None:
    widths = {preset.name: preset.config.head_dim for preset in ALL}
    assert {name: width for name, width in widths.items() if width != 64} == {
        "tiny": 48,
        "tiny-char": 48,
        "500M-1024": 80,
        "nanogpt-shakespeare-char-cpu": 32,
        "shakespeare-char-cpu-fast": 32,
    }


def test_special_tokens_fit_the_vocabulary() -> None:
    for preset in ALL:
        own = preset.config.vocab_size in (50257, 50304)
        assert preset.config.eos_token_id == preset.config.bos_token_id == (50256 if own else None)
        assert (preset.recipe_values["data"]["tokenizer"] == "gpt2") == own


def test_the_classmethods_are_gpt2s_sizes() -> None:
    sizes = [
        GPT2Config.gpt2_small(),
        GPT2Config.gpt2_medium(),
        GPT2Config.gpt2_large(),
        GPT2Config.gpt2_xl(),
    ]
    assert [(c.n_layer, c.n_embd, c.n_head) for c in sizes] == [
        (12, 768, 12),
        (24, 1024, 16),
        (36, 1280, 20),
        (48, 1600, 25),
    ]
    assert sizes[0] == GPT2Config()
    assert all((c.n_positions, c.n_inner, c.head_dim) == (1024, 4 * c.n_embd, 64) for c in sizes)


def test_nanogpts_runs() -> None:
    baby = Recipe.resolve("nanogpt-shakespeare-char")
    assert (baby.train.batch_size, baby.train.learning_rate, baby.train.min_lr) == (64, 1e-3, 1e-4)
    assert (baby.train.max_steps, baby.train.beta2, baby.model.activation_function) == (
        5000,
        0.99,
        "gelu",
    )
    owt = Recipe.resolve("nanogpt-124M")
    assert owt.train.grad_accum_steps == 40
    assert owt.train.batch_size * owt.model.n_positions == 491_520
