"""The 4-bit grid that weights already lie on, where they were in few bits before: rounding to it changes nothing.

Weights out of a GGUF file, of AWQ or GPTQ, or of a model that was trained for 4 bits are float numbers of few levels in each
block. A grid of one's own would round them a second time. Where zero is on the grid (Q4_0, AWQ, GPTQ) they are stored as they are.
Where it is not (Q4_1, Q4_K: a scale and a smallest number in floats) each block is off a whole zero point by a constant, its
offset: what that adds to an output is the offset times the sum of the inputs that meet the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grids import as_half, half_scales
from .packing import Blocks, Form, Grid

#: How far a number may be from its level, as a share of a step: float32 leaves 1e-6, bfloat16 up to 0.05.
NEAR = 1 / 16
#: Rows that are looked at first: most matrices lie on no grid, which eight rows tell.
_SAMPLE = 8
_ROWS = 2048


@dataclass(frozen=True)
class StoredGrid:
    """A weight as numbers on the grid that it lies on, and what each block adds to all of its numbers.

    ``offsets`` are float32 ``[rows, blocks]``, ``None`` where zero is on the grid of every block.
    """

    blocks: Blocks
    offsets: np.ndarray | None

    def numbers(self) -> np.ndarray:
        """The weight, float32 ``[rows, columns]``."""
        found = self.blocks.numbers()
        if self.offsets is not None:
            found += np.repeat(self.offsets, self.blocks.grid.block, axis=1)[:, : found.shape[1]]
        return found


def stored_grid(weight: np.ndarray, form: Form) -> StoredGrid | None:
    """The grid of a form that a weight lies on; ``None`` where there is none.

    Args:
        weight: float32 ``[rows, columns]``.
        form: Bits, and the columns of a block.

    Returns:
        Numbers on the grid, with scales in float16 where that holds them. Nothing is within ``NEAR`` of few levels by chance: a
        block has 32 numbers.

    Example:
        >>> levels = np.random.default_rng(0).integers(0, 16, (4, 64))
        >>> found = stored_grid((0.5 * levels - 3.2).astype(np.float32), Form(4, 32))
        >>> found is not None and bool(np.allclose(found.numbers(), 0.5 * levels - 3.2, atol=1e-3))
        True
    """
    rows, columns = weight.shape
    if columns % form.block or form.bits > 4:  # 255 levels are near to anything
        return None
    first = _Found.of(weight[np.unique(np.linspace(0, rows - 1, _SAMPLE).astype(int))], form, whole=True)
    if first is None:
        return None
    whole = bool(np.mean(first.whole) > 0.5)
    parts = [_Found.of(weight[start : start + _ROWS], form, whole=whole) for start in range(0, rows, _ROWS)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    half = half_scales(weight, form.bits, form.block)
    scales = np.concatenate([part.scales for part in found])
    scales = as_half(scales) if half else scales
    zeros = np.concatenate([part.zeros for part in found])
    blocks = Blocks(
        Grid(form.bits, form.block, scales.astype(np.float16 if half else np.float32), zeros),
        np.concatenate([part.q for part in found]),
    )
    left = (weight - blocks.numbers()).reshape(rows, -1, form.block)
    offsets = left.mean(2, dtype=np.float32)
    if not np.all(np.abs(left - offsets[..., None]) <= 2 * NEAR * scales[..., None]):
        return None  # a scale that float16 does not hold
    on_grid = bool(np.all(np.abs(offsets) <= NEAR * scales))
    if on_grid:
        return StoredGrid(blocks, None)
    return StoredGrid(blocks, offsets) if half else None  # float16 would not hold the offsets either


@dataclass(frozen=True)
class _Found:
    """Blocks that lie on grids: scales and zero points ``[rows, blocks]``, levels ``[rows, columns]``, and whose zero is one."""

    scales: np.ndarray
    zeros: np.ndarray
    q: np.ndarray
    whole: np.ndarray

    @staticmethod
    def of(weight: np.ndarray, form: Form, *, whole: bool) -> _Found | None:
        """Grids of all blocks, or ``None``. With ``whole`` a coarser grid is looked for where zero is not on the first one."""
        rows, columns = weight.shape
        top = (1 << form.bits) - 1
        blocks = weight.reshape(-1, form.block).astype(np.float32)
        low, span = blocks.min(1), np.ptp(blocks, axis=1)
        levels = np.zeros(len(blocks), np.uint8)
        waiting = np.flatnonzero(span > 0)
        for count in range(top, 0, -1):  # of a block whose ends are both taken, the first is the one
            fits = _near(blocks[waiting], low[waiting], span[waiting], count)
            levels[waiting[fits]] = count
            waiting = waiting[~fits]
            if not len(waiting):
                break
        if len(waiting):
            return None
        good = _zero_on_grid(low, span, levels, top)
        if whole:
            for count in range(top - 1, 0, -1):
                doubtful = np.flatnonzero(~good & (levels > count))
                fits = _near(blocks[doubtful], low[doubtful], span[doubtful], count)
                places = doubtful[fits]
                better = places[_zero_on_grid(low[places], span[places], np.full(len(places), count), top)]
                levels[better], good[better] = count, True
        return _Found._on(blocks, low, span, levels, good, top, (rows, columns))

    @staticmethod
    def _on(
        blocks: np.ndarray, low: np.ndarray, span: np.ndarray, levels: np.ndarray, good: np.ndarray, top: int,
        shape: tuple[int, int],
    ) -> _Found:  # fmt: skip
        # A block of one number: that is its scale, or nothing is.
        flat = levels == 0
        scale = np.where(flat, np.where(low == 0, 1, np.abs(low)), span / np.maximum(levels, 1)).astype(np.float32)
        steps = np.rint((blocks - low[:, None]) / scale[:, None])
        # Scales once more by least squares: the ends of a block are as inexact as all else.
        moved, middle = steps - steps.mean(1, keepdims=True), blocks - blocks.mean(1, keepdims=True)
        norm = np.square(moved).sum(1)
        scale = np.where(norm > 0, (moved * middle).sum(1) / np.where(norm > 0, norm, 1), scale).astype(np.float32)
        begin = np.clip(np.rint(low / scale), 0, top - levels)
        zeros = np.clip(begin - np.rint(low / scale), 0, top)
        rows, columns = shape
        q = (steps + begin[:, None]).astype(np.uint8).reshape(rows, columns)
        return _Found(scale.reshape(rows, -1), zeros.astype(np.uint8).reshape(rows, -1), q, good)


def _near(blocks: np.ndarray, low: np.ndarray, span: np.ndarray, count: int) -> np.ndarray:
    """Whether each block's numbers are all near one of ``count + 1`` levels from its smallest to its largest."""
    place = (blocks - low[:, None]) * (count / span)[:, None]
    near: np.ndarray = np.abs(place - np.rint(place)).max(axis=1, initial=0) <= NEAR
    return near


def _zero_on_grid(low: np.ndarray, span: np.ndarray, levels: np.ndarray, top: int) -> np.ndarray:
    """Whether zero is one of the ``top + 1`` levels around each block, up to ``NEAR``."""
    first = low * (levels / np.where(span > 0, span, 1))
    inside = (-np.rint(first) <= top) & (np.rint(first) + levels <= top)
    found: np.ndarray = (span == 0) | (inside & (np.abs(first - np.rint(first)) <= NEAR))
    return found
