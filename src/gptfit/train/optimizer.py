"""The optimizer of a run: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gptfit.config import TrainConfig
from gptfit.errors import CheckpointError
from gptfit.model import GPT2
from gptfit.plan.manifest import TensorSpec, manifest
from gptfit.train.adamw import AdamW
from gptfit.train.muon import Muon
from gptfit.train.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTUM = "momentum"


class Optimizer:
    """What updates a model's parameters, and the tensors it remembers between updates.

    Of AdamW's parameters matrices decay, biases and norms do not. Muon multiplies in ``dtype``, that
    of the forward pass.
    """

    def __init__(
        self,
        model: GPT2,
        config: TrainConfig,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ) -> None:
        self.model = model
        self.world = world or World()
        self.config = config
        specs = [spec for spec in manifest(model.config) if not spec.tied_to]
        matrices = [spec for spec in specs if config.optimizer == "muon" and by_muon(spec)]
        self.by_adamw = [spec for spec in specs if spec not in matrices]
        decayed = [model.get_parameter(spec.name) for spec in self.by_adamw if spec.decayed]
        others = [model.get_parameter(spec.name) for spec in self.by_adamw if not spec.decayed]
        groups = [(decayed, config.weight_decay), (others, 0.0)]
        self.adamw = AdamW(groups, (config.beta1, config.beta2), config.adam_epsilon)
        self.muon = Muon(
            [(spec.name, model.get_parameter(spec.name), cuts(spec)) for spec in matrices],
            config.muon_momentum,
            config.weight_decay,
            dtype,
            self.world,
        )

    def step(self, factor: float = 1.0) -> None:
        """Update the parameters at ``factor`` of the full learning rates, and drop the gradients."""
        self.adamw.step(factor * self.config.learning_rate)
        self.muon.step(factor * self.config.muon_learning_rate)

    def state(self) -> dict[str, Tensor]:
        """The moments by ``moment/parameter``, without rows that only pad the vocabulary.

        The tensors may be those that the next step changes, and shards: see ``World.collected``.
        """
        state = {f"{MOMENTUM}/{name}": tensor for name, tensor in self.muon.state().items()}
        for spec in self.by_adamw:
            moments = self.adamw.moments.get(self.model.get_parameter(spec.name), ())
            for name, moment in zip(MOMENTS, moments, strict=False):
                state[f"{name}/{spec.name}"] = moment[: spec.shape[0]]
        return state

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Put what ``state`` gave back, after ``step`` updates."""
        if step == 0:  # nothing had been remembered yet
            self.adamw.forget()
            for stack in self.muon.stacks:
                stack.momentum.zero_()
            return
        wanted = {f"{MOMENTUM}/{part.name}" for stack in self.muon.stacks for part in stack.parts}
        wanted |= {f"{moment}/{spec.name}" for spec in self.by_adamw for moment in MOMENTS}
        if wanted != state.keys():
            other = min(wanted ^ state.keys())
            raise CheckpointError(
                f"the checkpoint does not fit optimizer={self.config.optimizer}: they differ in {other}; "
                'write the optimizer that the run was started with, optimizer = "adamw" or "muon", '
                "under [train] in its recipe.toml"
            )
        for spec in self.by_adamw:
            parameter = self.model.get_parameter(spec.name)
            mean, square = (self._whole(state[f"{name}/{spec.name}"], spec) for name in MOMENTS)
            self.adamw.moments[parameter] = mean, square
            self.adamw.updates = torch.tensor(float(step), device=parameter.device)
        prefix = f"{MOMENTUM}/"
        self.muon.restore(
            {
                key.removeprefix(prefix): kept
                for key, kept in state.items()
                if key.startswith(prefix)
            }
        )

    def _whole(self, kept: Tensor, spec: TensorSpec) -> Tensor:
        """A moment as this process holds it, with the rows that pad the vocabulary."""
        parameter = self.model.get_parameter(spec.name)
        whole = torch.zeros(parameter.shape, device=parameter.device)
        whole[: spec.shape[0]] = kept
        return self.world.like(whole, parameter)


def by_muon(spec: TensorSpec) -> bool:
    """Whether Muon updates this tensor: the matrices within the blocks, no embedding and no head."""
    return spec.transposed_in_hf


def cuts(spec: TensorSpec) -> int:
    """Into how many matrices a tensor is cut: query, key and value are three that stand in one."""
    return 3 if spec.name.endswith("c_attn.weight") else 1
