"""Generation: the same tokens with and without cache, alone and in a batch, inside and past the window."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from gptfit.errors import DataError
from gptfit.generate import Engine, Request, SamplingOptions, generate
from gptfit.generate.engine import Row
from gptfit.generate.lookup import draft
from gptfit.model import GPT2
from random_configs import random_config

GREEDY = SamplingOptions(temperature=0)
DRAWN = SamplingOptions(temperature=0.9, top_k=12, top_p=0.95, seed=5)


def model_of(seed: int = 0, n_positions: int = 32) -> GPT2:
    model = GPT2(random_config(seed, n_positions=n_positions, initializer_range=0.3))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def some_ids(draw: random.Random, model: GPT2, length: int) -> list[int]:
    return [draw.randrange(model.config.vocab_size) for _ in range(length)]


def continuations(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    n: int,
    options: SamplingOptions = GREEDY,
    **more: object,
) -> list[list[int | None]]:
    steps = list(generate(model, prompts, n, options, **more))  # type: ignore[arg-type]
    return [[step[row] for step in steps] for row in range(len(prompts))]


@pytest.mark.parametrize("seed", range(200))
def test_cache_does_not_change_the_tokens(seed: int) -> None:
    model, draw = model_of(seed, n_positions=17), random.Random(seed)
    prompt = some_ids(draw, model, draw.randint(1, 25))
    new_tokens = draw.choice([3, 17, 40])  # the window is 17
    options = GREEDY if seed % 2 else DRAWN
    with_cache, without = (
        continuations(model, [prompt], new_tokens, options, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert with_cache == without
    assert len(with_cache[0]) == new_tokens


@pytest.mark.parametrize("seed", range(100))
def test_batch_equals_one_by_one(seed: int) -> None:
    model, draw = model_of(seed), random.Random(seed)
    prompts = [some_ids(draw, model, draw.randint(1, 40)) for _ in range(draw.randint(2, 5))]
    new_tokens, options = draw.choice([5, 15, 45]), GREEDY if seed % 2 else DRAWN
    batched = continuations(model, prompts, new_tokens, options)
    for row, prompt in enumerate(prompts):
        own = options.replace(seed=options.seed + row)
        assert batched[row] == continuations(model, [prompt], new_tokens, own)[0]


@pytest.mark.parametrize("seed", range(20))
def test_rows_may_come_and_go(seed: int) -> None:
    """Requests of different options enter and leave a full engine; each text is as if alone."""
    model, draw = model_of(seed), random.Random(seed)
    engine, waiting, done = Engine(model, 3), [], []
    for number in range(12):
        start = some_ids(draw, model, 4) if number % 3 == 0 else waiting[-1].prompt[:4]
        options = draw.choice([GREEDY, DRAWN, SamplingOptions(repetition_penalty=1.3, min_p=0.01)])
        request = Request(
            prompt=[*start, *some_ids(draw, model, draw.randint(0, 30))],
            max_new_tokens=draw.randint(1, 30),
            options=options.replace(seed=number),
        )
        waiting.append(request)
    rows: list[Row] = []
    while waiting or engine.rows:
        if waiting and engine.free:
            rows.append(engine.add(waiting.pop(0)))
        engine.step()
        if engine.rows and draw.random() < 0.05:
            engine.remove(draw.choice(engine.rows))
    for row in rows:
        alone = Engine(model, 1)
        same = alone.add(row.request)
        while alone.rows:
            alone.step()
        assert row.ids == same.ids[: len(row.ids)]
        if row.finish_reason:
            done.append(row)
            assert row.ids == same.ids
    assert len(rows) == 12
    assert len(done) > 3


def test_what_a_prompt_shares_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(3)
    read: list[int] = []
    hidden = GPT2.hidden
    monkeypatch.setattr(
        GPT2,
        "hidden",
        lambda self, idx, *a, **k: read.append(idx.shape[1]) or hidden(self, idx, *a, **k),
    )
    continuations(model, [[1, 2, 3, 4, 1, 2]] * 4, 2)
    assert read == [5]  # the prompt but its last token, once for four rows


def test_a_session_goes_on_from_what_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = model_of(3), Engine(model_of(3), 1)
    first = engine.add(Request(prompt=[1, 2, 3], max_new_tokens=4))
    while engine.rows:
        engine.step()
    second = engine.add(Request(prompt=[*first.ids, 2, 1], max_new_tokens=4))
    fresh = Engine(model, 1).add(second.request)
    assert second.seen == fresh.seen == 8
    while engine.rows:
        engine.step()
    assert second.ids[9:] == continuations(model, [second.request.prompt], 4, SamplingOptions())[0]


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("seed", range(10))
def test_looking_ahead_does_not_change_the_tokens(seed: int, options: SamplingOptions) -> None:
    model = model_of(seed, n_positions=17)
    prompt = [1, 2, 3, 1, 2, 3, 1]
    plain = continuations(model, [prompt], 50, options)
    assert continuations(model, [prompt], 50, options, lookup=4) == plain


def test_looking_ahead_takes_fewer_steps() -> None:
    engine = Engine(model_of(2, n_positions=64), 1, lookup=4)
    engine.add(Request(prompt=[1, 2], max_new_tokens=60, options=GREEDY))
    steps = 0
    while engine.rows:
        engine.step()
        steps += 1
    assert steps < 40  # a greedy text of so small a model repeats itself


def test_draft_takes_the_latest_longest_match() -> None:
    assert draft([5, 1, 2, 7, 1, 2, 9, 1, 2], 2) == [9, 1]
    assert draft([1, 2, 3, 9, 3, 8, 1, 2, 3], 1) == [9]
    assert draft([1, 2, 3], 3) == []
    assert draft([1, 1, 1], 0) == []


def test_logprobs_are_the_models_own() -> None:
    model = model_of(2)
    engine = Engine(model, 1)
    options = SamplingOptions(temperature=0.3, top_k=2, seed=4)
    row = engine.add(Request(prompt=[1, 2], max_new_tokens=6, options=options, top_logprobs=3))
    told = [token for _ in range(6) for _, token in engine.step()]
    with torch.no_grad():
        want = model(torch.tensor([row.ids]))[0, 1:-1].log_softmax(-1)
    for token, logprobs in zip(told, want, strict=True):
        assert token.logprob == pytest.approx(logprobs[token.id].item(), abs=1e-5)
        assert [one for one, _ in token.top] == logprobs.topk(3).indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(
            logprobs.topk(3).values.tolist(), abs=1e-5
        )


def test_a_model_of_nan_is_an_error() -> None:
    model = model_of(2)
    with torch.no_grad():
        model.ln_f.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="computes NaN or infinity"):
        continuations(model, [[1]], 3)


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


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_empty_prompt_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(DataError, match="at least one token"):
        continuations(model_of(), prompts, 5)


def test_foreign_ids_are_refused() -> None:
    with pytest.raises(DataError, match="made with another tokenizer"):
        continuations(model_of(), [[100_000]], 5)
