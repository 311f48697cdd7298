"""The tape of one training step: gptfit's own model, operation by operation.

Sizes follow from the shapes in ``gptfit.model``; what autograd keeps is what each operation's
derivative reads (pytorch, tools/autograd/derivatives.yaml). ``tests/plan/test_memory.py`` holds the
tape against traced steps.
"""

from __future__ import annotations

from gptfit.plan.memory.block import Block
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.inference import evaluation, generation
from gptfit.plan.memory.loss import loss_backward, loss_forward
from gptfit.plan.memory.tape import (
    ACTIVATIONS,
    BLOCK_BACKWARD,
    COMMUNICATION,
    FORWARD,
    GRADIENTS,
    LOSS,
    LOSS_BACKWARD,
    OPTIMIZER,
    OPTIMIZER_STEP,
    TRANSIENTS,
    WEIGHTS,
    Tape,
)


def training_tape(case: Case) -> Tape:
    """One optimizer step in its steady state: the last of its micro-batches, then the update."""
    tape = Tape(FORWARD)
    resident(case, tape)
    embedding_forward(case, tape)
    blocks_forward(case, tape)
    loss_forward(case, tape)
    if case.keeps_logits:
        tape.free("last logits")
    tape.turn(LOSS_BACKWARD)
    loss_backward(case, tape)
    tape.turn(BLOCK_BACKWARD)
    final_norm_backward(case, tape)
    blocks_backward(case, tape)
    embedding_backward(case, tape)
    tape.turn(OPTIMIZER_STEP)
    update(case, tape)
    evaluation(case, tape)
    generation(case, tape)
    return tape


def resident(case: Case, tape: Tape) -> None:
    """What is held from step to step, and the batch."""
    states(case, tape)
    tape.take("batch", ACTIVATIONS, "16·A·n", "token ids and targets, int64")
    if case.fsdp:
        tape.take("gradients", GRADIENTS, "4·N / W", "this device's share of the gradients")
    elif case.accumulates and not case.grads_in_buckets:
        tape.take("gradients", GRADIENTS, "4·N", "gradients of the micro-batches before")
    if case.fsdp:
        root, two = "s·(N - L·G)", "2·s·G"
        tape.take("gathered root", COMMUNICATION, root, "embeddings, last norm and head, gathered")
        tape.take("gathered blocks", COMMUNICATION, two, "the block at work and the next, gathered")
        tape.take("scattered", COMMUNICATION, "4·G", "a block's gradients on their way")
    if case.keeps_logits:
        tape.take("last logits", LOSS, "n·s·P", "logits that the caller still holds from before")


def states(case: Case, tape: Tape) -> None:
    """Weights, the optimizer's state, the buckets of DDP."""
    share = " / W" if case.fsdp else ""
    tape.take("weights", WEIGHTS, f"4·N{share}", "parameters in float32")
    if case.muon:
        source = "Muon's momentum of the blocks' matrices, AdamW's two moments of the rest"
        tape.take("moments", OPTIMIZER, f"(4·L·m + 8·(N - L·m)){share}", source)
    else:
        tape.take("moments", OPTIMIZER, f"8·N{share}", "AdamW's two moments in float32")
    counts = "4" if case.step.fused_optimizer else "4·(3 + u + b + L·6·(1 + b))"
    tape.take("step counts", OPTIMIZER, counts, "steps taken; torch's AdamW counts for each tensor")
    if case.ddp:
        tape.take("buckets", COMMUNICATION, "4·N", "DDP's buckets, where gradients are averaged")


def embedding_forward(case: Case, tape: Tape) -> None:
    """Ids (B, T) to the residual stream (B, T, C)."""
    tape.take("positions", ACTIVATIONS, "8·T", "positions, int64")
    tape.take("token vectors", TRANSIENTS, "n·4·C")
    tape.take("position vectors", TRANSIENTS, "4·T·C")
    tape.take("residual", ACTIVATIONS, "n·4·C", "residual stream in float32")
    tape.free("token vectors", "position vectors")
    if case.embd_dropout:
        tape.rename("residual", "embedding")
        mask = case.mask_of("n·4·C", "n·C")
        tape.take("embedding mask", ACTIVATIONS, mask, "mask of the embedding's dropout")
        tape.take("residual", ACTIVATIONS, "n·4·C", "residual stream in float32")
        tape.free("embedding")


def blocks_forward(case: Case, tape: Tape) -> None:
    """All blocks. What is held grows evenly from one to the next, so only the last one is followed
    from operation to operation; those before it are what they leave."""
    block, before = Block(case), dict(tape.held)
    residual = {"residual": before.pop("residual")}
    before |= block.checkpoints("k") | block.casts("k")
    tape.exists = "L - k"
    tape.held = before | residual | block.saved("(L - k - 1)") | block.bias_casts("(L - 1)")
    block.forward(tape)
    tape.free()
    if case.checkpoints:
        tape.exists = "1 - (L - k)"
        tape.held = dict(before) | residual | block.bias_casts("(L - 1)")
        tape.held |= block.checkpoints("(k - 1)") | block.casts("(k - 1)")
        tape.forgets = True
        block.forward(tape)
        tape.free()
        tape.forgets = False
    tape.exists = "1"
    tape.held = before | residual | block.saved("(L - k)") | block.bias_casts("L")


