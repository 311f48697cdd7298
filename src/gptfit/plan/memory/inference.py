"""Evaluation and sampling between training steps, on the tape: weights and the optimizer's state are
still there, and nothing is saved for a backward pass, so tensors live as long as Python's names."""

from __future__ import annotations

from gptfit.plan.memory.attention import QUERIES
from gptfit.plan.memory.block import BIAS, C_ATTN, C_FC, C_PROJ, MLP_PROJ, WEIGHT
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.tape import (
    ACTIVATIONS,
    CASTS,
    EVALUATION,
    GENERATION,
    KV_CACHE,
    LOSS,
    TRANSIENTS,
    Tape,
)

STATES = ("weights", "moments", "step counts", "buckets")


def evaluation(case: Case, tape: Tape) -> None:
    """``gptfit.generate.evaluate``: the loss of e tokens at a time."""
    begin(case, tape, EVALUATION)
    tape.take("batch", ACTIVATIONS, "16·e", "token ids and targets, int64")
    last_block(case, tape, "e")
    tape.take("ln_f output", TRANSIENTS, "e·4·C", "output of the last norm")
    tape.free("residual")
    rows = "e"
    if case.chunked_loss:
        rows = "(-(-e // K))"
        tape.take("targets that count", TRANSIENTS, "e·5", "which targets count, and their share")
    if case.casts:
        tape.take("head cast", CASTS, "2·P·C", "output head in bfloat16")
    if case.autocast:
        tape.take("head input", TRANSIENTS, f"{rows}·2·C", "input of the output head in bfloat16")
    tape.take("logits", LOSS, f"{rows}·s·P", "logits")
    if case.autocast:
        tape.free("head input")
    if case.chunked_loss:
        chunk_loss(case, tape, rows)
    else:
        whole_loss(case, tape)
    tape.free()


def whole_loss(case: Case, tape: Tape) -> None:
    """Cross-entropy of all logits."""
    if case.autocast:
        tape.take("logits in float32", LOSS, "e·4·V", "logits in float32")
        if not case.keeps_logits:
            tape.free("logits")
    elif case.pads:
        tape.take("contiguous logits", LOSS, "e·4·V", "logits without the padded columns")
    tape.take("log-probabilities", LOSS, "e·4·V", "log-probabilities in float32")


def chunk_loss(case: Case, tape: Tape, rows: str) -> None:
    """Cross-entropy of one chunk's logits."""
    if case.autocast:
        tape.take("logits in float32", LOSS, f"{rows}·4·P", "logits in float32")
        tape.free("logits")
    tape.take("losses", LOSS, f"{rows}·24", "target, maximum, sum, logarithm, loss of each token")


def generation(case: Case, tape: Tape) -> None:
    """``gptfit.generate.generate`` of one sequence. Past the context, half of it is read again."""
    begin(case, tape, GENERATION)
    tape.take("KV cache", KV_CACHE, "2·L·C·R·4", "keys and values of the whole context, float32")
    last_block(case, tape, "(R // 2)")
    tape.free()


def begin(case: Case, tape: Tape, phase: str) -> None:
    """What training leaves in memory between its steps."""
    tape.turn(phase)
    tape.held = {name: held for name, held in tape.held.items() if name in STATES}
    tape.take("positions", ACTIVATIONS, "8·R", "positions, int64")
    if case.casts:
        tape.take("casts", CASTS, "2·(L - 1)·(m + a)", "weights of the other blocks in bfloat16")


def last_block(case: Case, tape: Tape, rows: str) -> None:
    """Attention, then feed-forward, on so many tokens; "residual" is left."""
    tape.take("block input", TRANSIENTS, f"{rows}·4·C", "residual stream in float32")
    linear(case, tape, rows, C_ATTN, "3·C", norm=True)
    attend(case, tape, rows)
    linear(case, tape, rows, C_PROJ, "C")
    tape.free(f"output of {C_ATTN}", "attention output")
    tape.free(f"input of {C_ATTN}")
    tape.take("middle", TRANSIENTS, f"{rows}·4·C", "residual stream between the two branches")
    tape.free(f"output of {C_PROJ}")
    linear(case, tape, rows, C_FC, "F", norm=True)
    tape.take("activation", TRANSIENTS, f"{rows}·s·F", "output of the activation")
    tape.free(f"output of {C_FC}")
    linear(case, tape, rows, MLP_PROJ, "C")
    tape.free("activation", f"input of {C_FC}")
    tape.take("residual", TRANSIENTS, f"{rows}·4·C", "residual stream in float32")
    tape.free("middle", "block input", f"output of {MLP_PROJ}")


def linear(case: Case, tape: Tape, rows: str, name: str, width: str, *, norm: bool = False) -> None:
    """A linear layer with its casts; behind a norm its input is a tensor of its own."""
    if norm:
        tape.take(f"input of {name}", TRANSIENTS, f"{rows}·4·C", "output of a norm, float32")
    if case.casts:
        elements = f"({WEIGHT[name]} + {BIAS[name]})"
        tape.take(f"{name} cast", CASTS, f"2·{elements}", f"{name} in bfloat16")
    if norm and case.autocast:
        tape.take("low input", TRANSIENTS, f"{rows}·2·C", "the same in bfloat16")
    tape.take(f"output of {name}", TRANSIENTS, f"{rows}·s·{width}", f"output of {name}")
    if norm and case.autocast:
        tape.free("low input")


def attend(case: Case, tape: Tape, rows: str) -> None:
    """The output of attention; the scores where they are written out."""
    if case.upcast or case.eager:
        tape.take("scores", TRANSIENTS, f"{rows}·3·4·H·R", "scores, masked scores and softmax")
        tape.free("scores")
    elif case.cpu and case.autocast:
        tape.take(
            "q, k, v copies", TRANSIENTS, f"w·{rows}·2·3·C", "contiguous queries, keys, values"
        )
        block = f"{rows} // R·H·min(R, {QUERIES})·R"
        tape.take(
            "scores", TRANSIENTS, f"2·2·{block}", "scores and weights of one block of queries"
        )
        tape.free("q, k, v copies", "scores")
    tape.take("attention output", TRANSIENTS, f"{rows}·s·C", "output of attention")
