"""The last norm, the output head and the cross-entropy on the tape, in each of their ways."""

from __future__ import annotations

from gptfit.plan.memory.case import Case
from gptfit.plan.memory.tape import ACTIVATIONS, CASTS, GRADIENTS, LOSS, TRANSIENTS, Tape


def loss_forward(case: Case, tape: Tape) -> None:
    """The residual stream (B, T, C) to the loss; what is left is what the backward pass reads."""
    tape.rename("residual", "ln_f input")
    tape.take("ln_f statistics", ACTIVATIONS, "n·8", "mean and deviation of the last norm, float32")
    tape.take("ln_f output", ACTIVATIONS, "n·4·C", "output of the last norm")
    if case.chunked_loss:
        chunks_forward(case, tape)
        tape.free("ln_f output", *heads_casts(case))
    elif case.recomputed_loss:
        logits_forward(case, tape, "c")
        tape.free("log-probabilities", *heads_casts(case), *head_inputs(case))
    elif case.compiled:
        compiled_forward(case, tape)
    else:
        logits_forward(case, tape, "n")
        if case.autocast:
            tape.free("ln_f output")
    if case.casts:
        tape.free("casts", "bias casts")


def loss_backward(case: Case, tape: Tape) -> None:
    """The gradients of the head and of the last norm's output."""
    if case.chunked_loss:
        pass  # taken together with the loss
    elif case.recomputed_loss:
        chunks_backward(case, tape)
    elif case.compiled:
        compiled_backward(case, tape)
    else:
        logits_backward(case, tape, "n")
        if not case.autocast:
            tape.free("ln_f output")
    if case.adds_up and not case.tied:
        tape.free("d head")


def heads_casts(case: Case) -> list[str]:
    """Names that only autocast brings."""
    return ["head cast"] if case.casts else []


def head_inputs(case: Case) -> list[str]:
    """Names that only autocast brings."""
    return ["head input"] if case.autocast else []


def logits_forward(case: Case, tape: Tape, rows: str) -> None:
    """Logits of so many tokens, and their log-probabilities, which the derivative reads."""
    if case.casts:
        tape.take("head cast", CASTS, "2·P·C", "output head in bfloat16")
    if case.autocast:
        tape.take("head input", ACTIVATIONS, f"{rows}·2·C", "input of the output head in bfloat16")
    tape.take("logits", LOSS, f"{rows}·s·P", "logits")
    if case.autocast:
        tape.take("logits in float32", LOSS, f"{rows}·4·V", "logits in float32")
        if not case.keeps_logits:
            tape.free("logits")
    if case.pads and not case.autocast:
        tape.take("contiguous logits", LOSS, f"{rows}·4·V", "logits without the padded columns")
    tape.take("log-probabilities", LOSS, f"{rows}·4·V", "log-probabilities in float32")
    if case.pads and not case.autocast:
        tape.free("contiguous logits")
    if case.autocast:
        tape.free("logits in float32")
    elif not case.keeps_logits:
        tape.free("logits")


def compiled_forward(case: Case, tape: Tape) -> None:
    """torch.compile saves the logits and two numbers per token, and fuses the rest away."""
    if case.casts:
        tape.take("head cast", CASTS, "2·P·C", "output head in bfloat16")
    if case.autocast:
        tape.take("head input", ACTIVATIONS, "n·2·C", "input of the output head in bfloat16")
    tape.take("logits", LOSS, "n·s·P", "logits")
    tape.take("log-probabilities", LOSS, "n·8", "maximum and sum of each token's logits")
    if case.autocast:
        tape.free("ln_f output")


def compiled_backward(case: Case, tape: Tape) -> None:
    """The gradient of the logits is one kernel's output."""
    tape.take("d logits", LOSS, "n·s·P", "gradient of the logits")
    tape.free("logits", "log-probabilities")
    head_backward(case, tape, "n")
    if not case.autocast:
        tape.free("ln_f output")


def logits_backward(case: Case, tape: Tape, rows: str) -> None:
    """From the log-probabilities of so many tokens to "d head" and "d ln_f output"."""
    tape.take("d log-probabilities", LOSS, f"{rows}·4·V", "gradient of the log-probabilities")
    tape.take("d logits", LOSS, f"{rows}·4·V", "gradient of the logits, float32")
    tape.free("d log-probabilities", "log-probabilities")
    if case.autocast:
        tape.take("d logits in bfloat16", LOSS, f"{rows}·2·V", "the same in bfloat16")
        tape.free("d logits")
        tape.rename("d logits in bfloat16", "d logits")
    if case.pads:
        tape.take("d padded logits", LOSS, f"{rows}·s·P", "the same with the padded columns")
        tape.free("d logits")
        tape.rename("d padded logits", "d logits")
    head_backward(case, tape, rows)


