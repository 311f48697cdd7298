"""A dispatch mode that follows every storage from its allocation to its release."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# What a storage is for.
WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
CASTS, SAVED, TRANSIENT, INPUTS = "autocast cache", "activations", "transients", "inputs"

# When it is made.
SETUP, FORWARD, LOSS_BACKWARD = "setup", "forward", "loss backward"
BLOCK_BACKWARD, OPTIMIZER_STEP, EVALUATION = "block backward", "optimizer step", "evaluation"
BACKWARD = (LOSS_BACKWARD, BLOCK_BACKWARD)

# Kernels that first make the logits contiguous, which a padded vocabulary leaves with gaps.
WANTS_CONTIGUOUS = {aten._log_softmax.default, aten._softmax.default}


@dataclass
class Storage:
    """One stretch of memory: its size, what it is for, what made it, and in which phase."""

    bytes: int
    category: str
    made_by: str
    phase: str


@dataclass(frozen=True)
class Live:
    """So many storages of one kind that are alive together, and their bytes."""

    category: str
    made_by: str
    phase: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Moment:
    """All that is alive when a phase holds most, the largest first."""

    bytes: int
    live: tuple[Live, ...]


@dataclass(frozen=True)
class Trace:
    """The phases of a step, each at the moment when it holds most."""

    phases: Mapping[str, Moment]

    @property
    def peak_phase(self) -> str:
        """The phase that holds most of all."""
        return max(self.phases, key=lambda phase: self.phases[phase].bytes)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive at once."""
        return self.phases[self.peak_phase].bytes

    @property
    def live(self) -> tuple[Live, ...]:
        """What is alive at the peak, the largest first."""
        return self.phases[self.peak_phase].live

    @property
    def phase_bytes(self) -> dict[str, int]:
        """The most bytes of each phase."""
        return {phase: moment.bytes for phase, moment in self.phases.items()}

    def by_category(self, phase: str | None = None) -> dict[str, int]:
        """Bytes for each purpose, at the peak or at that of one phase."""
        total: Counter[str] = Counter()
        for item in self.phases[phase or self.peak_phase].live:
            total[item.category] += item.bytes
        return dict(total.most_common())

    def __str__(self) -> str:
        return f"{self.peak_bytes / 2**20:.1f} MiB in the {self.peak_phase}\n" + self.table()

    def table(self, phase: str | None = None) -> str:
        """Every byte alive at the peak, or at that of one phase: MiB, purpose, when made, by what."""
        return "\n".join(
            f"{item.bytes / 2**20:10.2f}  {item.category:15} {item.phase:15} {item.count:4} x {item.made_by}"
            for item in self.phases[phase or self.peak_phase].live
        )


