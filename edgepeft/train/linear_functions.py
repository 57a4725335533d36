"""Linear layers with gradients of their own for PyTorch: LoRA over a frozen weight, and a frozen weight in bfloat16.

``W`` is ``[out, in]``, ``A`` ``[rank, in]``, ``B`` ``[out, rank]``, as PyTorch and PEFT hold them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows`` ``[rows, a]`` times ``weight`` ``[a, b]`` in the weight's floats; the result in those of ``rows``."""
    return (rows.to(weight.dtype) @ weight).to(rows.dtype)


class LoraLinear(torch.autograd.Function):
    """``W x + b + s B (A x)``: ``A`` and ``B`` are trained, ``W`` and ``b`` are not."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scaling: float) -> Any:
        """``x`` is ``[..., in]``, the result ``[..., out]``."""
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ lora_a.T
        if bias is not None and weight.dtype == rows.dtype:
            out = torch.addmm(bias, rows, weight.T)
        else:
            out = product(rows, weight.T)
            if bias is not None:
                out += bias
        out.addmm_(inner, lora_b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, lora_a, lora_b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of ``x``, ``A`` and ``B``."""
        rows, inner, weight, lora_a, lora_b = ctx.saved_tensors
        given = gradient.reshape(-1, gradient.shape[-1])
        of_inner = (given @ lora_b) * ctx.scaling
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(given, weight).addmm_(of_inner, lora_a).view(ctx.shape)
        # Few rows times many columns, and then turned: twice as fast as many rows of few columns.
        return of_x, None, None, of_inner.T @ rows, ((inner.T @ given) * ctx.scaling).T, None


class FrozenLinear(torch.autograd.Function):
    """``W x + b``: ``W`` is not trained, and may be in other floats than ``x``; ``b`` may be trained."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        """``x`` is ``[..., in]``, the result ``[..., out]``."""
        ctx.save_for_backward(weight)
        ctx.has_bias = bias is not None
        out = product(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], len(weight))
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of ``x`` and ``b``."""
        (weight,) = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(rows, weight).view(*gradient.shape[:-1], weight.shape[1])
        return of_x, None, rows.sum(dim=0) if ctx.has_bias and ctx.needs_input_grad[2] else None
