"""A traced step equals the allocator's own record, and the figures known for GPT-2 124M."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError
from gptfit.model import GPT2
from gptfit.plan.step import CHUNKED, EAGER, RECOMPUTED, WHOLE, TrainingStep
from gptfit.train import tracer
from gptfit.train.device import Device
from gptfit.train.loop import Trainer
from gptfit.train.trace import Session, trace, trace_step
from gptfit.train.tracer import Trace
from random_configs import random_config
from tiny_run import TEXT, make_trainer

MIB = 2**20
SMALL = ["n_embd=64", "n_head=4", "n_positions=128", "batch_size=8", "vocab_size=3000"]


def allocated(recorded: Any) -> int:
    """The peak of what PyTorch's CPU allocator handed out, from the profiler's memory events."""
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def really_allocated(trainer: Trainer, dtype: torch.dtype) -> int:
    """The peak over two steps of the training loop, with a model made anew under the profiler."""
    recipe = trainer.recipe.override(["log_interval=100"])
    dataset, device = trainer.dataset, Device(torch.device("cpu"), dtype)
    del trainer
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = GPT2(recipe.model, recipe.run.pad_vocab_to_multiple or 1)
        fresh = Trainer(Path("unused"), recipe, dataset, model, device)
        fresh._step()
        fresh._step()
    return allocated(recorded)


CASES = [
    ("float32", ["dropout=0"]),
    ("float32", ["dropout=0.2", "tie_word_embeddings=false"]),
    ("float32", ["dropout=0", "checkpointed_blocks=2"]),
    ("float32", ["dropout=0", "loss_chunks=4"]),
    ("float32", ["dropout=0.1", "bias=false", "reorder_and_upcast_attn=true"]),
    ("float32", ["dropout=0.1", "vocab_size=65", "micro_batch_size=4"]),
    ("bfloat16", ["dropout=0"]),
    ("bfloat16", ["dropout=0.2", "tie_word_embeddings=false"]),
    ("bfloat16", ["dropout=0.2", "vocab_size=65", "micro_batch_size=4"]),
    ("bfloat16", ["dropout=0", "micro_batch_size=1", "batch_size=3", "n_positions=16"]),
    ("bfloat16", ["dropout=0.1", "reorder_and_upcast_attn=true", "checkpointed_blocks=2"]),
]
# Here the peak falls into a matrix product, for which oneDNN takes room for itself.
PRODUCTS = [
    ("bfloat16", ["dropout=0", "vocab_size=65", "n_embd=128", "n_layer=4"]),
    ("bfloat16", ["dropout=0", "micro_batch_size=4", "loss_chunks=4"]),
    ("bfloat16", ["dropout=0.2", "checkpointed_blocks=1", "loss_chunks=3"]),
]


@pytest.mark.parametrize(("dtype", "overrides"), CASES, ids=str)
def test_the_cpu_allocator_agrees_within_half_a_percent(
    tmp_path: Path, dtype: str, overrides: list[str]
) -> None:
    traced, real = both(tmp_path, dtype, overrides)
    assert traced == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize(("dtype", "overrides"), PRODUCTS, ids=str)
def test_it_agrees_but_for_what_onednn_takes_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, overrides: list[str]
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    traced, real = both(tmp_path, dtype, overrides)
    assert traced == pytest.approx(real, rel=0.005)


RNG_STATE_BYTES = 5056
"""torch.get_rng_state().numel(): a CPU generator's state, which a checkpoint saves, is no fake tensor."""


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_for_random_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    draw = random.Random(seed)
    config = random_config(
        seed,
        vocab_size=draw.choice([65, 1000, 4000]),
        n_embd=(heads := draw.choice([1, 2, 4])) * draw.choice([8, 16, 20, 24]),
        n_head=heads,
        n_positions=draw.choice([32, 64, 96]),
    )
    checkpointed = draw.choice([0, 0, 1, config.n_layer])
    options = {
        "dropout": draw.choice([0.0, 0.1]),
        "micro_batch_size": draw.choice([2, 4, 8]),
        "checkpointed_blocks": checkpointed,
        "loss_chunks": draw.choice([1, 1, 2, 5]),
        "pad_vocab_to_multiple": draw.choice([1, 64]),
    }
    architecture = {
        name: value
        for name, value in config.given().items()
        if value is not None and not name.endswith("_pdrop")
    }
    overrides = [f"{k}={str(v).lower()}" for k, v in (architecture | options).items()]
    traced, real = both(tmp_path, draw.choice(["float32", "bfloat16"]), overrides)
    assert traced + RNG_STATE_BYTES * checkpointed == pytest.approx(real, rel=0.005)


def both(tmp_path: Path, dtype: str, overrides: list[str]) -> tuple[int, int]:
    """The traced peak of gptfit's training step and the real one."""
    overrides = [*SMALL, "micro_batch_size=8", *overrides]
    trainer = make_trainer(tmp_path / "run", *overrides, text=TEXT * 9)
    recipe = trainer.recipe
    step = replace(
        TrainingStep.gptfit(recipe, "cpu", dtype),
        checkpointed_blocks=recipe.run.checkpointed_blocks,
        loss=CHUNKED if recipe.run.loss_chunks > 1 else WHOLE,
        loss_chunks=recipe.run.loss_chunks,
    )
    real = really_allocated(trainer, getattr(torch, dtype))
    found = trace_step(recipe.model, step)
    # On a CPU the batch stays where numpy made it, outside of torch's allocator.
    return found.peak_bytes - found.by_category()[tracer.INPUTS], real


NANOGPT = GPT2Config(vocab_size=50304, dropout=0.0)
STEP = TrainingStep(micro_batch_size=12, context=1024)


