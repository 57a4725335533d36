"""Weights in blocks of few bits, as MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph.bit_packing import pack

#: Columns that share a scale and a zero point.
BLOCK = 32
#: Bits for which ONNX Runtime has kernels.
BITS = (2, 4, 8)


@dataclass(frozen=True)
class Form:
    """How a weight is stored: bits of a number, and how many columns share a scale and a zero point.

    Scales are in float16 (see :func:`~edgepeft.quantize.grids.half_scales`), and kernels get them in float32. ``offsets`` says that
    each block has a float16 number too that is added to all of its own (:mod:`~edgepeft.quantize.stored_grid`).
    """

    bits: int = 4
    block: int = BLOCK
    offsets: bool = False

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes of a weight ``[rows, columns]`` in the file: numbers, scales, zero points."""
        blocks = -(-columns // self.block)
        scales = 2 * blocks * (2 if self.offsets else 1)
        return rows * (blocks * self.block * self.bits // 8 + scales + -(-blocks * self.bits // 8))

    def __str__(self) -> str:
        return f"{self.bits} bits in blocks of {self.block}{' with offsets' if self.offsets else ''}"


@dataclass(frozen=True)
class Grid:
    """The numbers that each block of a weight may take: ``(q - zero) * scale`` with ``q`` in 0 … 2^bits - 1.

    ``scales`` are float16 or float32 ``[rows, blocks]``; ``zeros`` uint8 of the same shape, or ``None`` for the middle of the
    range.
    """

    bits: int
    block: int
    scales: np.ndarray
    zeros: np.ndarray | None = None

    @property
    def top(self) -> int:
        """The largest ``q``."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a grid without any."""
        return 1 << (self.bits - 1)

    def rows(self, start: int, stop: int) -> Grid:
        """The grid of some rows."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return Grid(self.bits, self.block, self.scales[start:stop], zeros)

    def nearest(self, weight: np.ndarray) -> np.ndarray:
        """``q`` nearest to ``weight`` ``[rows, columns]``, uint8 of the same shape."""
        rows, columns = weight.shape
        found = np.empty((rows, columns), np.uint8)
        for b in range(self.scales.shape[1]):
            part = slice(b * self.block, min((b + 1) * self.block, columns))
            scale = self.scales[:, b, None].astype(np.float32)
            steps = weight[:, part] / np.where(scale == 0, 1, scale)
            zero = self.middle if self.zeros is None else self.zeros[:, b, None].astype(np.float32)
            found[:, part] = np.clip(np.rint(steps) + zero, 0, self.top)
        return found

    def numbers(self, q: np.ndarray) -> np.ndarray:
        """What ``q`` ``[rows, columns]`` stands for, float32."""
        columns = q.shape[1]
        zeros: np.ndarray | float = self.middle if self.zeros is None else _spread(self.zeros, self.block, columns)
        found: np.ndarray = (q.astype(np.float32) - zeros) * _spread(self.scales, self.block, columns)
        return found


@dataclass(frozen=True)
class Blocks:
    """A rounded weight: its grid, and ``q`` ``[rows, columns]`` in uint8."""

    grid: Grid
    q: np.ndarray

    def rows(self, start: int, stop: int) -> Blocks:
        """Some rows of the weight."""
        return Blocks(self.grid.rows(start, stop), self.q[start:stop])

    def numbers(self) -> np.ndarray:
        """The weight after rounding, float32 ``[rows, columns]``."""
        return self.grid.numbers(self.q)

    def packed(self) -> np.ndarray:
        """Bytes ``[rows, blocks, block * bits / 8]``, the first column in the lowest bits; a last block is filled up."""
        rows, columns = self.q.shape
        block, blocks = self.grid.block, self.grid.scales.shape[1]
        middle = self.grid.middle
        whole = np.pad(self.q, ((0, 0), (0, blocks * block - columns)), constant_values=middle)
        return pack(whole, self.grid.bits).reshape(rows, blocks, block * self.grid.bits // 8)

    def packed_zeros(self) -> np.ndarray | None:
        """Zero points ``[rows, bytes]``, each row filled up to whole bytes; ``None`` for a grid without any."""
        return None if self.grid.zeros is None else pack(self.grid.zeros, self.grid.bits)


def _spread(parts: np.ndarray, block: int, columns: int) -> np.ndarray:
    """One number a block ``[rows, blocks]`` for each of its columns, float32."""
    return np.repeat(parts.astype(np.float32), block, axis=1)[:, :columns]
