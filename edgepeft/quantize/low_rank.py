"""The low-rank part of what rounding took from a weight, in closed form.

The best rank-r correction of a layer's *outputs* is a truncated singular value decomposition of the error whitened by the
covariance of its inputs (QERA, arXiv:2410.06040; LQER, arXiv:2402.02446).
"""

from __future__ import annotations

import numpy as np

from .gptq import DAMPING
from .nbits import Correction


def correction(error: np.ndarray, covariance: np.ndarray, rank: int, damping: float = DAMPING) -> Correction:
    """Factors whose product is nearest to ``error`` as the layer's inputs see it.

    Args:
        error: The weight less what it was rounded to, ``[out, in]``.
        covariance: Of the layer's inputs, ``[in, in]``.
        rank: How many directions are put back, at most ``min(out, in)``.
        damping: Share of the mean of the covariance's diagonal that is added to it.

    Returns:
        ``first`` ``[in, rank]`` and ``second`` ``[rank, out]``, of like sizes, so that float16 holds both.
    """
    out, width = error.shape
    rank = min(rank, out, width)
    e, h = error.astype(np.float32, copy=False), covariance.astype(np.float32)
    h[np.diag_indices(width)] += max(damping * float(np.trace(h)) / width, 1e-30)
    if out <= width:  # directions of outputs: those in which E H E^T is largest
        kept = _largest(e @ h @ e.T, rank)
        first, second = (kept.T @ e).T, kept.T
    else:
        lower = np.linalg.cholesky(h.astype(np.float64))
        seen = e @ lower.astype(np.float32)
        kept = _largest(seen.T @ seen, rank)
        first, second = np.linalg.solve(lower.T, kept), (seen @ kept).T
    large = np.linalg.norm(first, axis=0)
    balance = np.sqrt(np.linalg.norm(second, axis=1) / np.where(large > 0, large, 1))
    balance = np.where(balance > 0, balance, 1)
    return Correction((first * balance).astype(np.float32), (second / balance[:, None]).astype(np.float32))


def _largest(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The eigenvectors of a symmetric matrix with the largest eigenvalues, ``[size, rank]``."""
    _, vectors = np.linalg.eigh(matrix.astype(np.float64))
    found: np.ndarray = vectors[:, ::-1][:, :rank]
    return found
