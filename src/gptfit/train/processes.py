"""Several processes on one run, started by torchrun: a replica each (DDP), or a shard each (FSDP)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gptfit.config import Recipe
from gptfit.errors import ConfigError, GptfitError, Problem
from gptfit.model import GPT2
from gptfit.plan.step import FSDP
from gptfit.train.device import Device, choose_parallel, require_memory
from gptfit.train.world import T, World

# A process that ends is noticed at once, because its connections close. This is for one that hangs.
TIMEOUT = timedelta(minutes=5)
PATIENCE = timedelta(days=7)
"""How long the others wait for what only the main process does: text may take hours to prepare."""


class ProcessLostError(GptfitError):
    """Another process of the run has ended, so this one cannot go on."""

    exit_code = 1


class Processes(World):
    """Several processes, in the environment that torchrun makes.

    Tensors on the CPU travel by gloo, those on GPUs by NCCL.
    """

    def __init__(self) -> None:
        store, self.rank, self.size = meeting()
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        has_gpu = self.local_rank < torch.cuda.device_count()
        if has_gpu:
            torch.cuda.set_device(self.local_rank)  # "cuda" means this one from here on
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the group. After an error the connections are left to break, which tells the others."""
        if error is None:
            dist.destroy_process_group()
        elif is_loss(error):
            place, _, reason = str(error).partition("] ")  # gloo's, in its source
            reason = (reason or place).partition(". ")[0][:120]
            raise ProcessLostError(
                f"another process of this run has ended or does not answer ({reason}); the run goes "
                "on from its last checkpoint with --resume, or by itself under torchrun "
                "--max-restarts with --resume auto"
            ) from error

    def settle(self, recipe: Recipe, device: Device) -> None:
        """As ``run.parallel`` says or, where that is auto, as the main process's memory allows."""
        self.micro_batch_size(recipe.train)
        self._require(device)
        self.parallel = self.of_main(lambda: choose_parallel(recipe, device, self.size))
        require_memory(recipe, device, self.parallel, self.size)
        self.device = device

    def wrap(self, model: GPT2) -> nn.Module:
        """The model with DDP around it, or FSDP in it."""
        if self.parallel == FSDP:
            self.model: nn.Module = sharded(model, self.device, self.size)
        else:
            self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        return self.model

    def _require(self, device: Device) -> None:
        kind, index = device.torch_device.type, device.torch_device.index
        count = torch.cuda.device_count()
        if kind == "mps" or index is not None:
            message = f"device={device.torch_device} is one device for {self.size} processes"
            fix = "use device=cuda or device=cpu, or start one process"
        elif kind == "cuda" and self.local_rank >= count:
            message = f"process {self.local_rank} of this machine has no GPU of its own"
            fix = f"use torchrun --nproc_per_node {count}"
        else:
            return
        raise ConfigError(Problem("run.device", message, fix))

    @contextmanager
    def accumulating(self, more_to_come: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(not more_to_come)
            yield
        elif isinstance(self.model, DistributedDataParallel) and more_to_come:
            with self.model.no_sync():
                yield
        else:
            yield

    def sum(self, value: Tensor) -> Tensor:
        """Sums on the value's device, without waiting for it."""
        value = value.clone()
        dist.all_reduce(value)
        return value

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """On the CPU: no GPU is waited for."""
        clock = seconds if self.is_main else float("-inf")
        both = torch.tensor([float(stop), clock], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return bool(both[0]), both[1].item()

    def of_main(self, make: Callable[[], T]) -> T:
        """The others wait as long as it takes, or until the main process has ended."""
        box = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]  # type: ignore[return-value]

    def main_first(self, make: Callable[[], T], find: Callable[[], T]) -> T:
        """``find`` may rely on the files that ``make`` has written."""
        made: list[T] = []
        self.of_main(lambda: made.append(make()))
        return made[0] if self.is_main else find()

    def full(self, tensor: Tensor) -> Tensor:
        """Replicas are whole, shards are gathered; all processes must ask for it."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def like(self, full: Tensor, parameter: Tensor) -> Tensor:
        """Every process has ``full``, so nothing has to travel."""
        if not isinstance(parameter, DTensor):
            return full
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(full, mesh, placements, src_data_rank=None)

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of shards, one tensor at a time is whole on a device; in the others nothing stays."""
        result = {}
        for name, tensor in tensors.items():
            whole = self.full(tensor)
            if self.is_main:
                result[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
        return result

    def whole(self, model: GPT2) -> GPT2:
        """Of shards, a copy on the CPU."""
        if not isinstance(model, FSDPModule):
            return model
        weights = self.collected(dict(model.named_parameters()))
        with torch.device("meta"):
            copy = GPT2(model.config, pad_vocab_to_multiple=len(model.wte.weight))
        copy.load_state_dict(weights, strict=False, assign=True)  # of tied weights, one is there
        copy.tie_weights()
        return copy

    def mine(self, count: int) -> slice:
        """Equally many for all but the last, which may have fewer or none."""
        share = -(-count // self.size)
        return slice(min(count, self.rank * share), min(count, (self.rank + 1) * share))

    def gathered(self, mine: Tensor, count: int) -> Tensor:
        """Shares are filled up to one size for the journey."""
        share = -(-count // self.size)
        padded = mine.new_zeros((share, *mine.shape[1:]))
        padded[: len(mine)] = mine
        everything = mine.new_empty((self.size * share, *mine.shape[1:]))
        dist.all_gather(list(everything.split(share)), padded)
        return everything[:count]


def sharded(model: GPT2, device: Device, size: int) -> GPT2:
    """The model in place, each parameter cut along its first dimension, gathered block by block.

    In bfloat16 the blocks' weights travel in that precision, gradients in float32. Inputs are left to
    autocast, as on one device: the residual stream stays in float32.
    """
    kind = device.torch_device.type
    # On a CPU, layer norms do not mix precisions, and shared memory is no wire to be spared.
    travels_in = device.dtype if kind == "cuda" and device.dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(
        param_dtype=travels_in,
        reduce_dtype=torch.float32 if travels_in else None,
        cast_forward_inputs=False,
    )
    mesh = init_device_mesh(kind, (size,))
    for block in model.h:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Resharded after every forward pass, which need not be followed by a backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


@cache
def meeting() -> tuple[Store, int, int]:
    """The store that all processes share, this one's rank, and how many there are."""
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # torchrun keeps its store when it restarts the processes, with what the dead have written.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}", store), rank, size


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process does not answer. Gloo has no type for it."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
    )


def is_first_to_fail() -> bool:
    """Whether no other process has asked this before: an error is told once, not by each."""
    store, rank, _ = meeting()
    try:
        return bool(store.compare_set("failed", "", str(rank)) == str(rank).encode())
    except dist.DistError:
        return True  # the store is gone; better twice than never
