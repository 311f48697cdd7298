"""Token ids in, an iterator of token ids out. Text lives above, in ``text``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from gptfit.errors import DataError
from gptfit.generate.sampling import SamplingOptions, choose
from gptfit.model import GPT2, KVCache

Ids = Sequence[int]


def generate(
    model: GPT2,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    *,
    stop_id: int | None = None,
    vocab_size: int | None = None,
    use_cache: bool | None = None,
    on_slide: Callable[[], None] | None = None,
) -> Iterator[list[int | None]]:
    """Continue all ``prompts``; yield the next id of each, None once it has met ``stop_id``.

    A prompt's continuation does not depend on its neighbours: row i draws from seed + i. Ids from
    ``vocab_size`` on (a model may have more than its tokenizer) are never chosen. Past the context
    window the later half of it is kept and prefilled again; ``on_slide`` is called the first time.
    ``use_cache`` defaults to the config's; it changes the speed, not the tokens.
    """
    options = options or SamplingOptions()
    _check_prompts(model, prompts)
    use_cache = model.config.use_cache if use_cache is None else use_cache
    generators = [
        torch.Generator(model.wte.weight.device).manual_seed(options.seed + row)
        for row in range(len(prompts))
    ]

    def decode(rows: range) -> Iterator[list[int | None]]:
        ids = _left_padded([prompts[row] for row in rows], model.wte.weight.device)
        steps = _next_ids(
            model, *ids, options, [generators[row] for row in rows], vocab_size, use_cache, slid
        )
        return _until_stopped(steps, max_new_tokens, stop_id)

    slid = _Once(on_slide)
    lengths = [len(prompt) for prompt in prompts]
    ragged = min(lengths) != max(lengths)
    if ragged and max(lengths) + max_new_tokens > model.config.n_positions:
        # Padded rows would slide together, each at another place than on its own.
        alone = [decode(range(row, row + 1)) for row in range(len(prompts))]
        for step in zip_longest(*alone):
            yield [ids[0] if ids else None for ids in step]
    else:
        yield from decode(range(len(prompts)))


def _check_prompts(model: GPT2, prompts: Sequence[Ids]) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise DataError("a prompt needs at least one token to continue")
    for prompt in prompts:
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise DataError(
                f"a prompt has token id {max(prompt)}, but the model's vocabulary ends at "
                f"{model.config.vocab_size - 1}: it was made with another tokenizer"
            )


def _left_padded(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) with zeros on the left, and the mask of real tokens where there is padding."""
    T = max(len(prompt) for prompt in prompts)
    ids = [[0] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[False] * (T - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    padded = any(len(prompt) < T for prompt in prompts)
    return (
        torch.tensor(ids, device=device),
        torch.tensor(mask, device=device) if padded else None,
    )


@torch.inference_mode()
def _next_ids(
    model: GPT2,
    window: Tensor,
    mask: Tensor | None,
    options: SamplingOptions,
    generators: Sequence[torch.Generator],
    vocab_size: int | None,
    use_cache: bool,
    slid: Callable[[], None],
) -> Iterator[Tensor]:
    """Endless next ids (B,) after ``window`` (B, T)."""
    n_positions = model.config.n_positions
    if window.shape[1] > n_positions:
        slid()
        window = window[:, -n_positions:]
    cache = _new_cache(model, window.shape[0]) if use_cache else None
    fresh = window  # what the cache has not seen
    while True:
        logits = _last_logits(model, fresh, mask, cache)
        ids = choose(logits[:, :vocab_size], options, generators)
        yield ids
        window = torch.cat([window, ids[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1) if mask is not None else None
        if window.shape[1] > n_positions:
            keep = max(1, n_positions // 2)
            slid()
            window = window[:, -keep:]  # no row is padded here: ragged rows slide one by one
            if cache is not None:
                cache.clear()
            fresh = window
        else:
            fresh = ids[:, None] if cache is not None else window


def _last_logits(model: GPT2, fresh: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
    positions = None
    if mask is not None:  # count real tokens only
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
    return model(fresh, positions=positions, mask=mask, cache=cache, last_only=True)[:, -1]


def _new_cache(model: GPT2, batch_size: int) -> KVCache:
    weight = model.wte.weight
    return KVCache(model.config, batch_size, model.config.n_positions, weight.dtype, weight.device)


def _until_stopped(
    steps: Iterator[Tensor], max_new_tokens: int, stop_id: int | None
) -> Iterator[list[int | None]]:
    """Blank each row from its stop token on; end when all rows have stopped."""
    stopped: set[int] = set()
    for _, ids in zip(range(max_new_tokens), steps, strict=False):
        row_ids = ids.tolist()
        stopped |= {row for row, token in enumerate(row_ids) if token == stop_id}
        if len(stopped) == len(row_ids):
            return
        yield [None if row in stopped else token for row, token in enumerate(row_ids)]


class _Once:
    """Passes on the first call only."""

    def __init__(self, listener: Callable[[], None] | None) -> None:
        self.listener = listener

    def __call__(self) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            listener()
