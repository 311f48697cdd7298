"""What a CUDA device would allocate, on tensors of the meta device, which have no memory.

Meta tensors follow every shape and dtype, but none of CUDA's own choices: autocast's casts, fused
dropout, flash attention. This mode makes them. Its rules are those of PyTorch's autocast op reference
(https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float16).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten

LOW_PRECISION = {
    F.linear,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.conv1d,
    Tensor.matmul,
    Tensor.mm,
    Tensor.bmm,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
}
IN_FLOAT32 = ["pow", "exp", "log", "rsqrt", "reciprocal", "norm", "softmax", "log_softmax"]
IN_FLOAT32 += ["sum", "prod", "cumsum", "square"]
FLOAT32 = {
    F.layer_norm,
    F.nll_loss,
    F.softmax,
    F.log_softmax,
    F.softplus,
    Tensor.__pow__,
    *(getattr(place, name) for place in (torch, Tensor) for name in IN_FLOAT32),
}


class CudaEmulation(TorchFunctionMode):
    """Computes on meta tensors as CUDA would, in ``dtype`` inside blocks of ``autocast``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.blocks: list[bool] = []  # of autocast, from the outermost: enabled?
        self.recomputes = False
        # By id, because tensors compare their elements; the reference tells a tensor from a later one.
        self.casts: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    @contextmanager
    def autocast(
        self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True
    ) -> Iterator[None]:
        """Stands for ``torch.autocast``, which knows no meta device."""
        self.blocks.append(enabled)
        try:
            yield
        finally:
            self.blocks.pop()
            if not self.blocks:
                self.casts.clear()

    @contextmanager
    def active(self) -> Iterator[CudaEmulation]:
        """The mode, with ``torch.autocast`` replaced by its own, and fused AdamW let in.

        The fused kernel knows meta tensors; only the check before it does not. Both hold for the
        whole process, so nothing else should train meanwhile.
        """
        unchecked = patch("torch.optim.adam._device_dtype_check_for_fused", lambda *_: None)
        with patch("torch.autocast", self.autocast), unchecked, self:
            yield self

    @property
    def casting(self) -> bool:
        """Whether autocast applies. What a backward pass recomputes runs as it did at first."""
        inside = self.blocks[-1] if self.blocks else self.recomputes
        return inside and self.dtype != torch.float32

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            return self.backward(*args)
        if func is F.dropout:
            return dropout(*args, **kwargs)
        if self.casting and func in LOW_PRECISION:
            args, kwargs = tree_map_only(Tensor, self.cast, (args, kwargs))
        elif self.casting and func in FLOAT32:
            args, kwargs = tree_map_only(Tensor, to_float32, (args, kwargs))
        elif self.casting and func is F.cross_entropy:
            return func(to_float32(args[0]), *args[1:], **kwargs)
        elif func is F.scaled_dot_product_attention:
            if self.casting:
                args, kwargs = tree_map_only(Tensor, self.cast, (args, kwargs))
            return attention(*args, **kwargs)
        return func(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()`` with this mode on, for what is recomputed there.

        The engine is called itself, because its wrappers would switch the mode off.
        """
        run = torch.autograd.Variable._execution_engine.run_backward
        self.recomputes = True
        try:
            with self:
                run((loss,), (torch.ones_like(loss),), False, False, (), True, True)
        finally:
            self.recomputes = False

    def cast(self, x: Tensor) -> Tensor:
        """``x`` in the low precision. Copies of weights live until the outermost block ends."""
        if x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad and not x._is_view() and self.blocks):
            return x.to(self.dtype)
        known = self.casts.get(id(x))
        if known is None or known[0]() is not x:
            known = weakref.ref(x), x.to(self.dtype)
            self.casts[id(x)] = known
        return known[1]


def to_float32(x: Tensor) -> Tensor:
    """Only floating-point tensors are cast."""
    return x.float() if x.is_floating_point() else x


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's kernel keeps a mask of one byte per element."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention in half precision, the memory-efficient kernel in float32."""
    kernel: Callable[..., Any]
    if q.dtype == torch.float32 or attn_mask is not None:
        kernel = aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    D = q.shape[-1]
    if D % 8:  # the kernel takes heads in multiples of 8
        scale = D**-0.5 if scale is None else scale
        q, k, v = (F.pad(x, (0, -D % 8)) for x in (q, k, v))
    kernel = aten._scaled_dot_product_flash_attention
    return kernel(q, k, v, dropout_p, is_causal, False, scale=scale)[0][..., :D]
