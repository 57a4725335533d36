"""GPTQ: each column is rounded, and the columns after it make up for its error (Frantar et al., arXiv:2210.17323)."""

from __future__ import annotations

import numpy as np

from .grids import fit_grid
from .packing import Blocks, Grid

#: What is added to the diagonal of the covariance, as a share of its mean (the paper's 1 %).
DAMPING = 0.01


def inverse_factor(covariance: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Upper triangular ``U`` with ``U.T @ U`` the inverse of the damped covariance ``[in, in]``, float32.

    With ``J`` the reversal of rows and columns and ``J H J = L L.T``, ``U`` is the inverse of ``J L J``: one Cholesky
    decomposition, and no inverse of ``H`` that another one would have to take apart.
    """
    h = covariance.astype(np.float64)
    mean = float(np.trace(h)) / len(h)
    dead = np.diag(h) <= 0
    h[dead, dead] = max(mean, 1.0)
    h[np.diag_indices_from(h)] += max(damping * mean, 1e-30)
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return np.triu(np.linalg.inv(lower)[::-1, ::-1]).astype(np.float32)


def gptq(weight: np.ndarray, covariance: np.ndarray, *, bits: int, block: int, damping: float = DAMPING) -> Blocks:
    """Round ``weight`` ``[out, in]`` so that its outputs change least, up to a constant that a bias makes up for.

    The paper takes second moments about zero. About the mean the rounding is free to move the mean of each output, which
    :func:`bias_of` puts back at no cost at run time.

    Args:
        weight: float32 ``[out, in]``.
        covariance: Of the layer's inputs, ``[in, in]``.
        bits: 2, 4 or 8.
        block: Columns that share a scale and a zero point.
        damping: Share of the mean of the diagonal that is added to it.

    Returns:
        The rounded weight.
    """
    top = np.float32((1 << bits) - 1)
    factor = inverse_factor(covariance, damping)
    rest = np.ascontiguousarray(weight.T, np.float32)  # [in, out]: a column of the weight lies in one piece
    columns, rows = rest.shape
    blocks = -(-columns // block)
    q = np.empty((columns, rows), np.uint8)
    scales, zeros = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.float32)
    importance = 1 / np.square(np.diag(factor))
    for b in range(blocks):
        part = slice(b * block, min((b + 1) * block, columns))
        inner, within = rest[part], factor[part, part]
        scale, zero = fit_grid(np.ascontiguousarray(inner.T), bits, importance[part])
        scales[:, b], zeros[:, b] = scale, zero
        errors = np.empty_like(inner)
        for j in range(len(inner)):
            column = inner[j]
            steps = np.clip(np.rint(column / scale) + zero, 0, top)
            q[part.start + j] = steps
            errors[j] = (column - (steps - zero) * scale) / within[j, j]
            if j + 1 < len(inner):
                inner[j + 1 :] -= np.outer(within[j, j + 1 :], errors[j])
        if part.stop < columns:
            rest[part.stop :] -= factor[part, part.stop :].T @ errors
    return Blocks(Grid(bits, block, scales, zeros.astype(np.uint8)), np.ascontiguousarray(q.T))


def bias_of(error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What a layer's outputs lack on average, float32 ``[out]``: ``error`` is the weight less what it became, ``[out, in]``."""
    return np.asarray(error @ mean, np.float32)
