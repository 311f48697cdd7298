"""Sliding evaluation: each token but the first once, with the context that it should have."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gptfit.data import IGNORED
from gptfit.errors import ConfigError, DataError
from gptfit.formats.hf import save_model
from gptfit.generate import evaluate, evaluate_sliding, score, sliding
from gptfit.generate.sliding import SlidingWindows
from gptfit.model import GPT2
from random_configs import random_config

CASES = range(50)
V = 13


def case(seed: int, longest: int) -> tuple[int, int, int]:
    """Length of the text, context and stride."""
    draw = random.Random(seed)
    context = draw.choice([1, 3, 8, 17])
    return draw.randint(2, longest), context, draw.randint(1, context)


def model_of(n_positions: int, seed: int = 0) -> GPT2:
    config = random_config(
        seed, n_positions=n_positions, vocab_size=V, initializer_range=0.4, resid_pdrop=0.5
    )
    return GPT2(config, generator=torch.Generator().manual_seed(seed))


def ids(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, V, length).astype(np.uint16)


def first_seen(target: int, context: int, stride: int) -> int:
    """Where the context of a target begins: the window moves until it reaches the target."""
    start = 0
    while start + context < target:
        start += stride
    return start


@pytest.mark.parametrize("seed", CASES)
def test_each_token_is_scored_once_with_its_context(seed: int) -> None:
    length, context, stride = case(seed, longest=400)
    windows = SlidingWindows(np.arange(length, dtype=np.uint16), context, stride)
    scored: list[int] = []
    for first in range(0, len(windows), 3):
        inputs, targets = windows.batch(first, 3)
        assert inputs.shape == targets.shape
        assert 1 <= len(inputs) <= 3
        for row, column in np.argwhere(targets != IGNORED):
            target = int(targets[row, column])
            seen = inputs[row, : column + 1].tolist()
            assert seen == list(range(first_seen(target, context, stride), target))
            assert len(seen) == target or context - stride + 1 <= len(seen) <= context
            scored.append(target)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("seed", CASES)
def test_score_equals_one_token_at_a_time(seed: int) -> None:
    length, context, stride = case(seed, longest=30)
    model, tokens = model_of(context, seed).eval(), ids(length)
    text = torch.from_numpy(tokens.astype(np.int64))
    found = score(model, tokens, stride)
    assert found.shape == (length - 1,)
    with torch.no_grad():
        for target in range(1, length):
            seen = text[first_seen(target, context, stride) : target]
            alone = model(seen[None])[0, -1].log_softmax(-1)[text[target]]
            assert found[target - 1].item() == pytest.approx(alone.item(), abs=1e-5)
    result = evaluate_sliding(model, tokens, stride)
    assert result.tokens == length - 1
    assert result.loss == pytest.approx(-found.double().mean().item(), abs=1e-9)


def huggingface_loss(model: torch.nn.Module, text: Tensor, window: int, stride: int) -> float:
    """The recipe of transformers' documentation ("Perplexity of fixed-length models")."""
    total, scored, end_before = 0.0, 0, 0
    for begin in range(0, len(text), stride):
        end = min(begin + window, len(text))
        labels = text[begin:end].clone()
        labels[: -(end - end_before)] = IGNORED
        counted = int((labels[1:] != IGNORED).sum())
        with torch.no_grad():
            loss = model(text[None, begin:end], labels=labels[None]).loss.item()
        total, scored, end_before = total + loss * counted, scored + counted, end
        if end == len(text):
            break
    assert scored == len(text) - 1
    return total / scored


