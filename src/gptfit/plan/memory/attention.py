"""Attention on the tape, in each of the ways it is computed.

Forward starts with "q, k, v" held and ends with the projection's input; backward starts with that
input's gradient and ends with "d qkv". A token has H·T scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptfit.plan.memory.case import Case
from gptfit.plan.memory.tape import ACTIVATIONS, TRANSIENTS, Tape

OUTPUT, OUTPUT_GRADIENT = "attn.c_proj input", "d attn.c_proj input"


def attention_of(case: Case) -> Attention:
    """The way that this step takes."""
    if case.upcast:
        return Upcast(case)
    if case.eager:
        return Eager(case)
    if not case.flash:
        return Unfused(case)
    if case.blocked:
        return Blocked(case)
    return Padded(case) if case.pads_heads else Attention(case)


@dataclass(frozen=True)
class Attention:
    """One way; as it stands, flash or memory-efficient attention (Dao et al. 2022), which never holds the scores.

    Its derivative reads the output, as the projection's does (``shares_output``), and queries, keys
    and values as they come (``keeps_qkv``).
    """

    case: Case
    shares_output = True
    keeps_qkv = True

    def forward(self, tape: Tape) -> None:
        """From queries, keys and values (B, H, T, D) to the output (B, T, C)."""
        tape.take(OUTPUT, ACTIVATIONS, "n·s·C", "output of attention")
        self.statistics(tape)

    def statistics(self, tape: Tape) -> None:
        """One number per query and head; the memory-efficient kernel writes whole blocks of 32."""
        blocks = not self.case.autocast and not self.case.cpu
        size = "4·B·H·32·(-(-T // 32))" if blocks else "n·4·H"
        tape.take("log-sum-exp", ACTIVATIONS, size, "softmax statistics of fused attention")

    def leave(self, tape: Tape) -> None:
        """The function returns; its derivative reads queries, keys and values."""

    def backward(self, tape: Tape) -> None:
        """From the output's gradient to that of queries, keys and values, as one tensor."""
        tape.take("d q, k, v", TRANSIENTS, "n·s·3·C", "gradients of queries, keys and values")
        tape.free(OUTPUT_GRADIENT, "q, k, v", "log-sum-exp", OUTPUT)
        self.join(tape)

    def join(self, tape: Tape) -> None:
        """Three gradients become one tensor."""
        tape.take("d qkv", TRANSIENTS, "n·s·3·C", "the same in one tensor")
        tape.free("d q, k, v")


QUERIES = 128
"""Queries of one block of ``gptfit.model.attention``, which a test holds it to."""
LAST = f"(T - {QUERIES}·((T - 1) // {QUERIES}))"
ALL_WEIGHTS = f"({QUERIES**2 // 2}·(T // {QUERIES})·(T // {QUERIES} + 1) + (T - {QUERIES}·(T // {QUERIES}))·T)"


