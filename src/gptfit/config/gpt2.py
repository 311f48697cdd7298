"""``GPT2Config``: the value from which everything else follows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptfit.config import checks
from gptfit.config.checks import AUTO, Follows, Section, section, shown
from gptfit.errors import Problem

GPT2_VOCAB_SIZE = 50257
GPT2_PADDED_VOCAB_SIZE = 50304  # the next multiple of 64, nanoGPT's default
GPT2_END_OF_TEXT = 50256

# Every stateless activation of transformers.activations.ACT2FN (5.23). Its "prelu" and "xielu" carry
# learned parameters, which the GPT-2 layout has no name for.
ACTIVATIONS = (
    "gelu_new",
    "gelu",
    "relu",
    "silu",
    "tanh",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu2",
    "relu6",
    "sigmoid",
    "sqrtsoftplus",
    "swish",
)
SUMMARY_TYPES = ("last", "first", "mean", "cls_index")

# Far above every GPT-2, low enough that a hostile file cannot ask for absurd work.
LIMITS = {
    "vocab_size": 2**24,
    "n_positions": 2**20,
    "n_embd": 2**16,
    "n_layer": 1024,
    "n_head": 1024,
    "n_inner": 2**19,
}


def _end_of_text(vocab_size: int) -> int | None:
    """Only GPT-2's own vocabulary, padded or not, is known to have one."""
    return GPT2_END_OF_TEXT if vocab_size in (GPT2_VOCAB_SIZE, GPT2_PADDED_VOCAB_SIZE) else None


