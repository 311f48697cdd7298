"""Muon and AdamW: what each updates, how, and what they remember."""

from __future__ import annotations

import pytest
import torch

from gptfit.config import GPT2Config, TrainConfig
from gptfit.errors import CheckpointError
from gptfit.model import GPT2
from gptfit.train.muon import Muon, orthogonalized
from gptfit.train.optimizer import Optimizer

SMALL = GPT2Config(
    vocab_size=40, n_positions=8, n_embd=16, n_layer=3, n_head=2, n_inner=24, embd_pdrop=0.0
)


def with_gradients(seed: int = 0, config: GPT2Config = SMALL) -> GPT2:
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config, generator=generator)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("shape", [(5, 12, 12), (2, 8, 40), (1, 1, 7)])
def test_orthogonalized_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x /= 1.01 * x.norm(dim=(1, 2), keepdim=True)
    values = torch.linalg.svdvals(orthogonalized(x))
    reachable = torch.linalg.svdvals(x) > 0.005
    assert 0.18 < values[reachable].min() <= values[reachable].max() < 1.87


def test_orthogonalized_keeps_the_directions() -> None:
    x = torch.randn(3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    step = orthogonalized(x / (1.01 * x.norm(dim=(1, 2), keepdim=True)))
    aligned = u.mT @ step @ v.mT
    assert torch.allclose(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), atol=1e-6)


def test_first_muon_step_is_the_orthogonal_gradient_of_each_of_q_k_and_v() -> None:
    model = with_gradients()
    weight = model.h[0].attn.c_attn.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    Muon([("qkv", weight, 3)], momentum=0.9, weight_decay=0.5).step(learning_rate=0.1)
    for part in range(3):
        rows = slice(16 * part, 16 * (part + 1))
        moved = before[rows] * (1 - 0.1 * 0.5) - weight.detach()[rows]
        direction = gradient[None, rows] / (1.01 * gradient[rows].norm())
        assert torch.allclose(moved, 0.1 * orthogonalized(direction)[0], atol=1e-6)
    assert weight.grad is None


def test_a_tall_matrix_steps_by_the_square_root_of_its_ratio() -> None:
    tall = torch.nn.Parameter(torch.zeros(64, 16))
    tall.grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    Muon([("tall", tall, 1)], momentum=0.0, weight_decay=0.0).step(learning_rate=1.0)
    values = torch.linalg.svdvals(tall.detach())
    assert 2 * 0.18 < values.min() <= values.max() < 2 * 1.87


def test_without_a_gradient_in_a_matrix_it_stays() -> None:
    still = torch.nn.Parameter(torch.ones(4, 4))
    still.grad = torch.zeros(4, 4)
    Muon([("still", still, 1)], momentum=0.9, weight_decay=0.0).step(learning_rate=1.0)
    assert torch.equal(still.detach(), torch.ones(4, 4))


def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    optimizer = Optimizer(with_gradients(), TrainConfig(optimizer="muon"))
    by_muon = {part.name for stack in optimizer.muon.stacks for part in stack.parts}
    by_adamw = {spec.name for spec in optimizer.by_adamw}
    matrices = {f"h.{n}.{m}.weight" for n in range(3) for m in ("attn.c_attn", "attn.c_proj")}
    matrices |= {f"h.{n}.mlp.{m}.weight" for n in range(3) for m in ("c_fc", "c_proj")}
    assert by_muon == matrices
    assert by_adamw == {name for name, _ in optimizer.model.named_parameters()} - matrices


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("n_inner", [24, 8, 16, 64])
def test_restored_optimizer_goes_on_bit_for_bit(name: str, n_inner: int) -> None:
    config = SMALL.replace(n_inner=n_inner)
    train = TrainConfig(optimizer=name)

    def trained(steps: int, parted: int | None) -> GPT2:
        model = GPT2(config, generator=torch.Generator().manual_seed(3))
        optimizer = Optimizer(model, train)
        for step in range(steps):
            if step == parted:
                state = {key: tensor.clone() for key, tensor in optimizer.state().items()}
                optimizer = Optimizer(model, train)
                optimizer.restore(state, step)
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step(0.5)
        return model

    whole, parts = trained(5, None), trained(5, 3)
    for (key, weight), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(weight, other), key


def test_zero_projections_make_every_block_the_identity() -> None:
    model = GPT2(
        SMALL, generator=torch.Generator().manual_seed(0), zero_init_projections=True
    ).eval()
    idx = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(0))
    x = model.wte(idx) + model.wpe(torch.arange(8))
    assert torch.equal(model.hidden(idx), model.ln_f(x))


def test_adamw_is_torchs() -> None:
    config = TrainConfig(optimizer="adamw", weight_decay=0.1)
    ours, theirs = with_gradients(), with_gradients()
    optimizer = Optimizer(ours, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    for step in range(3):
        for model in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        reference.step()
    for mine, reference_weight in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference_weight)


def test_the_state_of_another_optimizer_is_refused() -> None:
    before = Optimizer(with_gradients(), TrainConfig(optimizer="adamw"))
    before.step()
    with pytest.raises(CheckpointError, match=r"does not fit optimizer=muon.*recipe\.toml"):
        Optimizer(with_gradients(), TrainConfig(optimizer="muon")).restore(before.state(), 1)