@dataclass(frozen=True)
class Blocked(Attention):
    """Plain products of blocks of queries in bfloat16; the weights of all blocks are kept.

    Of several heads of several sequences (w is 1) queries, keys and values are copied; else a view
    of them is kept.
    """

    shares_output = False
    keeps_qkv = False

    def forward(self, tape: Tape) -> None:
        """Block after block. What the last one needs is the most."""
        tape.take("q, k, v copies", ACTIVATIONS, "w·n·2·3·C", "contiguous queries, keys and values")
        tape.take("blocked output", TRANSIENTS, "n·2·C", "output of attention, head by head")
        tape.take(
            "attention weights",
            ACTIVATIONS,
            f"2·B·H·{ALL_WEIGHTS}",
            "weights of all blocks, bfloat16",
        )
        tape.take("future", TRANSIENTS, f"2·{LAST}·T", "mask of one block")
        tape.take("scores", TRANSIENTS, f"2·B·H·{LAST}·T", "scores of one block")
        tape.free("future", "scores")
        tape.take("block", TRANSIENTS, f"2·{LAST}·B·C", "output of one block")
        tape.free("block")
        tape.used("q, k, v copies", "attention weights")
        tape.take("copy", TRANSIENTS, "h·n·2·C")
        tape.free("blocked output", "copy")
        tape.take(OUTPUT, ACTIVATIONS, "n·2·C", "output of attention")

    def leave(self, tape: Tape) -> None:
        """The function returns; its derivative reads copies, or a view if there was no need to copy."""
        tape.free("q, k, v")
        tape.take("view of q, k, v", ACTIVATIONS, "(1 - w)·n·2·3·C", "queries, keys and values")
        tape.used("view of q, k, v")

    def backward(self, tape: Tape) -> None:
        """Block after block; the last one needs most."""
        tape.take("d output copy", TRANSIENTS, "w·n·2·C", "gradient of the output, head by head")
        tape.take("d blocked", TRANSIENTS, "n·2·3·C", "gradients of queries, keys and values")
        tape.take("d values of a block", TRANSIENTS, "n·2·C")
        tape.free("d values of a block")
        tape.take("d weights", TRANSIENTS, f"2·B·H·{LAST}·T", "gradient of a block's weights")
        tape.take("d scores", TRANSIENTS, f"2·B·H·{LAST}·T", "gradient of a block's scores")
        tape.free("d weights")
        tape.take("d keys of a block", TRANSIENTS, "n·2·C")
        tape.free("d keys of a block", "d scores")
        names = [
            name
            for name in ("attention weights", "q, k, v copies", "view of q, k, v")
            if name in tape.held
        ]
        tape.free("d output copy", OUTPUT_GRADIENT, *names)
        tape.take("copy", TRANSIENTS, "h·n·2·3·C")
        tape.free("d blocked", "copy")
        tape.take("d q, k, v", TRANSIENTS, "n·2·3·C", "gradients of queries, keys and values")
        self.join(tape)


@dataclass(frozen=True)
class Padded(Attention):
    """Flash attention takes heads in multiples of 8: others are copied into wider ones
    (aten/src/ATen/native/transformers/attention.cpp, ``pad_last_dim``)."""

    shares_output = False
    keeps_qkv = False

    def forward(self, tape: Tape) -> None:
        """Through wider heads."""
        tape.take("wide q, k, v", ACTIVATIONS, "n·2·3·H·d", "queries, keys and values, wider")
        tape.take("wide output", ACTIVATIONS, "n·2·H·d", "output of attention, wider")
        self.statistics(tape)
        tape.take(OUTPUT, ACTIVATIONS, "h·n·s·C", "output of attention, a view if of one head")

    def leave(self, tape: Tape) -> None:
        """The function returns; its derivative reads the copies."""
        tape.free("q, k, v")

    def backward(self, tape: Tape) -> None:
        """The same way back."""
        tape.take("d wide output", TRANSIENTS, "n·2·H·d")
        tape.free(OUTPUT_GRADIENT)
        tape.take("d wide q, k, v", TRANSIENTS, "n·2·3·H·d")
        tape.free("d wide output", "wide q, k, v", "log-sum-exp", "wide output")
        tape.take("d q, k, v", TRANSIENTS, "n·s·3·C", "gradients of queries, keys and values")
        tape.free("d wide q, k, v")
        self.join(tape)


