"""One transformer block on the tape: forward, what it leaves behind, backward."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptfit.plan.memory.activation import Activation
from gptfit.plan.memory.attention import OUTPUT, Attention, attention_of
from gptfit.plan.memory.case import Case
from gptfit.plan.memory.tape import (
    ACTIVATIONS,
    CASTS,
    GRADIENTS,
    TRANSIENTS,
    Buffer,
    Held,
    Tape,
)

C_ATTN, C_PROJ, C_FC, MLP_PROJ = "c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"
WEIGHT = {C_ATTN: "3·C²", C_PROJ: "C²", C_FC: "C·F", MLP_PROJ: "C·F"}
BIAS = {C_ATTN: "3·b·C", C_PROJ: "b·C", C_FC: "b·F", MLP_PROJ: "b·C"}


@dataclass
class Block:
    """A block; ``left`` are the buffers that its forward pass leaves for the backward pass."""

    case: Case
    left: dict[str, Buffer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attention: Attention = attention_of(self.case)
        self.activation = Activation(self.case)
        tape = Tape()
        tape.take("residual", ACTIVATIONS, "n·4·C", "residual stream before a norm, float32")
        self.forward(tape)
        self.left = {
            name: held.buffer
            for name, held in tape.held.items()
            if name != "residual" and not name.endswith("bias cast")
        }

    def saved(self, times: str) -> dict[str, Held]:
        """What so many blocks leave; that of one block under plain names, for ``backward``."""
        if times == "1":
            return {name: Held(buffer) for name, buffer in self.left.items()}
        return {f"{name} of others": Held(buffer, times) for name, buffer in self.left.items()}

    def checkpoints(self, times: str) -> dict[str, Held]:
        """What so many checkpointed blocks leave: their inputs."""
        buffer = Buffer(ACTIVATIONS, "n·4·C", "input of a checkpointed block, float32")
        return {"checkpoints": Held(buffer, times)} if self.case.checkpoints else {}

    def casts(self, times: str) -> dict[str, Held]:
        """Copies of weights that nothing has saved; autocast keeps them until the forward pass ends."""
        buffer = Buffer(CASTS, "2·m", "weights of a checkpointed block in bfloat16")
        return {"casts": Held(buffer, times)} if self.case.casts else {}

    def bias_casts(self, times: str) -> dict[str, Held]:
        """Autocast copies biases too; no derivative reads them."""
        buffer = Buffer(CASTS, "2·a", "biases of a block in bfloat16")
        return {"bias casts": Held(buffer, times)} if self.case.casts else {}

    def gradients(self, times: str) -> dict[str, Held]:
        """Of so many blocks that the backward pass has been through."""
        if self.case.adds_up:
            return {}
        return {"block gradients": Held(Buffer(GRADIENTS, "4·G", "gradients of a block"), times)}

    def forward(self, tape: Tape, stops_early: bool = False) -> None:
        """From one "residual" (B, T, C) to the next.

        A checkpoint's second pass ``stops_early``, at the last tensor to be saved.
        """
        tape.rename("residual", "ln_1 input")
        self.norm(tape, "ln_1", C_ATTN)
        tape.take("q, k, v", ACTIVATIONS, "n·s·3·C", "queries, keys and values")
        tape.used("ln_1 statistics", *([f"{C_ATTN} input"] if self.case.autocast else []))
        before = set(tape.held)
        self.attention.forward(tape)
        tape.used(*(name for name in tape.held if name not in before | {OUTPUT}))
        self.project(tape, C_PROJ)
        tape.used(f"{C_PROJ} mask", OUTPUT, *(["q, k, v"] if self.attention.keeps_qkv else []))
        self.attention.leave(tape)
        self.leave(tape, "ln_1")
        tape.used(f"{C_ATTN} input")
        tape.take("ln_2 input", ACTIVATIONS, "n·4·C", "residual stream before a norm, float32")
        tape.free("branch")
        self.norm(tape, "ln_2", C_FC)
        tape.take("c_fc output", ACTIVATIONS, "n·s·F", "input of the activation")
        tape.used("ln_2 statistics", *([f"{C_FC} input"] if self.case.autocast else []))
        before = set(tape.held) - {"c_fc output"}
        self.activation.forward(tape)
        tape.used(*(name for name in tape.held if name not in before | {f"{MLP_PROJ} input"}))
        self.project(tape, MLP_PROJ, stops_early)
        tape.used(f"{MLP_PROJ} mask", f"{MLP_PROJ} input")
        self.leave(tape, "ln_2")
        tape.used(f"{C_FC} input")
        if not stops_early:
            tape.take("residual", ACTIVATIONS, "n·4·C", "residual stream in float32")
        tape.free(*(["branch"] if "branch" in tape.held else []))
        tape.used("ln_1 input", "ln_2 input")

    def norm(self, tape: Tape, norm: str, linear: str) -> None:
        """A layer norm, which computes in float32, and the casts for the linear layer behind it."""
        tape.take(f"{norm} statistics", ACTIVATIONS, "n·8", "mean and deviation of a norm, float32")
        if self.case.autocast:
            tape.take(f"{norm} output", TRANSIENTS, "n·4·C")
        tape.take(f"{linear} input", ACTIVATIONS, "n·s·C", f"input of {linear}")
        self.cast(tape, linear)

    def leave(self, tape: Tape, norm: str) -> None:
        """The branch behind a norm returns, and with it goes Python's reference to its input."""
        if self.case.autocast:
            tape.free(f"{norm} output")

    def cast(self, tape: Tape, linear: str) -> None:
        """The layer's weights in bfloat16, which its derivative reads again."""
        if self.case.casts:
            tape.take(f"{linear} cast", CASTS, f"2·{WEIGHT[linear]}", f"{linear} in bfloat16")
            tape.take(f"{linear} bias cast", CASTS, f"2·{BIAS[linear]}", "bias in bfloat16")

    def project(self, tape: Tape, linear: str, stops_early: bool = False) -> None:
        """A projection back to the residual stream, and its dropout. What an operation reads is saved
        before it computes, so the last one of a pass that ``stops_early`` does not."""
        self.cast(tape, linear)
        if stops_early and not self.case.resid_dropout:
            return
        tape.take("branch", TRANSIENTS, "n·s·C", f"output of {linear}")
        if self.case.resid_dropout:
            mask = self.case.mask_of("n·s·C", "n·C")
            tape.take(f"{linear} mask", ACTIVATIONS, mask, "mask of dropout")
            if stops_early and self.case.cpu:
                return
            tape.take("dropped", TRANSIENTS, "n·s·C", "output of dropout")
            tape.free("branch")
            tape.rename("dropped", "branch")

    def backward(self, tape: Tape, recomputes: bool = False) -> None:
        """From one "gradient" (B, T, C) to the one before; what forward left is freed on the way."""
        if self.case.autocast:
            tape.take("d branch", TRANSIENTS, "n·2·C", "gradient of a branch in bfloat16")
        if recomputes:
            self.forward(tape, stops_early=True)
            tape.forgets = True
        saved = None if self.activation.reads_output else f"{MLP_PROJ} input"
        self.project_backward(tape, MLP_PROJ, "n·s·F", saved)
        self.activation.backward(tape)
        self.linear_backward(tape, C_FC, "d c_fc output", "n·s·C", "c_fc input")
        self.norm_backward(tape, "ln_2", C_FC)
        if self.case.autocast:
            tape.take("d branch", TRANSIENTS, "n·2·C", "gradient of a branch in bfloat16")
        saved = None if self.attention.shares_output else OUTPUT
        self.project_backward(tape, C_PROJ, "n·s·C", saved)
        self.attention.backward(tape)
        self.linear_backward(tape, C_ATTN, "d qkv", "n·s·C", "c_attn input")
        self.norm_backward(tape, "ln_1", C_ATTN)
        tape.forgets = False

    def project_backward(self, tape: Tape, linear: str, size: str, saved: str | None) -> None:
        """Without dropout and casts the gradient of a branch is that of the residual stream itself."""
        branch = "d branch" if self.case.autocast else None
        if self.case.resid_dropout:
            tape.take("d dropped", TRANSIENTS, "n·s·C", "gradient behind dropout")
            tape.free(f"{linear} mask", *([branch] if branch else []))
            branch = "d dropped"
        self.linear_backward(tape, linear, branch, size, saved)

    def linear_backward(
        self, tape: Tape, linear: str, output: str | None, size: str, saved: str | None
    ) -> None:
        """Gradients of a linear layer's input (of ``size`` bytes) and of its weights."""
        elements = f"({WEIGHT[linear]} + {BIAS[linear]})"
        tape.take(f"d {linear} input", TRANSIENTS, size, f"gradient of the input of {linear}")
        if not self.case.autocast:
            tape.take(f"d {linear}", GRADIENTS, f"4·{elements}", f"gradient of {linear}")
            tape.free(*(name for name in (output, saved) if name))
        else:
            tape.take(f"d {linear} in bfloat16", TRANSIENTS, f"2·{elements}")
            cast = f"{linear} cast" if self.case.casts else None
            tape.free(*(name for name in (output, saved, cast) if name))
            tape.take(f"d {linear}", GRADIENTS, f"4·{elements}", f"gradient of {linear}")
            tape.free(f"d {linear} in bfloat16")
        self.add_up(tape, f"d {linear}")

    def norm_backward(self, tape: Tape, norm: str, linear: str) -> None:
        """The gradient of a norm's input, which is added to that of the residual stream."""
        incoming = f"d {linear} input"
        if self.case.autocast:
            tape.take(f"d {norm} output", TRANSIENTS, "n·4·C")
            tape.free(incoming)
            incoming = f"d {norm} output"
        tape.take(f"d {norm} input", TRANSIENTS, "n·4·C")
        tape.take(f"d {norm}", GRADIENTS, "4·(1 + b)·C", f"gradient of {norm}")
        tape.free(incoming, f"{norm} input", f"{norm} statistics")
        tape.free(f"d {norm} input")
        self.add_up(tape, f"d {norm}")

    def add_up(self, tape: Tape, gradient: str) -> None:
        """Gradients of later micro-batches are added to the first one's, in place."""
        if self.case.adds_up:
            tape.free(gradient)