def final_norm_backward(case: Case, tape: Tape) -> None:
    """To the gradient of the residual stream."""
    tape.take("gradient", TRANSIENTS, "n·4·C", "gradient of the residual stream")
    tape.free("d ln_f output", "ln_f input", "ln_f statistics")
    if not case.adds_up:
        tape.take("d ln_f", GRADIENTS, "4·(1 + b)·C", "gradient of the last norm")


def blocks_backward(case: Case, tape: Tape) -> None:
    """From the last block to the first. Of each kind, only the first and the last are followed."""
    block = Block(case)
    left = {*block.saved("L"), "checkpoints"}
    rest = {name: held for name, held in tape.held.items() if name not in left}
    for done, to_do in [("0", "(L - k - 1)"), ("(L - k - 1)", "0")]:
        tape.exists = "L - k"
        tape.held = rest | block.gradients(done) | block.checkpoints("k")
        tape.held |= block.saved(to_do) | block.saved("1")
        block.backward(tape)
        tape.free()
    if case.checkpoints:
        for done, to_do in [("(L - k)", "(k - 1)"), ("(L - 1)", "0")]:
            tape.exists = "k"
            tape.held = rest | block.gradients(done) | block.checkpoints(to_do)
            tape.take("residual", ACTIVATIONS, "n·4·C", "residual stream before a norm, float32")
            block.backward(tape, recomputes=True)
            tape.free()
    tape.exists = "1"
    tape.held = rest | block.gradients("L")


def embedding_backward(case: Case, tape: Tape) -> None:
    """Dense gradients of both embeddings."""
    if case.embd_dropout:
        tape.take("d embedding", TRANSIENTS, "n·4·C", "gradient behind dropout")
        tape.free("gradient", "embedding mask")
        tape.rename("d embedding", "gradient")
    tape.take("d positions", TRANSIENTS, "4·T·C")
    tape.take("d position embedding", GRADIENTS, "4·R·C", "gradient of the position embedding")
    tape.free("d positions", "positions")
    if case.adds_up:
        tape.free("d position embedding")
    tape.take("d token embedding", GRADIENTS, "4·P·C", "gradient of the token embedding")
    tape.free("gradient")
    # Autograd adds in place to what it alone holds. In float32 the head's gradient is a transposed
    # view, which it does not (torch/csrc/autograd/input_buffer.cpp).
    if case.tied and not case.autocast and case.whole_loss:
        tape.take("d shared embedding", GRADIENTS, "4·P·C", "sum of both gradients")


def update(case: Case, tape: Tape) -> None:
    """The optimizer, on all parameters."""
    kept = ("weights", "moments", "step counts", "buckets", "batch", "logits")
    tape.held = {name: held for name, held in tape.held.items() if name in kept}
    share = " / W" if case.fsdp else ""
    if not case.grads_in_buckets:
        tape.take("gradients", GRADIENTS, f"4·N{share}", "gradients in float32")
    if case.muon:
        muon(case, tape)
    elif not case.step.fused_optimizer:
        copies = f"4·N{share}"
        tape.take("copies", TRANSIENTS, copies, "temporary copies of torch's foreach AdamW")
    tape.free()


def muon(case: Case, tape: Tape) -> None:
    """AdamW has dropped its gradients; then the blocks' matrices, all of one shape at a time."""
    stacks = [("4·L·C²", "4·L·C²"), ("2·L·C·F", "2·L·min(C, F)²")]
    if case.config.n_inner == case.config.n_embd:
        stacks = [("6·L·C²", "6·L·C²")]
    left = "L·m"
    for size, gram in stacks:
        hold_gradients(case, tape, left)
        tape.take("directions", TRANSIENTS, f"4·{size}", "momentum and gradients, stacked")
        left = f"({left} - {size})"
        hold_gradients(case, tape, left)
        if case.autocast:
            tape.take("low directions", TRANSIENTS, f"2·{size}", "the same in bfloat16")
            tape.free("directions")
            tape.rename("low directions", "directions")
        tape.take("next directions", TRANSIENTS, f"s·{size}", "a Newton-Schulz iteration's result")
        tape.take("polynomial", TRANSIENTS, f"2·s·{gram}", "products that it is made of")
        tape.free("polynomial", "directions", "next directions")


def hold_gradients(case: Case, tape: Tape, elements: str) -> None:
    """So many gradients are left, unless they are views of DDP's buckets, which stay."""
    if not case.grads_in_buckets:
        tape.free("gradients")
        tape.take("gradients", GRADIENTS, f"4·{elements}", "gradients of matrices, float32")
