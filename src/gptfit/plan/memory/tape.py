"""A tape: what a step holds in memory, from one moment to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

# Components, as every report names them.
WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
CASTS, ACTIVATIONS, LOSS = "autocast cache", "activations", "logits and loss"
TRANSIENTS, KV_CACHE, COMMUNICATION = "transients", "KV cache", "communication buffers"
ALLOCATOR = "allocator and context"

# Phases.
FORWARD, LOSS_BACKWARD, BLOCK_BACKWARD = "forward", "loss backward", "block backward"
OPTIMIZER_STEP, EVALUATION, GENERATION = "optimizer step", "evaluation", "generation"


@dataclass(frozen=True)
class Buffer:
    """Memory of one purpose: ``formula`` gives its bytes, ``source`` says what it is and why."""

    component: str
    formula: str
    source: str


@dataclass(frozen=True)
class Held:
    """A buffer that is held ``times`` (a formula) over, as by the blocks that were before."""

    buffer: Buffer
    times: str = "1"

    @property
    def formula(self) -> str:
        """Bytes of all of them."""
        return self.buffer.formula if self.times == "1" else f"{self.times}·{self.buffer.formula}"


@dataclass(frozen=True)
class Moment:
    """What is held together. It exists where ``exists`` (a formula) is positive."""

    phase: str
    held: tuple[Held, ...]
    exists: str = "1"


@dataclass
class Tape:
    """Buffers by name, and every moment at which they were most."""

    phase: str = ""
    exists: str = "1"
    held: dict[str, Held] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    growing: bool = False
    forgets: bool = False
    """A checkpoint's first pass saves nothing, and its backward pass hands out once what it recomputed:
    in both, what is ``used`` goes at once."""

    def take(self, name: str, component: str, formula: str, source: str = "") -> None:
        """From now on this is held."""
        assert name not in self.held, f"{name} is held already"
        self.hold({name: Held(Buffer(component, formula, source or name))})

    def hold(self, held: dict[str, Held]) -> None:
        """From now on all these are held."""
        self.held |= held
        self.growing = True

    def free(self, *names: str) -> None:
        """From now on these are not held any more."""
        if self.growing:
            self.moments.append(Moment(self.phase, tuple(self.held.values()), self.exists))
        for name in names:
            del self.held[name]
        self.growing = False

    def used(self, *names: str) -> None:
        """Of those that are held, nobody but a derivative reads these again."""
        if self.forgets:
            self.free(*(name for name in names if name in self.held))

    def rename(self, name: str, new: str) -> None:
        """The same memory under another name."""
        assert new not in self.held, f"{new} is held already"
        self.held[new] = self.held.pop(name)

    def turn(self, phase: str) -> None:
        """What follows belongs to another phase."""
        self.free()
        self.phase, self.growing = phase, True