@pytest.mark.parametrize(
    ("changes", "peak_mib"),
    [
        ({"keeps_logits": True}, 13864.5),
        ({}, 12685.5),
        ({"keeps_logits": True, "checkpointed_blocks": 12}, 10237.5),
        # Autograd sums the head's gradients in place from the second chunk on.
        ({"loss": RECOMPUTED, "loss_chunks": 12}, 6327.2),
        ({"loss": RECOMPUTED, "loss_chunks": 12, "checkpointed_blocks": 12}, 2700.2),
    ],
)
def test_gpt2_124m_as_nanogpt_trains_it(changes: dict[str, Any], peak_mib: float) -> None:
    found = trace_step(NANOGPT, replace(STEP, **changes))
    assert found.peak_bytes / MIB == pytest.approx(peak_mib, abs=0.05)


HUGGING_FACE = [
    ("gelu_new", "sdpa", 0.1, 19265.2),
    ("gelu_pytorch_tanh", "sdpa", 0.0, 13856.2),
    ("gelu_new", "eager", 0.1, 31354.5),
]


@pytest.mark.parametrize(("activation", "attention", "dropout", "peak_mib"), HUGGING_FACE)
def test_gpt2_124m_as_transformers_trains_it(
    activation: str, attention: str, dropout: float, peak_mib: float
) -> None:
    found = trace(lambda session: train_hugging_face(session, activation, attention, dropout))
    assert found.peak_bytes / MIB == pytest.approx(peak_mib, abs=0.05)
    config = GPT2Config(activation_function=activation, dropout=dropout)
    step = replace(
        TrainingStep.huggingface(config, 12), attention=EAGER if attention == "eager" else "sdpa"
    )
    written_out = trace_step(config, step)
    # The inputs are their own labels there: 0.1 MiB.
    assert written_out.peak_bytes / MIB == pytest.approx(peak_mib, abs=0.15)


def train_hugging_face(session: Session, activation: str, attention: str, dropout: float) -> None:
    import transformers

    config = transformers.GPT2Config(
        activation_function=activation,
        attn_implementation=attention,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        use_cache=False,
        loss_type="ForCausalLM",
    )
    with session.device:
        model = transformers.GPT2LMHeadModel(config)
    session.tracer.assign([*model.parameters(), *model.buffers()], tracer.WEIGHTS)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    ids = torch.zeros(12, 1024, dtype=torch.int64, device=session.device)

    def loss() -> tuple[Any, Any]:
        output = model(input_ids=ids, labels=ids)
        return output.loss, output

    # It reads whether sequences are packed from the data, which meta tensors have not: they are not.
    name = "transformers.masking_utils.find_packed_sequence_indices"
    with patch(name, lambda position_ids: None):
        session.train(model, optimizer, [loss])
        session.train(model, optimizer, [loss])


TINY = GPT2Config(
    vocab_size=61, n_positions=32, n_embd=48, n_layer=2, n_head=3, dropout=0.0, bias=False
)
PARAMETERS = 2 * (12 * 48**2 + 2 * 48) + 48 + (61 + 32) * 48


def tiny(**changes: Any) -> Trace:
    return trace_step(TINY, TrainingStep(context=32, **({"micro_batch_size": 4} | changes)))


def test_every_byte_at_the_peak_has_a_category() -> None:
    found = tiny(vocab_multiple=64)
    categories = found.by_category()
    weights = PARAMETERS + 3 * 48
    assert sum(categories.values()) == found.peak_bytes == sum(item.bytes for item in found.live)
    assert categories[tracer.WEIGHTS] == 4 * weights
    assert categories[tracer.OPTIMIZER] - 8 * weights == pytest.approx(0, abs=4 * 16)  # counters
    assert found.phase_bytes[found.peak_phase] == found.peak_bytes
    assert f"in the {found.peak_phase}" in str(found)


def test_accumulation_keeps_the_gradients() -> None:
    once, twice = tiny(), tiny(grad_accum_steps=2)
    extra = twice.phase_bytes[tracer.FORWARD] - once.phase_bytes[tracer.FORWARD]
    assert extra == 4 * PARAMETERS + 4 * 32 * 2 * 8  # and a second pair of inputs and targets


def test_foreach_copies_a_square_root_of_every_parameter() -> None:
    fused, foreach = tiny(), tiny(fused_optimizer=False)
    name = tracer.OPTIMIZER_STEP
    assert foreach.phase_bytes[name] - fused.phase_bytes[name] == pytest.approx(
        4 * PARAMETERS, abs=16 * 16
    )


def test_head_sizes_that_flash_attention_does_not_take_are_padded() -> None:
    odd = trace_step(TINY.replace(n_embd=51), TrainingStep(context=32, micro_batch_size=4))
    padded = [item for item in odd.live if "constant_pad" in item.made_by]
    assert sum(item.count for item in padded) >= 3  # q, k, v of the layers still alive


def test_steps_that_need_their_device_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compiled=True cannot be traced"):
        tiny(compiled=True)
    with pytest.raises(ConfigError, match=r"parallel=ddp cannot be traced"):
        tiny(parallel="ddp", world_size=8)


def test_nothing_is_left_switched_on() -> None:
    before = torch.autocast
    tiny()
    assert torch.autocast is before
    assert torch.empty(1).device.type == "cpu"
    weight = torch.nn.Parameter(torch.empty(1, device="meta"))
    weight.grad = torch.empty_like(weight)
    with pytest.raises(RuntimeError, match="supported devices"):
        torch.optim.AdamW([weight], fused=True).step()


def test_a_model_too_large_for_any_machine_is_traced() -> None:
    config = GPT2Config(n_embd=12288, n_layer=2, n_head=96, vocab_size=50257, n_positions=2048)
    found = trace_step(config, TrainingStep(context=2048, micro_batch_size=64))
    assert found.peak_bytes > 2**37