@dataclass
class Tracer(TorchDispatchMode):
    """Notes every storage that appears on ``device_type`` while the mode is on."""

    device_type: str
    phase: str = SETUP
    events: list[tuple[int, Storage, str]] = field(default_factory=list)
    storages: weakref.WeakKeyDictionary[Any, Storage] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def __post_init__(self) -> None:
        super().__init__()
        owners_of_unshared()  # measured here, because it cannot be inside a backward pass

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_hidden_composite(func):
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        if self.phase == LOSS_BACKWARD and func is aten.native_layer_norm_backward.default:
            self.phase = BLOCK_BACKWARD
        if func is aten.add.Tensor and self.phase in BACKWARD and adds_in_place(args[0]):
            func = aten.add_.Tensor
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        category = TRANSIENT if self.phase in BACKWARD else SAVED
        if func is aten._to_copy.default and self.category_of(args[0]) == WEIGHTS:
            category = CASTS
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.note(tensor, category, name)
        self.note_copies(func, args, result)
        return result

    def note(self, tensor: Tensor, category: str, name: str) -> None:
        """Follow the tensor's storage from now on, unless it is followed already."""
        storage = tensor.untyped_storage()
        if tensor.device.type != self.device_type or storage in self.storages:
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        made_by = f"{name} {tuple(tensor.shape)} {dtype}"
        entry = Storage(storage.nbytes(), category, made_by, self.phase)
        self.storages[storage] = entry
        self.allocate(entry)
        weakref.finalize(storage, self.release, entry)

    def note_copies(self, func: Any, args: Any, result: Any) -> None:
        """Copies of operands that kernels make for themselves, while they run."""
        if func in WANTS_CONTIGUOUS and not args[0].is_contiguous():
            copied = [args[0]]
        elif self.device_type == "cpu" and torch.Tag.pointwise in func.tags:
            copied = [operand for operand in args if is_converted(operand, result)]
        else:
            return
        for operand in copied:
            size = operand.numel() * result.element_size()
            entry = Storage(size, TRANSIENT, f"operand of {func}", self.phase)
            self.allocate(entry)
            self.release(entry)

    def allocate(self, entry: Storage) -> None:
        """The storage is there."""
        self.events.append((entry.bytes, entry, self.phase))

    def release(self, entry: Storage) -> None:
        """The storage is gone."""
        self.events.append((-entry.bytes, entry, self.phase))

    def category_of(self, tensor: Tensor) -> str | None:
        """What the tensor's storage is for, where it is followed."""
        entry = self.storages.get(tensor.untyped_storage())
        return entry.category if entry else None

    def assign(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what these tensors are for, now that it is known."""
        for tensor in tensors:
            self.note(tensor, category, "given")
            if entry := self.storages.get(tensor.untyped_storage()):
                entry.category = category

    def result(self) -> Trace:
        """Replay what was noted."""
        total = 0
        highest: dict[str, tuple[int, int]] = {}
        for at, (change, _, phase) in enumerate(self.events):
            total += change
            if total > highest.get(phase, (0, 0))[0]:
                highest[phase] = (total, at)
        return Trace({phase: self.moment(at) for phase, (_, at) in highest.items()})

    def moment(self, at: int) -> Moment:
        """What is alive after event ``at``."""
        alive: dict[int, Storage] = {}
        for change, entry, _ in self.events[: at + 1]:
            if change >= 0:
                alive[id(entry)] = entry
            else:
                alive.pop(id(entry), None)
        return Moment(sum(entry.bytes for entry in alive.values()), summarize(alive.values()))


def summarize(storages: Iterable[Storage]) -> tuple[Live, ...]:
    """Storages of one kind on one line, the largest first."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    for entry in storages:
        kind = (entry.category, entry.made_by, entry.phase)
        sizes[kind] += entry.bytes
        counts[kind] += 1
    return tuple(Live(*kind, counts[kind], size) for kind, size in sizes.most_common())


def is_converted(operand: Any, result: Tensor) -> bool:
    """Whether a CPU kernel copies the operand into the dtype of the result first; CUDA's never do."""
    if not isinstance(operand, Tensor) or operand.dim() == 0 or operand.dtype == result.dtype:
        return False
    return operand.is_floating_point() and result.is_floating_point()


def is_hidden_composite(func: Any) -> bool:
    """Under inference mode composite operations arrive whole, with their parts' memory inside them."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return (
        func.namespace == "aten"
        and torch.is_inference_mode_enabled()
        and func.has_kernel_for_dispatch_key(composite)
    )


def adds_in_place(gradient: Tensor) -> bool:
    """Whether autograd, which sums the gradients of a tensor used twice, does so in place.

    It does where it alone holds the first one and its storage, but never while a dispatch mode looks
    on (torch/csrc/autograd/input_buffer.cpp, ``can_accumulate_inplace``); this makes up for it. Code
    that a checkpoint runs again has gradients enabled, autograd's own sums have not.
    """
    return not torch.is_grad_enabled() and owners(gradient) == owners_of_unshared()


def owners(tensor: Tensor) -> tuple[int, int]:
    """How many references C++ holds to a tensor and to its storage."""
    storage = tensor.untyped_storage()._cdata
    return tensor._use_count(), torch._C._storage_Use_Count(storage)  # type: ignore[attr-defined]


@functools.cache
def owners_of_unshared() -> tuple[int, int]:
    """``owners`` as a dispatch mode sees them for a gradient that nothing but autograd holds."""
    seen = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is aten.add.Tensor:
                seen.append(owners(args[0]))
            return func(*args, **(kwargs or {}))

    x = torch.ones((), device="meta", requires_grad=True)
    product = x.exp() * x.cos()
    with Look():
        torch.autograd.backward(product)
    return seen[0]
