"""GPT-2 as a language model. Letters as in ``layers``, and V vocabulary."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptfit.config import GPT2Config
from gptfit.errors import ConfigError, Problem
from gptfit.model.kv_cache import KVCache
from gptfit.model.layers import Embedding, Linear, TransformerBlock
from gptfit.model.loss import chunked_cross_entropy
from gptfit.plan.manifest import manifest


class GPT2(nn.Module):
    """The language model; its ``state_dict`` is ``manifest(config)``.

    With ``pad_vocab_to_multiple`` the embedding and the head carry rows beyond the vocabulary, for
    the sake of fast matrix shapes. They are invisible outside: logits have V columns, and saved
    files leave them out. The initial values come from ``generator``; see ``init_weights``.
    """

    def __init__(
        self,
        config: GPT2Config,
        pad_vocab_to_multiple: int = 1,
        generator: torch.Generator | None = None,
        zero_init_projections: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointed_blocks, self.loss_chunks = 0, 1
        V, C = round_up(config.vocab_size, pad_vocab_to_multiple), config.n_embd
        self.wte = Embedding(V, C)
        self.wpe = Embedding(config.n_positions, C)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(C, config.layer_norm_epsilon, bias=config.bias)
        self.lm_head = Linear(C, V, bias=False)
        self.tie_weights()
        if not self.wte.weight.is_meta:
            self.init_weights(generator, zero_init_projections)

    def tie_weights(self) -> None:
        """Let the head share the token embedding, where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight

    def spare_memory(self, checkpointed_blocks: int = 0, loss_chunks: int = 1) -> None:
        """Train in less memory, to the same result.

        The backward pass recomputes the first ``checkpointed_blocks`` blocks instead of keeping
        their activations (Chen et al. 2016, arXiv 1604.06174). The loss takes the tokens of a batch
        in ``loss_chunks`` parts, so that only one part's logits exist at a time.
        """
        if checkpointed_blocks > self.config.n_layer:
            message = f"checkpointed_blocks={checkpointed_blocks} of n_layer={self.config.n_layer}"
            fix = f"use at most {self.config.n_layer}"
            raise ConfigError(Problem("run.checkpointed_blocks", message, fix))
        self.checkpointed_blocks, self.loss_chunks = checkpointed_blocks, loss_chunks

    @torch.no_grad()
    def init_weights(
        self, generator: torch.Generator | None = None, zero_init_projections: bool = False
    ) -> None:
        """Draw every parameter as the manifest says; padded rows are zero.

        With ``zero_init_projections`` the matrices that write to the residual stream are zero, so
        that each block begins as the identity.
        """
        for spec in manifest(self.config):
            if not spec.tied_to:
                weight = self.get_parameter(spec.name)
                rows = weight[: spec.shape[0]]
                weight.zero_()
                if zero_init_projections and spec.name.endswith("c_proj.weight"):
                    continue
                if spec.init_std:
                    rows.normal_(spec.init_mean, spec.init_std, generator=generator)
                else:
                    rows.fill_(spec.init_mean)

    @overload
    def forward(
        self,
        idx: Tensor,
        targets: None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor: ...

    @overload
    def forward(self, idx: Tensor, targets: Tensor) -> Tensor: ...

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) of the token ids (B, T); with ``targets`` (B, T) the mean loss instead.

        The loss is in nats per target; targets of -100 are left out. ``mask`` (B, T + past) is True
        at real tokens and False at padding, on the left; positions then count real tokens only.
        With a ``cache`` the ids continue what its rows hold, each its own length. ``last_only``
        computes the logits of the last position only, (B, 1, V).
        """
        x = self.hidden(idx, positions, mask, cache)
        if targets is not None:
            return self.loss(x, targets)
        return self.logits(x[:, -1:] if last_only else x)

    def hidden(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C); the arguments are those of ``forward``."""
        T = idx.shape[1]
        end = T + (max(cache.lengths) if cache is not None else 0)
        if end > self.config.n_positions and positions is None:
            raise ValueError(
                f"{end} tokens do not fit the context of {self.config.n_positions} positions"
            )
        if cache is None:
            places, causal = torch.arange(T, device=idx.device)[None], True
        else:
            places = cache.reserve(T)
            causal = cache.is_even and (T == 1 or end == T)
        allowed = None if causal and mask is None else attention_mask(mask, places, end)
        x = self.drop(self.wte(idx) + self.wpe(places if positions is None else positions))
        recomputed = self.checkpointed_blocks if self.training and cache is None else 0
        for layer, block in enumerate(self.h):
            if layer < recomputed:
                x = checkpoint(block, x, allowed, use_reentrant=False)
            else:
                x = block(x, allowed, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states (..., C) to logits (..., V), without the padded columns."""
        return self.lm_head(x)[..., : self.config.vocab_size]

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of hidden states (B, T, C) against targets (B, T)."""
        if self.loss_chunks > 1:
            return chunked_cross_entropy(
                x.flatten(0, 1),
                self.lm_head.weight,
                targets.flatten(),
                self.loss_chunks,
                self.config.vocab_size,
            )
        logits = self.logits(x).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def attention_mask(mask: Tensor | None, places: Tensor, end: int) -> Tensor:
    """Who may look at whom, (B, 1, T, S): the tokens at ``places`` at what came before the ``end`` S.

    A padded query would see nothing, and a softmax over nothing is NaN: it may look at itself.
    """
    keys = torch.arange(end, device=places.device)
    causal = keys <= places[..., None]  # (B, T, S)
    if mask is not None:
        causal = causal & mask[:, None, :].bool() | (keys == places[..., None])
    return causal[:, None]


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below ``number``."""
    return -(-number // multiple) * multiple
