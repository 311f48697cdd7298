"""AdamW in two groups: matrices decay, biases and norms do not."""

from __future__ import annotations

import torch

from gptfit.config import TrainConfig
from gptfit.model import GPT2
from gptfit.plan.manifest import manifest

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: GPT2, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over the model's parameters; the manifest says which decay."""
    specs = [spec for spec in manifest(model.config) if not spec.tied_to]
    groups = [
        {
            "params": [model.get_parameter(spec.name) for spec in specs if spec.decayed == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def optimizer_state(model: GPT2, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """The moments by ``moment/parameter``, on the CPU, without rows that only pad the vocabulary."""
    state = {}
    for spec in manifest(model.config):
        moments = optimizer.state.get(model.get_parameter(spec.name))
        if moments and not spec.tied_to:
            for moment in MOMENTS:
                state[f"{moment}/{spec.name}"] = moments[moment][: spec.shape[0]].cpu().contiguous()
    return state


def restore_optimizer(
    model: GPT2, optimizer: torch.optim.AdamW, state: dict[str, torch.Tensor], step: int
) -> None:
    """Put the moments of ``optimizer_state`` back, after ``step`` updates."""
    for spec in manifest(model.config):
        if spec.tied_to or step == 0:
            continue
        parameter = model.get_parameter(spec.name)
        moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        for moment in MOMENTS:
            moments[moment][: spec.shape[0]] = state[f"{moment}/{spec.name}"].to(parameter.device)
        updates = torch.tensor(float(step), device=parameter.device)
        optimizer.state[parameter] = {"step": updates, **moments}
