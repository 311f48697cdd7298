"""``GPT2Config`` refuses what cannot run, all faults at once, and keeps what follows following."""

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfit.config import GPT2Config, Recipe
from gptfit.config.gpt2 import ACTIVATIONS
from gptfit.errors import ConfigError

INFINITY, NAN = float("inf"), float("nan")

# keyword arguments, the fields at fault, the rule, the way out
BAD: list[tuple[dict[str, Any], list[str], str, str]] = [
    ({"n_head": 10}, ["n_head"], "n_head=10 does not divide n_embd=768 (768/10 = 76.8)", "try 8, 12 or 16"),
    ({"n_embd": 1024, "n_head": 15}, ["n_head"], "(1024/15 = 68.3)", "try 8, 16 or 32"),
    ({"n_embd": 770}, ["n_head"], "n_head=12 does not divide n_embd=770", "try 11 or 14"),
    ({"n_head": 1000}, ["n_head"], "n_head=1000 does not divide n_embd=768", "try 12 or 768"),
    ({"n_head": 0}, ["n_head"], "n_head=0 must be positive", "the default is 12"),
    ({"n_layer": -1}, ["n_layer"], "n_layer=-1 must be positive", "the default is 12"),
    ({"vocab_size": 0}, ["vocab_size"], "vocab_size=0 must be positive", "the default is 50257"),
    ({"n_positions": -1024}, ["n_positions"], "n_positions=-1024 must be positive", "the default is 1024"),
    ({"n_embd": 0}, ["n_embd"], "n_embd=0 must be positive", "the default is 768"),
    ({"n_inner": 0}, ["n_inner"], "n_inner=0 must be positive", ""),
    ({"n_layer": "12"}, ["n_layer"], "n_layer='12' must be an integer", "write n_layer=12 without quotes"),
    ({"n_layer": "twelve"}, ["n_layer"], "n_layer='twelve' must be an integer", ""),
    ({"n_layer": 12.0}, ["n_layer"], "n_layer=12.0 must be an integer", "write n_layer=12"),
    ({"n_layer": 12.5}, ["n_layer"], "n_layer=12.5 must be an integer", ""),
    ({"n_layer": True}, ["n_layer"], "n_layer=True must be an integer", "write a number, not true"),
    ({"n_layer": None}, ["n_layer"], "n_layer=None must be an integer", ""),
    ({"n_layer": [12]}, ["n_layer"], "n_layer=[12] must be an integer", ""),
    ({"n_inner": "3072"}, ["n_inner"], "n_inner='3072' must be an integer", "write n_inner=3072 without quotes"),
    ({"n_layer": 10**9}, ["n_layer"], "n_layer=1000000000 is beyond 1,024", "use at most 1024"),
    ({"vocab_size": 10**5000}, ["vocab_size"], "is beyond 16,777,216", "use at most 16777216"),
    ({"resid_pdrop": 1.5}, ["resid_pdrop"], "resid_pdrop=1.5 must be in [0, 1)", "the default is 0.1"),
    ({"embd_pdrop": 1.0}, ["embd_pdrop"], "embd_pdrop=1.0 must be in [0, 1)", "the default is 0.1"),
    ({"attn_pdrop": -0.1}, ["attn_pdrop"], "attn_pdrop=-0.1 must be in [0, 1)", "the default is 0.1"),
    ({"attn_pdrop": NAN}, ["attn_pdrop"], "attn_pdrop=nan is not a finite number", ""),
    ({"attn_pdrop": "0.1"}, ["attn_pdrop"], "attn_pdrop='0.1' must be a number", "write attn_pdrop=0.1 without quotes"),
    ({"summary_first_dropout": 2}, ["summary_first_dropout"], "must be in [0, 1)", "the default is 0.1"),
    ({"dropout": 1}, ["resid_pdrop", "embd_pdrop", "attn_pdrop"], "must be in [0, 1)", "the default is 0.1"),
    ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon"], "must be positive", "the default is 1e-05"),
    ({"layer_norm_epsilon": INFINITY}, ["layer_norm_epsilon"], "=inf is not a finite number", ""),
    ({"initializer_range": -0.02}, ["initializer_range"], "=-0.02 must be positive", "the default is 0.02"),
    ({"initializer_range": 10**400}, ["initializer_range"], "is not a finite number", ""),
    ({"activation_function": "gleu"}, ["activation_function"], "activation_function='gleu' is not known", "did you mean 'gelu'?"),
    ({"activation_function": "prelu"}, ["activation_function"], "'prelu' is not known", "did you mean 'relu'?"),
    ({"activation_function": 3}, ["activation_function"], "activation_function=3 must be a string", ""),
    ({"summary_type": "attn"}, ["summary_type"], "summary_type='attn' is not known", "choose one of last, first"),
    ({"summary_activation": "tahn"}, ["summary_activation"], "'tahn' is not known", "did you mean 'tanh'?"),
    ({"bias": "false"}, ["bias"], "bias='false' must be true or false", "write bias=false without quotes"),
    ({"bias": 0}, ["bias"], "bias=0 must be true or false", ""),
    ({"eos_token_id": 50257}, ["eos_token_id"], "eos_token_id=50257 is outside the vocabulary of 50257", "use 0 to 50256, or null"),
    ({"vocab_size": 30000, "eos_token_id": 50256}, ["eos_token_id"], "outside the vocabulary of 30000", "null for none"),
    ({"pad_token_id": -1}, ["pad_token_id"], "pad_token_id=-1 is outside the vocabulary", "use 0 to 50256"),
    ({"add_cross_attention": True}, ["add_cross_attention"], "needs an encoder", "leave it false"),
    ({"n_layers": 3}, ["n_layers"], "unknown key 'n_layers'", "did you mean 'n_layer'?"),
    ({"hiden_size": 3}, ["hiden_size"], "unknown key 'hiden_size'", "did you mean 'hidden_size'?"),
    ({"zzz": 3}, ["zzz"], "unknown key 'zzz'", "known keys: activation_function"),
    ({"block_size": 256, "n_positions": 512}, ["n_positions"], "block_size=256 and n_positions=512 contradict", "give only n_positions"),
    ({"block_size": 256, "max_position_embeddings": 512}, ["n_positions"], "contradict each other", "give only n_positions"),
    ({"dropout": 0.2, "attn_pdrop": 0.1}, ["attn_pdrop"], "dropout=0.2 and attn_pdrop=0.1 contradict", "give only attn_pdrop"),
    ({"n_layer": 0, "n_head": 7, "bias": None, "n_ebmd": 3}, ["n_ebmd", "bias", "n_layer", "n_head"], "4 problems", "did you mean 'n_embd'?"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "names", "rule", "fix"), BAD)
