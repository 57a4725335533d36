"""Linear layers with gradients of their own for PyTorch: LoRA and DoRA over a frozen weight, and a frozen weight in bfloat16.

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


class DoraLinear(torch.autograd.Function):
    """``(W x + s B (A x)) m / n + b``: ``A``, ``B`` and the magnitudes ``m`` ``[out]`` are trained, ``W`` and ``b`` are not.

    ``n`` ``[out]`` are the norms of the rows of ``W + s B A``, which count as constants (Liu et al. 2024, section 4.3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, magnitude: Any, norm: Any, scaling: float
    ) -> Any:
        """``x`` is ``[..., in]``, the result ``[..., out]``."""
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ lora_a.T
        unscaled = product(rows, weight.T).addmm_(inner, lora_b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, unscaled, weight, lora_a, lora_b, magnitude, norm)
        ctx.scaling, ctx.shape = scaling, x.shape
        out = unscaled * (magnitude / norm)
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of ``x``, ``A``, ``B`` and ``m``."""
        rows, inner, unscaled, weight, lora_a, lora_b, magnitude, norm = ctx.saved_tensors
        given = gradient.reshape(-1, gradient.shape[-1])
        of_magnitude = (given * unscaled).sum(dim=0) / norm
        given = given * (magnitude / norm)
        of_inner = (given @ lora_b) * ctx.scaling
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(given, weight).addmm_(of_inner, lora_a).view(ctx.shape)
        of_b = ((inner.T @ given) * ctx.scaling).T
        return of_x, None, None, of_inner.T @ rows, of_b, of_magnitude, None, None


def dora_norm(squares: torch.Tensor, weight: torch.Tensor, lora_a: Any, lora_b: Any, scaling: float) -> torch.Tensor:
    """The norms ``[out]`` of the rows of ``W + s B A``, without that matrix.

    ``|w + s b A|^2 = |w|^2 + 2 s (w A^T) b^T + s^2 b (A A^T) b^T`` for a row ``w`` of ``W`` and ``b`` of ``B``.

    Args:
        squares: The squared norms ``[out]`` of the rows of ``W``.
        weight: ``W``.
        lora_a: ``A``.
        lora_b: ``B``.
        scaling: ``s``.
    """
    mixed = (weight @ lora_a.T) * 2 + (lora_b @ (lora_a @ lora_a.T)) * scaling
    return (squares + scaling * (mixed * lora_b).sum(dim=1)).clamp_min(0).sqrt()


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
