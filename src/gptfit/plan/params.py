"""How many parameters a configuration has, by component, with the formula."""

from __future__ import annotations

from dataclasses import dataclass

from gptfit.config import GPT2Config
from gptfit.plan import manifest as m
from gptfit.plan.manifest import manifest


@dataclass(frozen=True)
class Component:
    """One line of the table: ``formula`` in letters, the same with this model's numbers, the count."""

    name: str
    formula: str
    numbers: str
    count: int


@dataclass(frozen=True)
class ParameterCount:
    """Exact counts. Tied weights count once.

    ``non_embedding`` leaves out both embeddings and the output head (Kaplan et al. 2020);
    ``without_positions`` leaves out the position embedding only (what nanoGPT prints).
    """

    components: tuple[Component, ...]
    total: int
    tied: int
    untied: int
    non_embedding: int
    without_positions: int


LETTERS = "V vocab_size, T n_positions, C n_embd, F n_inner, L n_layer, b 1 with biases else 0"


def count_parameters(config: GPT2Config) -> ParameterCount:
    """Count from the manifest; the formulas are held against it by a test.

    >>> count_parameters(GPT2Config.gpt2_xl()).total
    1557611200
    """
    counts: dict[str, int] = {}
    for spec in manifest(config):
        counts[spec.component] = counts.get(spec.component, 0) + (0 if spec.tied_to else spec.numel)
    total = sum(counts.values())
    wte = counts[m.TOKEN_EMBEDDING]
    tied = total - counts[m.OUTPUT_HEAD]
    return ParameterCount(
        components=tuple(
            Component(name, FORMULAS[name], _numbers(FORMULAS[name], config), count)
            for name, count in counts.items()
        ),
        total=total,
        tied=tied,
        untied=tied + wte,
        non_embedding=tied - wte - counts[m.POSITION_EMBEDDING],
        without_positions=total - counts[m.POSITION_EMBEDDING],
    )


FORMULAS = {
    m.TOKEN_EMBEDDING: "V·C",
    m.POSITION_EMBEDDING: "T·C",
    m.LAYER_NORM: "(2·L + 1)·(1 + b)·C",
    m.ATTENTION: "L·(4·C² + b·4·C)",
    m.FEED_FORWARD: "L·(2·C·F + b·(F + C))",
    m.OUTPUT_HEAD: "u·V·C",
}


def _numbers(formula: str, config: GPT2Config) -> str:
    values = {
        "V": config.vocab_size,
        "T": config.n_positions,
        "C": config.n_embd,
        "F": config.n_inner,
        "L": config.n_layer,
        "b": int(config.bias),
        "u": int(not config.tie_word_embeddings),
    }
    return "".join(str(values.get(letter, letter)) for letter in formula)
