"""GPTQ: each column is rounded, and the columns that follow make up for its error (Frantar et al., arXiv:2210.17323).

The columns of the largest activations come first, when all others are left to make up for them (``act_order`` in the authors'
code). So that columns of a block may come at any time, grids are chosen before, and scales once more in closed form afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grids import as_half, fit_grid, half_scales
from .packing import Blocks, Grid

#: What is added to the diagonal of the covariance, as a share of its mean (the paper's 1 %).
DAMPING = 0.01
#: Columns after which their errors are passed on to all that follow, and the size from which on a triangle is inverted by halves.
_COLUMNS, _TRIANGLE = 32, 128
#: Numbers of a weight that are rounded at a time, and of the equations for scales that are solved at a time.
_NUMBERS, _EQUATIONS = 1 << 25, 1 << 24
#: A scale that least squares would change by more than this factor is left, and with it those of its row.
_FURTHEST = 3.0


def damped(covariance: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """The covariance ``[in, in]`` with ``damping`` times the mean of its diagonal added to that; float64, positive definite."""
    h = covariance.astype(np.float64)
    mean = float(np.trace(h)) / len(h)
    dead = np.diag(h) <= 0
    h[dead, dead] = max(mean, 1.0)
    h[np.diag_indices_from(h)] += max(damping * mean, 1e-30)
    return h


def inverse_factor(h: np.ndarray) -> np.ndarray:
    """Upper triangular ``U`` with ``U.T @ U`` the inverse of ``h`` ``[in, in]``, which is positive definite; float32.

    With ``J`` the reversal of rows and columns and ``J H J = L L.T``, ``U`` is the inverse of ``J L J``: one Cholesky
    decomposition, and no inverse of ``H`` that another one would have to take apart. The triangle, whose condition is the square
    root of ``H``'s, is inverted in float32.
    """
    lower = np.linalg.cholesky(h[::-1, ::-1]).astype(np.float32)
    _invert_lower(lower)
    return np.ascontiguousarray(lower[::-1, ::-1])


def _invert_lower(lower: np.ndarray) -> None:
    """Put the inverse of a lower triangular matrix in its place, by halves: mostly products of matrices.

    ``numpy.linalg.inv`` takes no notice of the zeros, which is four times the work.
    """
    size = len(lower)
    if size <= _TRIANGLE:
        lower[:] = np.tril(np.linalg.inv(lower))
        return
    half = size // 2
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower(first)
    _invert_lower(second)
    below[:] = -(second @ below) @ first


@dataclass(frozen=True)
class Hessian:
    """What an error of a layer's weights costs, made once for all weights that meet the same inputs.

    ``damped`` is :func:`damped` in float32, ``order`` the columns with those of the largest activations first, ``factor``
    :func:`inverse_factor` of the damped covariance in that order, and ``importance`` ``[in]`` what an error of each column costs
    at least: one over the diagonal of the inverse.
    """

    damped: np.ndarray
    order: np.ndarray
    factor: np.ndarray
    importance: np.ndarray

    @staticmethod
    def of(covariance: np.ndarray, damping: float = DAMPING) -> Hessian:
        """That of inputs with this covariance ``[in, in]``; ``damping`` as a share of the mean of its diagonal."""
        h = damped(covariance, damping)
        order = np.argsort(-np.diag(h), kind="stable")
        narrow = h.astype(np.float32)
        h = h[np.ix_(order, order)]
        factor = inverse_factor(h)
        importance = np.empty(len(h))
        importance[order] = 1 / np.square(factor).sum(0)
        return Hessian(narrow, order, factor, importance)


def gptq(weight: np.ndarray, hessian: Hessian, *, bits: int, block: int) -> Blocks:
    """Round ``weight`` ``[out, in]`` so that its outputs change least, up to a constant that a bias makes up for.

    The paper takes second moments about zero. About the mean the rounding is free to move the mean of each output, which
    :func:`bias_of` puts back at no cost at run time.

    Args:
        weight: float32 ``[out, in]``.
        hessian: Of the layer's inputs.
        bits: 2, 4 or 8.
        block: Columns that share a scale and a zero point.

    Returns:
        The rounded weight.

    Example:
        >>> inputs = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
        >>> rounded = gptq(np.eye(64, dtype=np.float32), Hessian.of(np.cov(inputs.T)), bits=4, block=32)
        >>> rounded.q.shape
        (64, 64)
    """
    grid = _grid(weight, bits, block, hessian.importance)
    # Rows do not depend on each other: a head has so many that copies of all would be what takes the most memory.
    step = max(1, _NUMBERS // weight.shape[1])
    parts = [
        _rounded(weight[start : start + step], grid.rows(start, start + step), hessian.factor, hessian.order)
        for start in range(0, len(weight), step)
    ]
    return refit_scales(weight, Blocks(grid, np.concatenate(parts)), hessian.damped)


def _grid(weight: np.ndarray, bits: int, block: int, importance: np.ndarray) -> Grid:
    rows, columns = weight.shape
    blocks = -(-columns // block)
    half = half_scales(weight, bits, block)
    scales = np.empty((rows, blocks), np.float16 if half else np.float32)
    zeros = np.empty((rows, blocks), np.uint8)
    for b in range(blocks):
        part = slice(b * block, min((b + 1) * block, columns))
        inner = np.ascontiguousarray(weight[:, part], np.float32)
        scales[:, b], zeros[:, b] = fit_grid(inner, bits, importance[part], half=half)
    return Grid(bits, block, scales, zeros)


def _rounded(weight: np.ndarray, grid: Grid, factor: np.ndarray, order: np.ndarray) -> np.ndarray:
    """``q`` of a weight ``[out, in]`` on a grid, columns taken in ``order``; ``factor`` is that of a :class:`Hessian`."""
    top = np.float32(grid.top)
    rest = np.ascontiguousarray(weight.T[order], np.float32)  # [in, out]: a column of the weight lies in one piece
    scales = np.ascontiguousarray(grid.scales.T, np.float32)
    assert grid.zeros is not None
    zeros = np.ascontiguousarray(grid.zeros.T).astype(np.float32)
    q = np.empty(rest.shape, np.uint8)
    for start in range(0, len(rest), _COLUMNS):
        part = slice(start, min(start + _COLUMNS, len(rest)))
        inner, within = rest[part], factor[part, part]
        errors = np.empty_like(inner)
        for j in range(len(inner)):
            column, place = inner[j], order[start + j]
            scale, zero = scales[place // grid.block], zeros[place // grid.block]
            steps = np.clip(np.rint(column / scale) + zero, 0, top)
            q[place] = steps
            errors[j] = (column - (steps - zero) * scale) / within[j, j]
            if j + 1 < len(inner):
                inner[j + 1 :] -= np.outer(within[j, j + 1 :], errors[j])
        if part.stop < len(rest):
            rest[part.stop :] -= factor[part, part.stop :].T @ errors
    return np.ascontiguousarray(q.T)


def refit_scales(weight: np.ndarray, blocks: Blocks, h: np.ndarray) -> Blocks:
    """The same numbers on grids whose scales are the best for them: least squares over all blocks of a row at once.

    Args:
        weight: float32 ``[out, in]``.
        blocks: What it was rounded to.
        h: The damped covariance of the layer's inputs, ``[in, in]``.
    """
    grid = blocks.grid
    assert grid.zeros is not None
    rows, columns = weight.shape
    h = h.astype(np.float32, copy=False)
    scales = grid.scales.astype(np.float32)
    step = max(1, _EQUATIONS // (columns + scales.shape[1] ** 2))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        zeros = np.repeat(grid.zeros[part].astype(np.float32), grid.block, axis=1)[:, :columns]
        steps = blocks.q[part].astype(np.float32) - zeros
        wanted = _by_block(steps * (weight[part] @ h), grid.block)
        among = np.empty((len(steps), scales.shape[1], scales.shape[1]), np.float32)
        for b in range(scales.shape[1]):
            inside, later = slice(b * grid.block, (b + 1) * grid.block), slice(b * grid.block, columns)
            pairs = _by_block((steps[:, inside] @ h[inside, later]) * steps[:, later], grid.block)
            among[:, b, b:] = among[:, b:, b] = pairs
        scales[part] = _solved(among.astype(np.float64), wanted.astype(np.float64), scales[part])
    if grid.scales.dtype == np.float16:
        scales = as_half(scales).astype(np.float16)
    return Blocks(Grid(grid.bits, grid.block, scales, grid.zeros), blocks.q)


def _by_block(array: np.ndarray, block: int) -> np.ndarray:
    """Sums over the columns of each block, ``[rows, blocks]``."""
    sums: np.ndarray = np.add.reduceat(array, np.arange(0, array.shape[1], block), axis=1)
    return sums


def _solved(among: np.ndarray, wanted: np.ndarray, before: np.ndarray) -> np.ndarray:
    """``among @ scales = wanted`` for each row; blocks of zeros keep their scale, and rows that go astray all of theirs."""
    places = np.arange(among.shape[1])
    row, empty = np.nonzero(among[:, places, places] <= 0)
    among[row, empty, empty], wanted[row, empty] = 1, before[row, empty]
    among[:, places, places] *= 1 + 1e-6
    found = np.linalg.solve(among, wanted[..., None])[..., 0]
    near = np.all((found > before / _FURTHEST) & (found < before * _FURTHEST), axis=1, keepdims=True)
    return np.where(near, found, before)


def bias_of(error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What a layer's outputs lack on average, float32 ``[out]``: ``error`` is the weight less what it became, ``[out, in]``."""
    return np.asarray(error @ mean, np.float32)
