"""The grid of a block of weights: a scale and an integer zero point that lose least."""

from __future__ import annotations

import numpy as np

#: By how much the range of a block is narrowed, at most and in how many steps: a few outliers may be cut to spare the rest.
NARROWEST, STEPS = 0.6, 9
#: Scales between these lose at most 0.4 % in float16, which the numbers on the grid make up for.
SMALLEST_HALF, LARGEST_HALF = 2.0**-17, 2.0**15


def half_scales(weight: np.ndarray, bits: int, block: int) -> bool:
    """Whether the scales of ``weight`` ``[rows, columns]`` can be stored in float16, half of what they take else.

    Numbers are put on the grid after its scale was rounded, so that what rounding does to a scale is no error of a number.
    """
    starts = np.arange(0, weight.shape[1], block)
    high, low = np.maximum.reduceat(weight, starts, axis=1), np.minimum.reduceat(weight, starts, axis=1)
    peaks = np.maximum(high, -low) / ((1 << bits) - 1)
    least = np.min(peaks, where=peaks > 0, initial=np.inf)
    return bool(least >= SMALLEST_HALF * 2 and np.max(peaks, initial=0) <= LARGEST_HALF)


def as_half(scales: np.ndarray) -> np.ndarray:
    """Scales as float16 holds them, float32; where that is nothing, one: such a block is all zeros."""
    found = scales.astype(np.float16).astype(np.float32)
    return np.where(found > 0, found, np.float32(1))


def fit_grid(
    weight: np.ndarray, bits: int, importance: np.ndarray | None = None, steps: int = STEPS, *, half: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A scale and an integer zero point for each row of one block.

    Ranges narrowed by up to ``NARROWEST`` are tried, each followed by the least-squares scale of what it rounds to; the one
    with the smallest squared error, weighted with ``importance``, is kept (the search of AWQ, arXiv:2306.00978, section 3.2,
    with the refit of GGML's quantizers).

    Args:
        weight: One block of each row, float32 ``[rows, block]``.
        bits: 2, 4 or 8.
        importance: What an error of each column costs, ``[block]``: the mean square of the activation that it meets. All
            alike by default.
        steps: How many ranges are tried.
        half: Only scales that float16 holds exactly.

    Returns:
        Scales ``[rows]`` float32, and zero points ``[rows]`` as float32 whole numbers in 0 … 2^bits - 1.

    Example:
        >>> scale, zero = fit_grid(np.array([[0.0, 1.0, 2.0, 15.0]], np.float32), bits=4)
        >>> float(scale[0]), float(zero[0])
        (1.0, 0.0)
    """
    top = np.float32((1 << bits) - 1)
    cost = np.ones(weight.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    tiny = np.finfo(np.float32).tiny
    best = np.full(len(weight), np.inf, np.float32)
    scales, zeros = np.ones(len(weight), np.float32), np.zeros(len(weight), np.float32)
    for share in np.linspace(1.0, NARROWEST, steps, dtype=np.float32):
        scale = np.maximum((high - low) * share / top, tiny)
        zero = np.clip(np.rint(-low * share / scale), 0, top)
        q = np.clip(np.rint(weight / scale[:, None]) + zero[:, None], 0, top) - zero[:, None]
        weighted = q * cost
        norm = np.einsum("rb,rb->r", weighted, q)
        better = np.einsum("rb,rb->r", weighted, weight) / np.where(norm > 0, norm, 1)
        scale = np.where((norm > 0) & (better > tiny), better, scale).astype(np.float32)
        if half:
            scale = as_half(scale)
        rounded = (np.clip(np.rint(weight / scale[:, None]) + zero[:, None], 0, top) - zero[:, None]) * scale[:, None]
        error = np.square(weight - rounded) @ cost
        kept = error < best
        best[kept], scales[kept], zeros[kept] = error[kept], scale[kept], zero[kept]
    return scales, zeros
