"""Generation: the same tokens with and without cache, alone and in a batch, inside and past the window."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from gptfit.errors import ConfigError, DataError
from gptfit.generate import SamplingOptions, generate
from gptfit.generate.sampling import choose, keep_top_k, keep_top_p
from gptfit.model import GPT2
from random_configs import random_config

GREEDY = SamplingOptions(temperature=0)
DRAWN = SamplingOptions(temperature=0.9, top_k=12, top_p=0.95, seed=5)


def model_of(seed: int = 0, n_positions: int = 32) -> GPT2:
    model = GPT2(random_config(seed, n_positions=n_positions, initializer_range=0.3))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def continuations(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    n: int,
    options: SamplingOptions = GREEDY,
    **more: object,
) -> list[list[int | None]]:
    steps = list(generate(model, prompts, n, options, **more))  # type: ignore[arg-type]
    return [[step[row] for step in steps] for row in range(len(prompts))]


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("seed", range(8))
def test_cache_does_not_change_the_tokens(seed: int, options: SamplingOptions) -> None:
    model = model_of(seed, n_positions=17)
    with_cache, without = (
        continuations(model, [[1, 2, 3]], 60, options, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert with_cache == without
    assert len(with_cache[0]) == 60  # far past the window of 17


@pytest.mark.parametrize("new_tokens", [15, 60], ids=["inside the window", "past it"])
@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("seed", range(8))
def test_batch_equals_one_by_one(seed: int, options: SamplingOptions, new_tokens: int) -> None:
    model = model_of(seed)
    prompts = [[1], [2, 3, 4, 1, 0], [4, 2]]
    batched = continuations(model, prompts, new_tokens, options)
    for row, prompt in enumerate(prompts):
        own = options.replace(seed=options.seed + row)
        assert batched[row] == continuations(model, [prompt], new_tokens, own)[0]


def test_slides_once_and_says_so() -> None:
    said: list[str] = []
    continuations(model_of(n_positions=8), [[1, 2]], 6, on_slide=lambda: said.append("slid"))
    assert said == []
    continuations(model_of(n_positions=8), [[1, 2]], 40, on_slide=lambda: said.append("slid"))
    assert said == ["slid"]


def test_prompt_longer_than_the_context() -> None:
    said: list[str] = []
    model = model_of(n_positions=8)
    prompt = [i % 5 for i in range(30)]
    long = continuations(model, [prompt], 5, on_slide=lambda: said.append("slid"))
    assert long == continuations(model, [prompt[-8:]], 5)
    assert said == ["slid"]


def test_rows_stop_on_their_own() -> None:
    model = model_of(1)
    free = continuations(model, [[1], [2]], 12)
    stop = free[0][4]
    ended = continuations(model, [[1], [2]], 12, stop_id=stop)
    first = free[0].index(stop)
    assert ended[0][:first] == free[0][:first]
    assert set(ended[0][first:]) <= {None}
    assert stop not in ended[1]


def test_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    model = model_of(2)
    with torch.no_grad():
        model.lm_head.weight[3:] += 10
    tokens = continuations(model, [[1]], 30, SamplingOptions(temperature=5.0), vocab_size=3)
    assert max(token for token in tokens[0] if token is not None) < 3


def test_same_seed_same_text_other_seed_other_text() -> None:
    model, options = model_of(3), SamplingOptions(seed=1)
    first = continuations(model, [[1]], 25, options)
    assert first == continuations(model, [[1]], 25, options)
    assert first != continuations(model, [[1]], 25, options.replace(seed=2))


def test_choice_follows_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(4000, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    ids = choose(logits, SamplingOptions(temperature=0.5), generators)
    share = torch.bincount(ids, minlength=3) / 4000
    assert torch.allclose(share, (logits[0] / 0.5).softmax(0), atol=0.03)


def test_top_k_and_top_p_keep_what_they_should() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_k(logits, 99).isfinite().all()
    assert keep_top_p(logits, 0.65).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_p(logits, 0.75).isfinite().tolist() == [[False, True, True, True]]
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert keep_top_p(logits, 1.0).isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be positive"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"topk": 3}, "unknown key 'topk'; did you mean 'top_k'"),
    ],
)
def test_bad_options(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingOptions(**values)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_empty_prompt_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(DataError, match="at least one token"):
        continuations(model_of(), prompts, 5)


def test_foreign_ids_are_refused() -> None:
    with pytest.raises(DataError, match="made with another tokenizer"):
        continuations(model_of(), [[100_000]], 5)