@section
@dataclass(frozen=True, kw_only=True)
class GPT2Config(Section):
    """The architecture of a GPT-2, in Hugging Face's words plus ``bias``; defaults are GPT-2 small.

    Raises ``ConfigError`` with every fault at once. ``n_inner`` follows ``4 * n_embd`` and the
    begin/end-of-text ids follow the vocabulary (GPT-2's own has 50256, also when it is padded to
    50304; another one has none) until they are given.

    >>> GPT2Config().head_dim, GPT2Config().replace(n_embd=1024, n_head=16).n_inner
    (64, 4096)
    """

    vocab_size: int = GPT2_VOCAB_SIZE
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = AUTO
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bias: bool = True
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    use_cache: bool = True
    bos_token_id: int | None = AUTO
    eos_token_id: int | None = AUTO
    pad_token_id: int | None = None
    summary_type: str = "cls_index"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1

    FOLLOWS: ClassVar[Follows] = {
        "n_inner": ("n_embd", lambda n_embd: 4 * n_embd),
        "bos_token_id": ("vocab_size", _end_of_text),
        "eos_token_id": ("vocab_size", _end_of_text),
    }
    ALIASES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        # transformers: GPT2Config.attribute_map
        "hidden_size": ("n_embd",),
        "max_position_embeddings": ("n_positions",),
        "num_attention_heads": ("n_head",),
        "num_hidden_layers": ("n_layer",),
        # nanoGPT: GPTConfig
        "block_size": ("n_positions",),
        "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    }

    def __post_init__(self) -> None:
        if self.n_inner is None:  # Hugging Face's way to say that it follows
            object.__setattr__(self, "n_inner", AUTO)
        super().__post_init__()

    def rules(self) -> Iterator[Problem]:
        """The hard rules: what breaks them cannot run. Advice is the linter's."""
        yield from checks.positive(self, *LIMITS)
        yield from checks.at_most(self, LIMITS)
        yield from self._heads_divide_width()
        yield from checks.fraction(
            self, "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"
        )
        yield from checks.positive(self, "layer_norm_epsilon", "initializer_range")
        yield from checks.one_of(self, "activation_function", ACTIVATIONS)
        yield from checks.one_of(self, "summary_type", SUMMARY_TYPES)
        yield from checks.one_of(self, "summary_activation", ACTIVATIONS)
        yield from self._tokens_inside_vocabulary()
        if self.add_cross_attention is True:
            message = "add_cross_attention=True needs an encoder, which a GPT-2 does not have"
            yield Problem("add_cross_attention", message, "leave it false")

    def _heads_divide_width(self) -> Iterator[Problem]:
        if not self._in_range("n_embd", "n_head"):
            return
        if self.n_embd % self.n_head:
            ratio = f"{self.n_embd}/{self.n_head} = {self.n_embd / self.n_head:.1f}"
            yield Problem(
                "n_head",
                f"n_head={self.n_head} does not divide n_embd={self.n_embd} ({ratio})",
                "try " + _either(_near_divisors(self.n_embd, self.n_head)),
            )

    def _tokens_inside_vocabulary(self) -> Iterator[Problem]:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is None or not checks.sound(self, name) or not self._in_range("vocab_size"):
                continue
            if not 0 <= value < self.vocab_size:
                message = f"{name}={shown(value)} is outside the vocabulary of {self.vocab_size}"
                yield Problem(name, message, f"use 0 to {self.vocab_size - 1}, or null for none")

    def _in_range(self, *names: str) -> bool:
        return checks.sound(self, *names) and all(1 <= getattr(self, n) <= LIMITS[n] for n in names)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no fields: the aliases read as well as they write.
        if name in type(self).ALIASES:
            return getattr(self, type(self).ALIASES[name][0])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def numerics(self) -> dict[str, Any]:
        """The fields that change what given weights compute; they travel with the weights."""
        return {name: getattr(self, name) for name in NUMERICS}

    def to_dict(self) -> dict[str, Any]:
        """All fields as Hugging Face's ``config.json`` holds them: ``n_inner`` is null while it follows."""
        values = {name: getattr(self, name) for name in checks.names_of(self)}
        return values | ({"n_inner": None} if "n_inner" in self.following else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """From a dict in any dialect: ours, Hugging Face's, nanoGPT's or a flat preset file."""
        from gptfit.config.dialects import read_dialect

        return read_dialect(values).config

    @classmethod
    def from_file(cls, path: str | Path) -> GPT2Config:
        """From a JSON or TOML file in any dialect, or a folder that holds a ``config.json``."""
        from gptfit.config.files import read_config_file

        path = Path(path)
        values = read_config_file(path / "config.json" if path.is_dir() else path)
        from gptfit.config.dialects import read_dialect

        return read_dialect(values, source=str(path)).config

    def save(self, path: str | Path) -> None:
        """Write a ``config.json`` that Hugging Face's and our own loader read."""
        from gptfit.config.dialects import to_hf

        Path(path).write_text(json.dumps(to_hf(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_preset(cls, name: str) -> GPT2Config:
        """The architecture of a shipped preset, by name or alias."""
        from gptfit.config.presets import find_preset

        return find_preset(name).config

    @classmethod
    def gpt2_small(cls) -> GPT2Config:
        """GPT-2 small, 124M."""
        return cls.from_preset("gpt2")

    @classmethod
    def gpt2_medium(cls) -> GPT2Config:
        """GPT-2 medium, 355M."""
        return cls.from_preset("gpt2-medium")

    @classmethod
    def gpt2_large(cls) -> GPT2Config:
        """GPT-2 large, 774M."""
        return cls.from_preset("gpt2-large")

    @classmethod
    def gpt2_xl(cls) -> GPT2Config:
        """GPT-2 XL, 1558M."""
        return cls.from_preset("gpt2-xl")


NUMERICS = (
    "n_head",
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
    "bias",
)


def _near_divisors(width: int, heads: int) -> list[int]:
    """Up to three head counts that divide ``width``: the neighbours of ``heads``, and head size 64."""
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    below = [d for d in divisors if d < heads][-1:]
    above = [d for d in divisors if d > heads]
    usual = [width // 64] if width % 64 == 0 else []
    return sorted(set(below + above[:1] + (usual if usual[:1] != above[:1] else above[1:2])))


def _either(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