def head_backward(case: Case, tape: Tape, rows: str) -> None:
    """From "d logits" to "d head" and "d ln_f output"."""
    tape.take("d head", GRADIENTS, "s·P·C", "gradient of the output head")
    tape.take("d ln_f output", TRANSIENTS, f"{rows}·s·C", "gradient of the last norm's output")
    tape.free("d logits", *heads_casts(case), *head_inputs(case))
    if case.autocast and rows == "n":
        head_in_float32(case, tape)
    if case.autocast:
        tape.take("d ln_f output in float32", TRANSIENTS, f"{rows}·4·C", "the same in float32")
        tape.free("d ln_f output")
        tape.rename("d ln_f output in float32", "d ln_f output")


def head_in_float32(case: Case, tape: Tape) -> None:
    """The gradient of the head in its own precision."""
    tape.rename("d head", "d head in bfloat16")
    tape.take("d head", GRADIENTS, "4·P·C", "gradient of the output head, float32")
    tape.free("d head in bfloat16")


def chunks_forward(case: Case, tape: Tape) -> None:
    """``gptfit.model.loss``: one chunk's logits at a time, turned into their own gradient in place."""
    tape.take("targets that count", TRANSIENTS, "n·5", "which targets count, and their share")
    tape.take("d ln_f output", ACTIVATIONS, "n·4·C", "gradient of the last norm's output, float32")
    tape.take("d head", GRADIENTS, "4·P·C", "gradient of the output head, float32")
    if case.casts:
        tape.take("head cast", CASTS, "2·P·C", "output head in bfloat16")
    if case.autocast:
        tape.take("logits in bfloat16", LOSS, "c·2·P", "logits of a chunk in bfloat16")
    tape.take("logits", LOSS, "c·4·P", "logits of a chunk, then their gradient, float32")
    if case.autocast:
        tape.free("logits in bfloat16")
    tape.take("losses", LOSS, "c·24", "target, maximum, sum, logarithm and loss of each token")
    tape.free("losses")
    if case.autocast:
        tape.take("d logits", LOSS, "c·2·P", "gradient of a chunk's logits in bfloat16")
        tape.take("head input", TRANSIENTS, "c·2·C", "input of the output head in bfloat16")
    else:
        tape.take("chunk of d ln_f output", TRANSIENTS, "c·4·C")
        tape.free("chunk of d ln_f output")
    tape.take("chunk of d head", TRANSIENTS, "s·P·C", "a chunk's part of the head's gradient")
    if case.autocast:
        tape.free("head input", "d logits")
        if case.cpu:  # whose kernels convert an operand before they add it
            tape.take("chunk of d head in float32", TRANSIENTS, "4·P·C", "the same in float32")
            tape.free("chunk of d head in float32")
    tape.free("logits", "chunk of d head", "targets that count")


def chunks_backward(case: Case, tape: Tape) -> None:
    """Chunks computed a second time, from the last to the first, whose moment is the worst."""
    if case.step.loss_chunks > 2:
        tape.take("first chunks", TRANSIENTS, "2·c·4·C", "gradients of two chunks' inputs")
        source = "gradients of the head of two chunks, and their sum"
        tape.take("first sum", GRADIENTS, "3·s·P·C", source)
        tape.free("first chunks", "first sum")
    tape.take("other chunks", TRANSIENTS, "(n - c)·4·C", "gradients of the chunks before")
    tape.take("sum of d head", GRADIENTS, "s·P·C", "gradient of the head, of the chunks before")
    logits_forward(case, tape, "c")
    logits_backward(case, tape, "c")
    tape.free("ln_f output")
    if case.step.loss_chunks == 2:  # the sum of the first two is new, others are added to it
        tape.take("new sum of d head", GRADIENTS, "s·P·C", "gradient of the output head")
        tape.free("d head")
        tape.rename("new sum of d head", "d head")
    tape.free("sum of d head")
    if case.autocast:
        head_in_float32(case, tape)
    tape.rename("d ln_f output", "last chunk")
    tape.take("d ln_f output", TRANSIENTS, "n·4·C", "gradient of the last norm's output")
    tape.free("last chunk", "other chunks")