@pytest.mark.parametrize("seed", CASES)
def test_equals_huggingface_loss(seed: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    length, context, stride = case(seed, longest=60)
    # Its window of n tokens has n - 1 targets, so it coincides with ours one position shorter.
    theirs_reads_more = model_of(context + 1, seed)
    save_model(tmp_path, theirs_reads_more)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager")
    ours = GPT2(theirs_reads_more.config.replace(n_positions=context))
    state = theirs_reads_more.state_dict()
    ours.load_state_dict(state | {"wpe.weight": state["wpe.weight"][:context]})
    text = torch.from_numpy(ids(length).astype(np.int64))
    expected = huggingface_loss(theirs.eval(), text, context + 1, stride)
    assert evaluate_sliding(ours, ids(length), stride).loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("length", [2, 9, 16, 17, 18, 64, 65, 331])
def test_stride_of_the_context_is_consecutive(length: int) -> None:
    model = model_of(16)
    for limit in (None, 5, 40):
        consecutive = evaluate(model, ids(length), limit)
        slid = evaluate_sliding(model, ids(length), 16, limit)
        assert slid.tokens == consecutive.tokens
        assert slid.loss == pytest.approx(consecutive.loss, abs=1e-5)


def test_default_stride_is_half_the_context() -> None:
    for context, stride in ((1, 1), (8, 4), (17, 8)):
        found = score(model_of(context), ids(40))
        assert torch.equal(found, score(model_of(context), ids(40), stride))


def test_what_follows_has_no_influence() -> None:
    model = model_of(8)
    whole, part = score(model, ids(60), 3), score(model, ids(60)[:41], 3)
    torch.testing.assert_close(whole[:40], part, atol=1e-5, rtol=0)
    limited = evaluate_sliding(model, ids(60), 3, max_tokens=40)
    assert limited.tokens == 40
    assert limited.loss == pytest.approx(-part.mean().item(), abs=1e-5)


def test_logits_only_where_something_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(16), []
    monkeypatch.setattr(sliding, "LOGITS_LIMIT", 10 * V)
    model.lm_head.register_forward_hook(lambda _, inputs, out: rows.append(len(inputs[0])))
    expected = score(model, ids(100), 4)
    assert sum(rows) == len(expected) == 99
    assert max(rows) == 10


def test_restores_training_draws_nothing_and_tells_progress() -> None:
    model, told = model_of(8), []
    model.train()
    before = torch.get_rng_state()
    evaluate_sliding(model, ids(2000), 2, progress=told.append)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == 1999


def test_bfloat16() -> None:
    model = model_of(8)
    exact = evaluate_sliding(model, ids(300)).loss
    rounded = evaluate_sliding(model, ids(300), autocast=torch.autocast("cpu", torch.bfloat16)).loss
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_memory_that_does_not_suffice_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(8).eval()
    expected = evaluate_sliding(model, ids(300), 4)
    sizes, hidden = [], model.hidden

    def short_of_memory(idx: Tensor) -> Tensor:
        sizes.append(len(idx))
        if len(idx) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(idx)

    monkeypatch.setattr(model, "hidden", short_of_memory)
    found = evaluate_sliding(model, ids(300), 4)
    assert found.tokens == expected.tokens
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert sizes[:3] == [64, 32, 16]
    assert max(sizes[3:]) == 16


def test_one_window_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(8)

    def no_memory(idx: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "hidden", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_sliding(model, ids(300))


def test_refusals() -> None:
    model = model_of(8)
    for stride in (0, -1, 9):
        with pytest.raises(ConfigError, match=f"stride={stride} must be between 1 and .* 8"):
            evaluate_sliding(model, ids(20), stride)
    with pytest.raises(ConfigError, match="max_tokens=0 must be at least 1"):
        evaluate_sliding(model, ids(20), max_tokens=0)
    for length in (0, 1):
        with pytest.raises(DataError, match=f"{length} tokens hold nothing to predict"):
            evaluate_sliding(model, ids(length))
    with pytest.raises(DataError, match=f"token id {V} is outside the model's vocabulary of {V}"):
        evaluate_sliding(model, np.array([0, V, 1], dtype=np.uint16))


def test_no_number_is_an_error() -> None:
    model = model_of(8)
    with torch.no_grad():
        model.ln_f.weight[0] = math.nan
    with pytest.raises(DataError, match=r"NaN or infinity within the first .* another checkpoint"):
        evaluate_sliding(model, ids(20))
