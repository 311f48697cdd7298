"""Token ids in, token ids out. Text lives above, in ``text``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfit.errors import DataError
from gptfit.generate.decoder import Decoder
from gptfit.generate.lookup import draft
from gptfit.generate.sampling import SamplingOptions, adjusted, choose
from gptfit.model import GPT2, KVCache

Ids = Sequence[int]

KEPT_SHARE = 0.5
"""Of a full context, when it slides: the later half is kept and read again."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to continue, how far and how.

    With ``top_logprobs`` each token comes with its log-probability, and with those of so many of the
    likeliest tokens.
    """

    prompt: Ids
    max_new_tokens: int
    options: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A chosen token; its log-probabilities (in nats) are the model's own, before any sampling option."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Row:
    """A request under way.

    The cache's row ``slot`` has seen ``ids[start : start + seen]``; between two steps exactly the last
    id is unseen.
    """

    request: Request
    slot: int
    generator: torch.Generator
    ids: list[int]
    start: int
    seen: int = 0
    finish_reason: str | None = None

    @property
    def cached(self) -> list[int]:
        """The ids whose keys and values are in the cache."""
        return self.ids[self.start : self.start + self.seen]

    @property
    def generated(self) -> int:
        """How many ids are new."""
        return len(self.ids) - len(self.request.prompt)

    def take(self, token: int) -> bool:
        """Go on with ``token``; False where it ends the row instead."""
        if token in self.request.stop_ids:
            self.finish_reason = "stop"
            return False
        self.ids.append(token)
        if self.generated == self.request.max_new_tokens:
            self.finish_reason = "length"
        return True


class Engine:
    """Continues several requests at once, one token of each at a step, in the rows of one cache.

    A row's tokens do not depend on its neighbours, which may come and go at any time. The keys and
    values of a prompt's beginning that any row holds, or held last, are copied, not computed again.
    Past the context window the later half of it is read again; ``slid`` tells.

    Ids from ``vocab_size`` on (a model may have more than its tokenizer) are never chosen. A row takes
    up to ``capacity`` tokens. With ``lookup`` a row that is alone is offered so many tokens at once
    that followed when its last ones occurred before; it takes those that it would have chosen.
    ``use_cache=False`` computes everything at each step: slower, to the same tokens.
    """

    def __init__(
        self,
        model: GPT2,
        slots: int = 1,
        *,
        vocab_size: int | None = None,
        capacity: int | None = None,
        lookup: int = 0,
        use_cache: bool = True,
    ) -> None:
        config, weight = model.config, model.wpe.weight
        self.model, self.device = model, weight.device
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self.capacity = min(capacity or config.n_positions, config.n_positions)
        self.lookup, self.use_cache, self.slid = lookup, use_cache, False
        # A model in shards gathers its weights where its modules are called.
        self.decoder = Decoder(model) if type(model) is GPT2 else None
        self.cache = KVCache(config, slots, self.capacity, weight.dtype, weight.device)
        self.rows: list[Row] = []
        self._left: list[list[int]] = [[] for _ in range(slots)]  # what free slots still hold

    @property
    def free(self) -> int:
        """How many more requests fit."""
        return len(self._left) - len(self.rows)

    @torch.inference_mode()
    def add(self, request: Request) -> Row:
        """Take a request in. Raises ``DataError`` for a prompt that the model cannot read."""
        assert self.free, "all slots are taken"
        check_prompt(request.prompt, self.model.config.vocab_size)
        ids = [int(token) for token in request.prompt]
        start = max(0, len(ids) - self.capacity)
        generator = torch.Generator().manual_seed(request.options.seed)
        row = Row(request, len(self.rows), generator, ids, start)
        self.slid |= start > 0
        self._share(row)
        self._read(row)
        self.rows.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Token]]:
        """The next token of every row; of one that is alone perhaps several.

        A row that has met a stop token (which is not told) or its length has a ``finish_reason`` and
        has left. Raises ``DataError`` where the model computes no numbers.
        """
        if not self.rows:
            return []
        for row in self.rows:
            if row.seen == self.capacity:
                self._slide(row)
        guesses = self._guesses()
        logits = self._logits(guesses)
        told: list[tuple[Row, Token]] = []
        for place, guess in enumerate([*guesses, None]):
            tokens = self._choose(logits[:, place])
            for row, token in zip(self.rows, tokens, strict=True):
                row.seen += 1
                if row.take(token.id):
                    told.append((row, token))
            if self.rows[0].finish_reason or tokens[0].id != guess:
                break
        for row in list(self.rows):
            if row.finish_reason:
                self.remove(row)
        return told

    def remove(self, row: Row) -> None:
        """Give up a row; one that has left already is no error."""
        if row not in self.rows:
            return
        last = self.rows.pop()
        self._left[last.slot] = last.cached
        if last is not row:  # the rows stay together, so that a step computes on one block of them
            self.cache.copy_row(last.slot, row.slot, last.seen)
            self.rows[row.slot] = last
            last.slot = row.slot

    def _share(self, row: Row) -> None:
        """Take over the longest beginning of the row's window that the cache holds anywhere."""
        held = [other.cached for other in self.rows] + self._left[len(self.rows) :]
        wanted = row.ids[row.start : -1]
        common = [_common_length(ids, wanted) for ids in held]
        row.seen = max(common)
        source = common.index(row.seen)
        if source != row.slot:
            self.cache.copy_row(source, row.slot, row.seen)

    def _read(self, row: Row) -> None:
        """Let the cache see all ids of the row but the last."""
        fresh = row.ids[row.start + row.seen : -1]
        if fresh and self.use_cache:
            idx = torch.tensor([fresh], device=self.device)
            self.model(idx, cache=self.cache.rows(row.slot, [row.seen]), last_only=True)
        row.seen += len(fresh)

    def _slide(self, row: Row) -> None:
        row.start, row.seen = len(row.ids) - max(1, int(self.capacity * KEPT_SHARE)), 0
        self.slid = True
        self._read(row)

    def _guesses(self) -> list[int]:
        """What may come next, where looking ahead pays: a single row leaves the processor waiting."""
        if not self.lookup or len(self.rows) != 1:
            return []
        row = self.rows[0]
        left = row.request.max_new_tokens - row.generated
        return draft(row.ids, min(self.lookup, self.capacity - row.seen - 1, left - 1))

    def _logits(self, guesses: list[int]) -> Tensor:
        """Logits (B, 1 + guesses, V) after each row's last id, and after each guess behind it."""
        if self.use_cache:
            idx = torch.tensor([[row.ids[-1], *guesses] for row in self.rows], device=self.device)
            cache = self.cache.rows(0, [row.seen for row in self.rows])
            if self.decoder and not guesses:
                logits = self.decoder(idx[:, 0], cache)[:, None]
            else:
                logits = self.model(idx, cache=cache)
        else:
            windows = [[*row.ids[row.start :], *guesses] for row in self.rows]
            every = [self.model(torch.tensor([ids], device=self.device)) for ids in windows]
            logits = torch.cat([one[:, -1 - len(guesses) :] for one in every])
        return logits[..., : self.vocab_size].float()

    def _choose(self, logits: Tensor) -> list[Token]:
        """A token of each row from logits (B, V)."""
        requests = [row.request for row in self.rows]
        chosen_from = logits
        if any(request.options.changes_logits for request in requests):
            chosen_from = torch.stack(
                [
                    adjusted(logits[row.slot], row.request.options, row.ids, row.generated)
                    for row in self.rows
                ]
            )
        alike: dict[object, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(request.options.filters, []).append(place)
        ids = torch.zeros(len(requests), dtype=torch.long, device=logits.device)
        for places in alike.values():
            part = slice(None) if len(alike) == 1 else places
            generators = [self.rows[place].generator for place in places]
            ids[part] = choose(chosen_from[part], requests[places[0]].options, generators)
        # NaN is the largest to argmax; where it takes part in a sum, a draw falls behind the last.
        values = logits.gather(1, ids.clamp(max=self.vocab_size - 1)[:, None])
        tokens = ids.tolist()
        if self.vocab_size in tokens or not all(map(math.isfinite, values.flatten().tolist())):
            raise DataError(
                "the model computes NaN or infinity: its weights are damaged; take another checkpoint"
            )
        return [
            _told(token, logits[place], requests[place].top_logprobs)
            for place, token in enumerate(tokens)
        ]


def generate(
    model: GPT2,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    *,
    stop_id: int | None = None,
    vocab_size: int | None = None,
    use_cache: bool | None = None,
    lookup: int = 0,
    on_slide: Callable[[], None] | None = None,
) -> Iterator[list[int | None]]:
    """Continue all ``prompts``; yield the next id of each, None once it has met ``stop_id``.

    Row i draws from seed + i. ``use_cache`` defaults to the config's; the rest is as ``Engine`` says.
    ``on_slide`` is called when a context is full for the first time.
    """
    options = options or SamplingOptions()
    for prompt in prompts or [[]]:
        check_prompt(prompt, model.config.vocab_size)
    engine = Engine(
        model,
        len(prompts),
        vocab_size=vocab_size,
        capacity=max(len(prompt) for prompt in prompts) + max_new_tokens,
        lookup=lookup,
        use_cache=model.config.use_cache if use_cache is None else use_cache,
    )
    stop_ids = frozenset() if stop_id is None else frozenset({stop_id})
    rows = [
        engine.add(
            Request(
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                options=options.replace(seed=options.seed + number),
                stop_ids=stop_ids,
            )
        )
        for number, prompt in enumerate(prompts)
    ]
    while engine.rows:
        told = engine.step()
        if engine.slid and on_slide is not None:
            on_slide()
            on_slide = None
        if len(prompts) == 1:  # of which a step may tell several
            for _, token in told:
                yield [token.id]
        elif told:
            chosen = {row: token.id for row, token in told}
            yield [chosen.get(row) for row in rows]


def check_prompt(prompt: Ids, vocab_size: int) -> None:
    """Raises ``DataError`` for ids that a model of this vocabulary cannot continue."""
    if not len(prompt):
        raise DataError("a prompt needs at least one token to continue")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise DataError(
                f"a prompt has token id {token}, but the model's vocabulary ends at "
                f"{vocab_size - 1}: it was made with another tokenizer"
            )


def _told(token: int, logits: Tensor, top_logprobs: int | None) -> Token:
    if top_logprobs is None:
        return Token(token)
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(top_logprobs, len(logprobs)))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Token(token, logprobs[token].item(), tuple(likeliest))


def _common_length(first: Ids, second: Ids) -> int:
    """How many ids two lists begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