@dataclass(frozen=True)
class Unfused(Attention):
    """Every stage of the scores is a tensor. As it stands: torch's own fall-back for dropout on a
    CPU, all in float32 (aten/src/ATen/native/transformers/attention.cpp,
    ``_scaled_dot_product_attention_math``).

    Products copy operands to be contiguous, but those of one sequence or one head (w is 0) are
    contiguous enough: the derivative reads a view instead, and what it is a view of stays.
    """

    shares_output = False
    keeps_qkv = False
    precise = "4"
    """Bytes of a query, a key and a score."""
    coarse = "4"
    """Bytes of a weight, when it meets its value."""

    @property
    def values(self) -> str | None:
        """What the values are a view of and queries and keys are not."""
        return "v in float32" if self.case.autocast else "q, k, v"

    def forward(self, tape: Tape) -> None:
        """Scores, softmax, dropout, sum over values."""
        if self.case.autocast:
            tape.take("q, k in float32", TRANSIENTS, "n·8·C")
            tape.take("v in float32", TRANSIENTS, "n·4·C")
        tape.take("scaled q", TRANSIENTS, "n·4·C")
        tape.take("causal mask", TRANSIENTS, "4·T²", "mask in the dtype of the scores")
        tape.take("scaled k", TRANSIENTS, "n·4·C")
        self.score(tape)
        self.keep_view(tape, "scaled k")
        tape.take("masked scores", TRANSIENTS, "n·4·H·T")
        tape.free("scores")
        self.softmax(tape)
        self.weigh(tape, "softmax")
        if self.case.autocast:
            tape.take("returned weights", TRANSIENTS, "n·2·H·T", "weights that nobody asked for")
            tape.take("weighted v in bfloat16", TRANSIENTS, "n·2·C")
            tape.free("weighted v", "q, k in float32", "returned weights")
            tape.rename("weighted v in bfloat16", "weighted v")
            self.keep_view(tape, "v in float32")
        self.keep_view(tape, "scaled q")
        tape.free("causal mask")
        self.finish(tape)

    def score(self, tape: Tape) -> None:
        """Contiguous copies of queries and keys, and their products."""
        size = f"w·n·{self.precise}·2·C"
        tape.take("q, k copies", ACTIVATIONS, size, "contiguous queries and keys")
        tape.take("scores", TRANSIENTS, f"n·{self.precise}·H·T")
        tape.used("q, k copies")

    def keep_view(self, tape: Tape, name: str) -> None:
        """Python lets go of it, but where no copy was made a derivative reads a view of it."""
        buffer = tape.held[name].buffer
        tape.free(name)
        view = f"(1 - w)·{buffer.formula}"
        tape.take(f"view of {name}", ACTIVATIONS, view, f"{buffer.source}, not copied")
        tape.used(f"view of {name}")

    def softmax(self, tape: Tape) -> None:
        """In float32."""
        tape.take("softmax", ACTIVATIONS, "n·4·H·T", "output of the softmax, float32")
        tape.free("masked scores")

    def weigh(self, tape: Tape, weights: str) -> None:
        """Dropout of the weights, and the sum over values."""
        if self.case.attn_dropout:
            mask = self.case.mask_of(f"n·{self.coarse}·H·T", "n·H·T")
            tape.take("attention mask", ACTIVATIONS, mask, "mask of the weights' dropout")
            dropped = f"n·{self.coarse}·H·T"
            tape.take("dropped weights", ACTIVATIONS, dropped, "weights after dropout")
            tape.used("attention mask")
            if weights != "softmax":
                tape.free(weights)
        tape.take("v copy", ACTIVATIONS, f"w·n·{self.coarse}·C", "contiguous values")
        tape.take("weighted v", TRANSIENTS, f"n·{self.coarse}·C")
        tape.used("dropped weights", "v copy")

    def finish(self, tape: Tape) -> None:
        """Heads side by side again."""
        self.reshape(tape, ["weighted v"], OUTPUT, "h", "output of attention")

    def reshape(self, tape: Tape, old: list[str], new: str, copies: str, source: str) -> None:
        """Heads to the other side of time: a copy where ``copies`` is 1, else the same memory."""
        size = "n·s·3·C" if len(old) > 1 else "n·s·C"
        tape.take("copy", TRANSIENTS, f"{copies}·{size}")
        tape.free(*old, "copy")
        tape.take(new, ACTIVATIONS, size, source)

    def leave(self, tape: Tape) -> None:
        """The function returns; its derivative reads copies, or views if there was no need to copy."""
        if self.values == "v in float32":  # and so are queries and keys
            tape.free("q, k, v")
        else:
            self.keep_view(tape, "q, k, v")

    def backward(self, tape: Tape) -> None:
        """The same way back."""
        tape.take("d weighted v", TRANSIENTS, f"n·{self.coarse}·C")
        tape.free(OUTPUT_GRADIENT)
        tape.take("d v", TRANSIENTS, f"n·{self.coarse}·C")
        tape.take("d weights", TRANSIENTS, f"n·{self.coarse}·H·T", "gradient of the weights")
        tape.free("d weighted v", "v copy", *([f"view of {self.values}"] if self.values else []))
        if self.case.attn_dropout:
            tape.free("dropped weights")
            dropped = f"n·{self.coarse}·H·T"
            tape.take("d softmax", TRANSIENTS, dropped, "gradient of the weights before dropout")
            tape.free("d weights", "attention mask")
        else:
            tape.rename("d weights", "d softmax")
        self.scores_backward(tape)
        tape.take("d q, k", TRANSIENTS, f"n·{self.precise}·2·C")
        views = [name for name in tape.held if name.startswith("view of")]
        tape.free("d scores", "q, k copies", *views)
        source = "gradients of queries, keys and values"
        self.reshape(tape, ["d q, k", "d v"], "d q, k, v", "h", source)
        self.join(tape)

    def scores_backward(self, tape: Tape) -> None:
        """From the softmax's gradient to that of the scores."""
        tape.take("d scores", TRANSIENTS, "n·4·H·T", "gradient of the scores")
        tape.free("d softmax", "softmax")


