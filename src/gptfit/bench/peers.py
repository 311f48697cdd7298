"""The training steps that are compared: gptfit's own, and those of its peers on the same weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptfit.bench.contestant import GPTFIT, HUGGING_FACE, nanogpt_words
from gptfit.config import Recipe
from gptfit.data import Sampler, TokenDataset
from gptfit.errors import GptfitError
from gptfit.formats.hf import load_model
from gptfit.plan.step import usual_vocab_multiple
from gptfit.train.allocator import keep_freed_pages
from gptfit.train.compiled import compile_blocks
from gptfit.train.device import Device, choose_device
from gptfit.train.run import vocab_multiple
from gptfit.train.step import Step
from gptfit.train.world import World

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of inputs and targets, each (B, T)."""


class Trained(Protocol):
    """What the clock is put on."""

    device: Device
    notes: list[str]

    def step(self, number: int) -> Tensor:
        """Take the step of the batch ``number`` and return its loss, without waiting for it."""


def enter(first: Mapping[str, Any], data: Path, weights: Path) -> Trained:
    """The contestant that ``Contestant.to_dict`` describes, with these weights before its first step."""
    recipe = Recipe.from_dict(first["recipe"])
    device = choose_device(recipe.run.device, recipe.run.dtype, recipe.model)
    tokens = TokenDataset.open(data).train
    train = recipe.train
    sampler = Sampler(tokens, recipe.model.n_positions, train.batch_size, train.seed)
    if first["code"] == GPTFIT:
        return Ours(recipe, sampler, device, weights)
    if first["code"] == HUGGING_FACE:
        model, loss = huggingface(weights, device, first["compiled"])
        optimizer = adamw(model, recipe, first["fused"])
    else:
        model, loss = nanogpt(Path(first["checkout"]), recipe, weights, device, first["compiled"])
        betas = (train.beta1, train.beta2)
        kind = device.torch_device.type
        own = model.configure_optimizers(train.weight_decay, train.learning_rate, betas, kind)
        optimizer = own if first["fused"] == (kind == "cuda") else adamw(model, recipe, True)
    return Peer(recipe, sampler, device, model, loss, optimizer)


class Ours:
    """gptfit's step as ``gptfit train`` takes it."""

    def __init__(self, recipe: Recipe, sampler: Sampler, device: Device, weights: Path) -> None:
        if device.torch_device.type == "cpu":
            keep_freed_pages()
        self.device = device
        self.notes = []
        model = load_model(weights, device.torch_device, None, vocab_multiple(recipe, device))
        if recipe.run.compile == "on":
            self.notes.append(compile_blocks(model, device, recipe.train.micro_batch_size))
        self._step = Step(model, recipe, sampler, device, World())

    def step(self, number: int) -> Tensor:
        """Gradients, clipping, the check that comes before an update, the update."""
        gradients = self._step.gradients(number)
        if not gradients.are_finite:
            raise GptfitError(f"the loss is {gradients.loss.item()} at step {number}")
        self._step.update(1.0)
        return gradients.loss


class Peer:
    """The usual loop around another program's model, as in nanoGPT's ``train.py``."""

    def __init__(
        self,
        recipe: Recipe,
        sampler: Sampler,
        device: Device,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.config = recipe.train
        self.sampler = sampler
        self.device = device
        self.notes: list[str] = []
        self.model = model
        self.loss = loss
        self.optimizer = optimizer

    def step(self, number: int) -> Tensor:
        """Micro-batches, clipping, update."""
        parts = self.config.grad_accum_steps
        total = torch.zeros((), device=self.device.torch_device)
        for inputs, targets in self._micro_batches(number):
            with self.device.autocast():
                loss = self.loss(inputs, targets) / parts
            loss.backward()
            total += loss.detach()
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _micro_batches(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        batch = [torch.from_numpy(array) for array in self.sampler.batch(number)]
        if self.device.torch_device.type == "cuda":
            batch = [
                array.pin_memory().to(self.device.torch_device, non_blocking=True)
                for array in batch
            ]
        size = self.config.micro_batch_size
        return zip(*(array.split(size) for array in batch), strict=True)


def huggingface(weights: Path, device: Device, compiled: bool) -> tuple[nn.Module, Loss]:
    """``GPT2LMHeadModel`` and the loss that it computes itself."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(weights, attn_implementation="sdpa")
    model = model.to(device.torch_device).train()
    forward = torch.compile(model) if compiled else model

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        # The targets are shifted already, so that the last position has one too.
        output = forward(inputs, labels=targets, shift_labels=targets, use_cache=False)
        found: Tensor = output.loss
        return found

    return model, loss


def nanogpt(
    checkout: Path, recipe: Recipe, weights: Path, device: Device, compiled: bool
) -> tuple[Any, Loss]:
    """The ``GPT`` of the ``model.py`` in ``checkout``, which is executed, and its loss."""
    program = _execute(checkout / "model.py")
    # Its train.py pads the vocabulary to 50304 always; without a GPU that only costs.
    ours = load_model(weights, "cpu", None, usual_vocab_multiple(device.torch_device.type))
    words = nanogpt_words(recipe.model) | {"vocab_size": ours.wte.weight.shape[0]}
    model = program.GPT(program.GPTConfig(**words))
    heads = {"lm_head.weight": ours.lm_head.weight}
    body = {f"transformer.{name}": tensor for name, tensor in ours.state_dict().items()}
    model.load_state_dict({k: v for k, v in body.items() if "lm_head" not in k} | heads)
    model = model.to(device.torch_device).train()
    # As its train.py does.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    forward = torch.compile(model) if compiled else model
    return model, lambda inputs, targets: forward(inputs, targets)[1]


def adamw(model: nn.Module, recipe: Recipe, fused: bool) -> torch.optim.AdamW:
    """AdamW with decay for matrices only, as all three programs have it."""
    train, parameters = recipe.train, list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (train.beta1, train.beta2)
    return torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon, fused=fused
    )


def _execute(path: Path) -> Any:
    """The module in a file, under a name that no other has."""
    spec = spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module
