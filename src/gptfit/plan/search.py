"""Which model to train on a text, on a device, in a time: every candidate of a lattice, compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptfit.errors import ConfigError
from gptfit.plan.lattice import Columns, Lattice, Machine, Text, tabulate
from gptfit.plan.scaling import Facts, TextLaw, law_for

LEAST_STEPS = 50
WINDOWS = 10
"""Training text must hold this many windows of a candidate's context; so a tenth holds one to validate."""
BUDGET_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
RANKED = 5
PROMISING = 5000
WORTH_STOPPING = 0.005
"""Less than the whole time is only taken for a loss that is lower by this share."""
WORTH_MEMORY = 0.002
"""A point of the Pareto set that takes more memory must lower the loss by this share."""
GIB = 2**30


@dataclass(frozen=True)
class Candidate:
    """A model and how to train it, with what is expected; ``binding`` is what limits its loss most."""

    n_layer: int
    n_embd: int
    n_head: int
    n_positions: int
    vocab_size: int
    micro_batch_size: int
    grad_accum_steps: int
    dtype: str
    checkpointed_blocks: int
    loss_chunks: int
    parameters: int
    bits_per_byte: float
    binding: str
    seconds: float
    step_seconds: float
    steps: int
    tokens: float
    epochs: float
    memory_bytes: float

    @property
    def batch_size(self) -> int:
        """Sequences of an optimizer step."""
        return self.micro_batch_size * self.grad_accum_steps

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second."""
        return self.tokens / self.seconds

    @property
    def values(self) -> dict[str, Any]:
        """The candidate as values of a recipe."""
        return {
            "model.n_layer": self.n_layer,
            "model.n_embd": self.n_embd,
            "model.n_head": self.n_head,
            "model.n_positions": self.n_positions,
            "train.batch_size": self.batch_size,
            "train.micro_batch_size": self.micro_batch_size,
            "run.loss_chunks": self.loss_chunks,
            "run.checkpointed_blocks": self.checkpointed_blocks,
        }


@dataclass(frozen=True)
class Help:
    """What more of something would bring: the change, and the loss of the best candidate with it."""

    change: str
    bits_per_byte: float


@dataclass(frozen=True)
class SearchResult:
    """The ranked few, the Pareto set of loss, time and memory, and what would help most."""

    considered: int
    fitting: int
    best: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    helps: tuple[Help, ...]
    law: str
    search_seconds: float


@dataclass(frozen=True)
class Search:
    """The question, with the table of its candidates."""

    text: Text
    machine: Machine
    seconds: float
    law: TextLaw
    table: Columns

    def unique_tokens(self) -> Any:
        """Tokens of the text, in each candidate's vocabulary."""
        return self.text.train_bytes * self.table["tokens_per_byte"]

    def tokens(self) -> Any:
        """Tokens that the time allows."""
        return self.seconds / self.table["step_seconds"] * self.table["step_tokens"]

    def fits(self) -> Any:
        """Which candidates the memory holds, the time trains and the text feeds."""
        return self.in_memory() & self.in_time() & self.in_text()

    def in_memory(self) -> Any:
        """Whose step the device holds."""
        return self.table["memory"] <= self.machine.usable_bytes

    def in_time(self) -> Any:
        """Whose steps are enough to speak of training."""
        return self.seconds >= LEAST_STEPS * self.table["step_seconds"]

    def in_text(self) -> Any:
        """Whose windows the text has."""
        return self.table["T"] * WINDOWS <= self.unique_tokens()

    def facts(self) -> Facts:
        """What the law reads."""
        table = self.table
        return Facts(
            width=table["C"],
            depth=table["L"],
            weights=table["weights"],
            context=table["T"],
            vocab_size=table["V"],
            tokens=self.tokens(),
            unique_tokens=self.unique_tokens(),
            tokens_per_byte=table["tokens_per_byte"],
            step_tokens=table["step_tokens"],
            gain=table["gain"],
        )

    def bits_per_byte(self) -> Any:
        """The loss that the law expects."""
        return self.law.bits_per_byte(self.facts(), self.text.compressed_bits)

    def only(self, rows: Any) -> Search:
        """The same of some candidates."""
        table = {key: column[rows] for key, column in self.table.items()}
        return replace(self, table=table)

    def for_part(self, share: float) -> Search:
        """The same with less time."""
        return replace(self, seconds=self.seconds * share)


def search(
    text: Text,
    machine: Machine,
    seconds: float,
    law: TextLaw | None = None,
    lattice: Lattice | None = None,
) -> SearchResult:
    """Compare every candidate; ``ConfigError`` when none fits, saying what is short and by how much.

    A candidate may take less than the time: when a text is used up, more passes make it worse.
    """
    started = time.perf_counter()
    law = law or law_for(text.train_bytes)
    table = tabulate(text, machine, seconds, lattice or Lattice())
    asked = Search(text, machine, seconds, law, table)
    fits = asked.fits()
    if not fits.any():
        raise ConfigError(_shortage(asked))
    parts = [asked.for_part(share) for share in BUDGET_SHARES]
    losses = [_loss_of_fitting(part) for part in parts]
    return SearchResult(
        considered=len(fits),
        fitting=int(fits.sum()),
        best=_ranked(parts, losses),
        pareto=_pareto(parts, losses),
        helps=_helps(asked.only(_promising(losses))),
        law=law.name,
        search_seconds=time.perf_counter() - started,
    )


def _loss_of_fitting(asked: Search) -> Any:
    """Bits per byte; infinite where a candidate does not fit."""
    import numpy as np

    return np.where(asked.fits(), asked.bits_per_byte(), np.inf)