@dataclass(frozen=True)
class Eager(Unfused):
    """As Hugging Face's ``attn_implementation="eager"``: products in the matrices' dtype, the softmax
    in float32."""

    precise = coarse = "s"

    @property
    def values(self) -> str | None:
        """Keys are a view of the same, unless they were raised to float32."""
        return "q, k, v" if self.case.upcast and self.case.autocast else None

    def forward(self, tape: Tape) -> None:
        """Scores, softmax, dropout, sum over values."""
        tape.take("causal mask", TRANSIENTS, "4·T²", "mask of infinities")
        self.score(tape)
        tape.take("scaled scores", TRANSIENTS, "n·s·H·T")
        tape.free("scores")
        tape.take("masked scores", TRANSIENTS, "n·4·H·T")
        tape.free("scaled scores")
        tape.take("softmax", ACTIVATIONS, "n·4·H·T", "output of the softmax, float32")
        weights = self.lower(tape)
        self.weigh(tape, "softmax")  # the weights before dropout keep their name
        tape.free("masked scores", "causal mask")
        if self.case.attn_dropout and weights != "softmax":
            tape.free(weights)
        self.finish(tape)

    def lower(self, tape: Tape) -> str:
        """The weights in the dtype of the values, under the name that is returned."""
        if not self.case.autocast:
            return "softmax"
        tape.take("attention weights", ACTIVATIONS, "n·2·H·T", "weights in bfloat16")
        tape.used("softmax")
        return "attention weights"

    def raise_gradient(self, tape: Tape) -> None:
        """The weights' gradient in float32."""
        if self.case.autocast:
            if not self.case.attn_dropout:
                tape.free("attention weights")
            tape.take("d softmax in float32", TRANSIENTS, "n·4·H·T", "the same in float32")
            tape.free("d softmax")
            tape.rename("d softmax in float32", "d softmax")

    def scores_backward(self, tape: Tape) -> None:
        """From the weights' gradient to that of the scores."""
        self.raise_gradient(tape)
        super().scores_backward(tape)


@dataclass(frozen=True)
class Upcast(Eager):
    """``reorder_and_upcast_attn``: scores in float32 too, whatever autocast says."""

    precise = "4"

    def forward(self, tape: Tape) -> None:
        """Scores, softmax, dropout, sum over values."""
        tape.take("causal mask", TRANSIENTS, "T²", "mask, bool")
        if self.case.autocast:
            tape.take("q in float32", TRANSIENTS, "n·4·C")
        tape.take("scaled q", TRANSIENTS, "n·4·C")
        if self.case.autocast:
            tape.free("q in float32")
            tape.take("k in float32", TRANSIENTS, "n·4·C")
        self.score(tape)
        self.keep_view(tape, "scaled q")
        if self.case.autocast:
            self.keep_view(tape, "k in float32")
        tape.take("inverse mask", ACTIVATIONS, "T²", "mask, bool")
        tape.take("masked scores", TRANSIENTS, "n·4·H·T")
        tape.used("inverse mask")
        self.softmax(tape)
        self.weigh(tape, self.lower(tape))
        tape.free("causal mask", "scores")
        self.finish(tape)

    def scores_backward(self, tape: Tape) -> None:
        """From the weights' gradient to that of the scores, past the mask."""
        self.raise_gradient(tape)
        tape.take("d masked scores", TRANSIENTS, "n·4·H·T")
        tape.free("d softmax", "softmax")
        tape.take("d scores", TRANSIENTS, "n·4·H·T", "gradient of the scores")
        tape.free("d masked scores", "inverse mask")
