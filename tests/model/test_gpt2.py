"""The model's own promises, and each config field's effect on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from gptfit.config import GPT2Config
from gptfit.config.gpt2 import ACTIVATIONS as NAMES
from gptfit.model import GPT2, FeedForward, KVCache, MultiHeadAttention, TransformerBlock
from gptfit.model.activations import ACTIVATIONS

TINY = GPT2Config(
    vocab_size=31,
    n_positions=16,
    n_embd=24,
    n_layer=2,
    n_head=3,
    dropout=0.0,
    initializer_range=0.3,
)


def model_of(config: GPT2Config, **options: Any) -> GPT2:
    model = GPT2(config, **options)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def tokens(seed: int = 1, length: int = 16) -> torch.Tensor:
    return torch.randint(31, (2, length), generator=torch.Generator().manual_seed(seed))


def test_activations_equal_hugging_faces() -> None:
    assert set(ACTIVATIONS) == set(NAMES)
    assert set(ACT2FN) - set(NAMES) == {"prelu", "xielu"}  # these two carry parameters
    x = torch.linspace(-6, 6, 1001)
    for name, activation in ACTIVATIONS.items():
        assert torch.allclose(activation(x), ACT2FN[name](x), atol=1e-6), name


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.5},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_head": 6},
        {"n_head": 6, "reorder_and_upcast_attn": True},
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ],
)
def test_numerics_fields_change_the_logits(change: dict[str, Any]) -> None:
    plain, changed = model_of(TINY), model_of(TINY.replace(**change))
    assert (plain(tokens()) - changed(tokens())).abs().max() > 1e-3


def test_upcast_attention_is_the_same_function_in_float32() -> None:
    plain, upcast = model_of(TINY), model_of(TINY.replace(reorder_and_upcast_attn=True))
    assert torch.allclose(plain(tokens()), upcast(tokens()), atol=1e-5)


def test_upcast_attention_scores_in_float32_under_autocast() -> None:
    config = TINY.replace(n_embd=96, reorder_and_upcast_attn=True)
    exact = model_of(config)
    plain = model_of(config.replace(reorder_and_upcast_attn=False))
    with torch.autocast("cpu", torch.bfloat16):
        upcast_attention, plain_attention = exact.h[0].attn, plain.h[0].attn
        x = torch.randn(2, 16, 96, generator=torch.Generator().manual_seed(0)) * 4
        assert not torch.equal(upcast_attention(x), plain_attention(x))


@pytest.mark.parametrize("field", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
@pytest.mark.parametrize("upcast", [False, True])
def test_dropout_acts_in_training_only(field: str, upcast: bool) -> None:
    config = TINY.replace(**{field: 0.5}, reorder_and_upcast_attn=upcast)
    model, still = model_of(config), model_of(TINY.replace(reorder_and_upcast_attn=upcast))
    torch.testing.assert_close(model(tokens()), still(tokens()))
    model.train()
    torch.manual_seed(0)
    assert (model(tokens()) - still(tokens())).abs().max() > 1e-3


def test_tying_shares_one_tensor() -> None:
    tied, untied = model_of(TINY), model_of(TINY.replace(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.wte.weight
    assert untied.lm_head.weight is not untied.wte.weight


def test_bias_free_has_no_bias_at_all() -> None:
    model = GPT2(TINY.replace(bias=False))
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_causal_no_position_sees_the_future() -> None:
    model, first, second = model_of(TINY), tokens(), tokens()
    second[:, 9:] = (second[:, 9:] + 1) % 31
    assert torch.equal(model(first)[:, :9], model(second)[:, :9])
    assert not torch.allclose(model(first)[:, 9:], model(second)[:, 9:])


@pytest.mark.parametrize("multiple", [8, 64])
def test_padded_vocabulary_is_invisible(multiple: int) -> None:
    plain, padded = model_of(TINY), model_of(TINY, pad_vocab_to_multiple=multiple)
    assert padded.wte.weight.shape[0] % multiple == 0
    assert torch.allclose(plain(tokens()), padded(tokens()), atol=1e-6)
    loss, padded_loss = (model(tokens(), tokens(2)) for model in (plain, padded))
    assert torch.allclose(loss, padded_loss, atol=1e-6)
    padded_loss.backward()
    assert (padded.wte.weight.grad[31:] == 0).all()


@pytest.mark.parametrize("upcast", [False, True])
def test_cache_gives_the_same_logits_in_any_portions(upcast: bool) -> None:
    config = TINY.replace(reorder_and_upcast_attn=upcast)
    model, idx = model_of(config), tokens()
    whole = model(idx)
    for portions in ([16], [1] * 16, [5, 1, 1, 6, 3]):
        cache, parts = KVCache(config, 2, 16), []
        with torch.no_grad():
            for part in idx.split(portions, dim=1):
                parts.append(model(part, cache=cache))
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5), portions


def test_targets_of_minus_100_do_not_count() -> None:
    model, idx, targets = model_of(TINY), tokens(), tokens(2)
    targets[:, 8:] = -100
    logits = model(idx)[:, :8]
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, :8].flatten())
    assert model(idx, targets).item() == pytest.approx(want.item(), abs=1e-6)


def test_too_long_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit the context of 16 positions"):
        model_of(TINY)(tokens(length=17))


def test_public_layers_take_a_config() -> None:
    x = torch.randn(2, 5, TINY.n_embd)
    for layer in (MultiHeadAttention(TINY), FeedForward(TINY), TransformerBlock(TINY)):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        assert layer(x).shape == x.shape


def test_hidden_states_continue_a_cache() -> None:
    model, idx = model_of(TINY), tokens()
    cache = KVCache(TINY, 2, 16)
    with torch.no_grad():
        model.hidden(idx[:, :5], cache=cache)
        rest = model.hidden(idx[:, 5:], cache=cache)
        assert torch.allclose(rest, model.hidden(idx)[:, 5:], atol=1e-5)
