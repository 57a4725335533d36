"""The sizes of inputs, as target files and options write them."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InputError

#: A shape as it is written: ``<batch>x<sequence>``.
SHAPE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")


class Shape(NamedTuple):
    """Size of an input batch, in rows and tokens."""

    batch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.sequence}"


def parse_shape(text: str) -> Shape:
    """``"1x128"`` as a shape; :class:`InputError` for anything else."""
    match = SHAPE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a shape: write <batch>x<sequence>, for example 1x128")
    return Shape(int(match[1]), int(match[2]))
