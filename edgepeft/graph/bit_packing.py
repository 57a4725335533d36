"""Numbers of 2, 4 or 8 bits in bytes, the first in the lowest bits: as MatMulNBits and GatherBlockQuantized store them."""

from __future__ import annotations

import numpy as np


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    """Numbers ``[rows, n]`` below ``2^bits`` in bytes ``[rows, ceil(n * bits / 8)]``."""
    each = 8 // bits
    if each == 1:
        return np.ascontiguousarray(q, np.uint8)
    rows, count = q.shape
    whole = np.pad(q, ((0, 0), (0, -count % each))).reshape(rows, -1, each)
    packed = np.zeros(whole.shape[:2], np.uint8)
    for place in range(each):
        packed |= (whole[:, :, place] << (place * bits)).astype(np.uint8)
    return packed


def unpack(packed: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """uint8 ``[rows, numbers]`` out of bytes that hold ``8 / bits`` numbers each; what fills up a row's last byte stays."""
    packed = packed.reshape(rows, -1)
    if bits == 8:
        return packed
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(rows, -1)