def _ranked(parts: Sequence[Search], losses: Sequence[Any]) -> tuple[Candidate, ...]:
    """The best of each model: the same in another batch is no alternative."""
    import numpy as np

    # The whole time, unless less of it is better by more than the law can tell.
    worth = np.stack([*(loss * (1 + WORTH_STOPPING) for loss in losses[:-1]), losses[-1]])
    chosen, least = worth.argmin(axis=0), worth.min(axis=0)
    table, seen = parts[0].table, set()
    found: list[Candidate] = []
    # Of two that are as good, the one that computes faster.
    token_seconds = table["step_seconds"] / table["step_tokens"]
    for row in np.lexsort((token_seconds, np.round(least, 3))).tolist():
        size = tuple(int(table[key][row]) for key in "LCTV")
        if np.isinf(least[row]) or len(found) == RANKED:
            break
        if size not in seen:
            seen.add(size)
            found.append(_candidate(parts[chosen[row]], row))
    return tuple(sorted(found, key=lambda candidate: candidate.bits_per_byte))


def _promising(losses: Sequence[Any]) -> Any:
    """Rows that may be the best with more of something: those that are good, and those that do not fit."""
    import numpy as np

    least = np.min(losses, axis=0)
    good = np.argsort(least, kind="stable")[:PROMISING]
    return np.union1d(good, np.flatnonzero(np.isinf(least)))


def _candidate(asked: Search, row: int) -> Candidate:
    one = asked.only([row])
    table = one.table
    tokens = float(one.tokens()[0])
    causes = {cause: float(term[0]) for cause, term in asked.law.terms(one.facts()).items()}
    return Candidate(
        n_layer=int(table["L"][0]),
        n_embd=int(table["C"][0]),
        n_head=int(table["H"][0]),
        n_positions=int(table["T"][0]),
        vocab_size=int(table["V"][0]),
        micro_batch_size=int(table["B"][0]),
        grad_accum_steps=int(table["A"][0]),
        dtype=str(table["dtype"][0]),
        checkpointed_blocks=int(table["k"][0]),
        loss_chunks=int(table["chunks"][0]),
        parameters=int(table["N"][0]),
        bits_per_byte=float(one.bits_per_byte()[0]),
        binding=max(causes, key=lambda cause: causes[cause]),
        seconds=asked.seconds,
        step_seconds=float(table["step_seconds"][0]),
        steps=int(tokens / table["step_tokens"][0]),
        tokens=tokens,
        epochs=tokens / float(one.unique_tokens()[0]),
        memory_bytes=float(table["memory"][0]),
    )


def _pareto(parts: Sequence[Search], losses: Sequence[Any]) -> tuple[Candidate, ...]:
    """No other point has less loss in as little time and memory. Times are shares of the budget."""
    import numpy as np

    points = []
    for part, loss in zip(parts, losses, strict=True):
        memory = part.table["memory"]
        order = np.lexsort((loss, memory))
        falling = loss[order]
        least_before = np.minimum.accumulate(np.concatenate([[1e9], falling[:-1]]))
        least = np.inf
        for row in order[falling < least_before].tolist():
            if loss[row] < least * (1 - WORTH_MEMORY):
                least = loss[row]
                points.append(_candidate(part, row))
    return tuple(point for point in points if not any(_beats(other, point) for other in points))


def _beats(one: Candidate, other: Candidate) -> bool:
    """Whether it is nowhere worse and takes less time."""
    return (
        one.seconds < other.seconds
        and one.memory_bytes <= other.memory_bytes
        and one.bits_per_byte <= other.bits_per_byte
    )


def _helps(asked: Search) -> tuple[Help, ...]:
    """The best loss with more of one thing, most helpful first."""
    more = {
        "twice the time": replace(asked, seconds=2 * asked.seconds),
        "an hour more": replace(asked, seconds=asked.seconds + 3600),
        "twice the text": replace(
            asked, text=replace(asked.text, train_bytes=2 * asked.text.train_bytes)
        ),
        "1 GiB more memory": replace(
            asked,
            machine=replace(asked.machine, usable_bytes=asked.machine.usable_bytes + GIB),
        ),
    }
    helps = [Help(change, _least(question)) for change, question in more.items()]
    return tuple(sorted(helps, key=lambda item: item.bits_per_byte))


def _least(asked: Search) -> float:
    return float(min(_loss_of_fitting(asked.for_part(share)).min() for share in BUDGET_SHARES))


def _shortage(asked: Search) -> str:
    """Which constraint leaves no candidate, and by how much."""
    table = asked.table
    if not asked.in_memory().any():
        least = float(table["memory"].min())
        return (
            f"no candidate fits the memory: the smallest needs {least / GIB:.2f} GiB and "
            f"{asked.machine.usable_bytes / GIB:.2f} GiB are there; free memory or use a smaller model"
        )
    if not asked.in_text().any():
        short = WINDOWS * int(table["T"].min())
        return (
            f"the text is too short: {float(asked.unique_tokens().max()):,.0f} tokens, and even the "
            f"shortest context needs {short:,}; use more text or a smaller n_positions"
        )
    needed = LEAST_STEPS * float(table["step_seconds"][asked.in_memory() & asked.in_text()].min())
    return (
        f"the time is too short: {LEAST_STEPS} steps of the fastest candidate take {needed:,.1f} s "
        f"and {asked.seconds:,.1f} s are there; give at least --time {needed:.0f}s"
    )