def test_bad_config(values: dict[str, Any], names: list[str], rule: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GPT2Config(**values)
    assert [problem.field for problem in caught.value.problems] == names
    assert rule in str(caught.value)
    if fix:
        assert any(fix in problem.fix for problem in caught.value.problems)
    else:
        assert not any(problem.fix for problem in caught.value.problems)


def test_a_following_field_is_never_blamed() -> None:
    with pytest.raises(ConfigError) as caught:
        GPT2Config(n_embd="768", vocab_size=None)
    assert [problem.field for problem in caught.value.problems] == ["vocab_size", "n_embd"]


def test_messages_stay_short() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    keys = {f"key_{number}": nested for number in range(1000)}
    with pytest.raises(ConfigError) as caught:
        GPT2Config(n_layer=nested, activation_function="x" * 10**6, **keys)
    assert "980 more unknown keys" in str(caught.value)
    assert len(str(caught.value)) < 20_000


def test_followers_follow_until_they_are_given() -> None:
    config = GPT2Config()
    assert (config.n_inner, config.eos_token_id) == (3072, 50256)
    wider = config.replace(n_embd=1024, n_head=16)
    assert (wider.n_inner, wider.to_dict()["n_inner"]) == (4096, None)
    assert config.replace(vocab_size=1000).eos_token_id is None
    assert config.replace(vocab_size=50304).eos_token_id == 50256
    fixed = config.replace(n_inner=2048)
    assert fixed.replace(n_embd=1024, n_head=16).n_inner == 2048
    assert fixed.replace(n_inner=None).n_inner == 3072
    assert config.replace(eos_token_id=None).given()["eos_token_id"] is None


def test_replace_knows_aliases_and_refuses_unknown_keys() -> None:
    config = GPT2Config().replace(hidden_size=1024, num_attention_heads=16, dropout=0)
    assert (config.n_embd, config.hidden_size, config.attn_pdrop) == (1024, 1024, 0.0)
    with pytest.raises(ConfigError, match="did you mean 'n_layer'"):
        config.replace(n_layers=3)
    with pytest.raises(AttributeError, match="no attribute 'n_layers'"):
        _ = config.n_layers


def test_it_is_a_value() -> None:
    config = GPT2Config(n_layer=3)
    same = GPT2Config(n_layer=3, n_inner=3072)
    assert config == same
    assert hash(config) == hash(same)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError):
        config.n_layer = 4  # type: ignore[misc]


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of a valid configuration, any field given or not."""
    heads = draw(st.integers(1, 64))
    vocab = draw(st.integers(1, 100_000))
    dropout = st.floats(0, 1, exclude_max=True)
    token = st.none() | st.integers(0, vocab - 1)
    positive = st.floats(0, 10, exclude_min=True)
    flag = st.booleans()
    fields = {
        "n_positions": st.integers(1, 2**20),
        "n_layer": st.integers(1, 1024),
        "n_inner": st.none() | st.integers(1, 2**19),
        "activation_function": st.sampled_from(ACTIVATIONS),
        "summary_activation": st.none() | st.sampled_from(ACTIVATIONS),
        "summary_type": st.sampled_from(["last", "first", "mean", "cls_index"]),
    }
    fields |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    fields |= dict.fromkeys(("layer_norm_epsilon", "initializer_range"), positive)
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), token)
    fields |= dict.fromkeys(
        ("bias", "tie_word_embeddings", "use_cache", "scale_attn_weights"), flag
    )
    values = draw(st.fixed_dictionaries({}, optional=fields))
    return {
        "n_head": heads,
        "n_embd": heads * draw(st.integers(1, 64)),
        "vocab_size": vocab,
    } | values


@given(valid_values())
@settings(max_examples=150, deadline=None)
def test_to_dict_and_back(values: dict[str, Any]) -> None:
    config = GPT2Config(**values)
    assert GPT2Config.from_dict(config.to_dict()) == config
    again = GPT2Config(**config.given())
    assert (again, again.following) == (config, config.following)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
WORDS = """n_layer n_embd n_head n_inner vocab_size dropout block_size name batch_size model_args n_ctx
model_type pruned_heads eos_token_id bias auto_map device preset model train"""


@given(
    st.dictionaries(st.sampled_from(WORDS.split()) | st.text(max_size=8), json_values, max_size=6)
    | json_values
)
@settings(max_examples=250, deadline=None)
def test_random_json_raises_nothing_else(values: Any) -> None:
    for read in (GPT2Config.from_dict, Recipe.from_dict):
        with contextlib.suppress(ConfigError):
            read(values)
