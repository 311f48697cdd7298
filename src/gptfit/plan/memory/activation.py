"""The activation function between the two linear layers of the feed-forward part, on the tape.

Each is a little programme: "+a" takes a tensor, "-a" frees it, in the order of the operations that
the function is written in; "~a" frees it under a checkpoint, which lets go of it sooner than autograd.
":4" and ":1" are a tensor's bytes where they are not those of a matrix product.
The input is x, the output y, their gradients dx and dy.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptfit.plan.memory.case import Case
from gptfit.plan.memory.tape import ACTIVATIONS, TRANSIENTS, Tape

X, Y, DX, DY = "c_fc output", "mlp.c_proj input", "d c_fc output", "d mlp.c_proj input"
NAMES = {"x": X, "y": Y, "dx": DX, "dy": DY}

READS_INPUT = ("+y", "+dx -dy -x")
READS_OUTPUT = ("+y -x", "+dx -dy -y")
COMPOSITE_GELU = (
    "+b +c -b +d -c +e -d +w +f +g ~f +y ~w ~g -e",
    "+i +k -dy -g -w +l -k -f +m -l +q -m +r +t -r -q -x +dx -t -i",
)
"""0.5 * x * (1 + tanh(√(2/π) * (x + 0.044715 * x**3)))"""

PROGRAMMES = {
    "composite gelu": COMPOSITE_GELU,
    "relu": READS_OUTPUT,
    "tanh": READS_OUTPUT,
    "sigmoid": READS_OUTPUT,
    "linear": ("x=y", "dy=dx"),
    "gelu_10": ("+a +y", "+i:1 +j:1 +b -i -j -dy -a +dx -b -x"),
    "laplace": ("+a +b -a +c ~b +d -c +y -d -x", "+e -dy +f +g +h +i +j -i -h -g -f -e -b +dx -j"),
    "quick_gelu": ("+a +b -a +y", "+dx +e -dy -x +f -e -b +g -f -g"),
    "relu2": ("+a +y -x", "+p +q +r -q -p -dy +dx -r -a"),
    "sqrtsoftplus": ("+a +y -a", "+e +f -e -dy -y +dx -f -x"),
}
"""The functions that do not simply read their input again."""

RAISED = {
    "composite gelu": (
        "+a:4 +b:4 ~a +c:4 -b +d:4 -c +e:4 -d +w +f:4 +g:4 ~f +h:4 ~w ~g -e -x +y -h",
        "+o:4 -dy +i:4 +k:4 ~g ~w +j -i -o -g -w +l:4 -k -f +m:4 -l +u +q:4 -m +r:4 +t:4 -r -q -a +dx -t -u -j",
    ),
    "relu2": ("+a +b:4 +c:4 ~a ~b -x +y -c", "+d:4 -dy +p:4 +q:4 +r:4 -q -p -d -b +o -r +dx -o -a"),
    "sqrtsoftplus": ("+b:4 +a:4 ~b +c:4 -a -x +y", "+d:4 -dy +e:4 +f:4 -e -d -c +g:4 -f -b +dx -g"),
}
"""The same where CUDA's autocast raises an operation to float32."""

UNSURE = ("gelu_10", "laplace", "mish", "quick_gelu", "relu2", "sqrtsoftplus")
"""Compositions of operations for which nobody has measured what CUDA's autocast makes of them."""


@dataclass(frozen=True)
class Activation:
    """From "c_fc output" to "mlp.c_proj input" and back."""

    case: Case

    @property
    def programme(self) -> tuple[str, str]:
        """What happens forward and backward."""
        name = self.case.config.activation_function
        if self.case.composite_gelu:
            name = "composite gelu"
        if self.raises and name in RAISED:
            return RAISED[name]
        return PROGRAMMES.get(name, READS_INPUT)

    @property
    def raises(self) -> bool:
        """Whether autocast computes powers in float32: CUDA's does, a CPU's does not."""
        return self.case.autocast and not self.case.cpu

    @property
    def reads_output(self) -> bool:
        """Whether the derivative reads the output, as the projection's derivative does."""
        return "-y" in self.programme[1].split()

    def forward(self, tape: Tape) -> None:
        """(B, T, F) -> (B, T, F)."""
        self.run(tape, self.programme[0], ACTIVATIONS)

    def backward(self, tape: Tape) -> None:
        """From the output's gradient to the input's."""
        self.run(tape, self.programme[1], TRANSIENTS)

    def run(self, tape: Tape, programme: str, component: str) -> None:
        """Take and free as the programme says."""
        for word in programme.split():
            if "=" in word:
                tape.rename(*(NAMES[letter] for letter in word.split("=")))
                continue
            letter, _, size = word[1:].partition(":")
            name = NAMES.get(letter, f"stage {letter} of the activation")
            if word[0] == "~":
                tape.used(name)
            elif word[0] == "-":
                if name in tape.held or not tape.forgets:
                    tape.free(name)
            else:
                tape.take(name, component, f"n·{size or 's'}·F", SOURCES.get(letter, name))


SOURCES = {"y": "output of the activation", "dx": "gradient of the activation's input"}
