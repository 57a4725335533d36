"""A model's numbers as they are asked for: from their files, and rounded where a variant rounds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Numbers(Protocol):
    """A model's numbers, float32, by parameter and in PyTorch's layout."""

    def whole(self, name: str, /) -> np.ndarray:
        """A parameter."""

    def rows(self, name: str, rows: slice | np.ndarray, /) -> np.ndarray:
        """Some rows of a matrix."""


@dataclass(frozen=True)
class StoredNumbers:
    """A checkpoint's numbers as :class:`Numbers`, some of them rounded.

    ``arrays`` are in PyTorch's layout. ``rounded`` says what a linear map ``[out, in]`` of some rows becomes, by parameter;
    ``turned`` are those that PyTorch holds as ``[in, out]``.
    """

    arrays: Mapping[str, np.ndarray]
    widen: Callable[[np.ndarray], np.ndarray]
    rounded: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    def whole(self, name: str, /) -> np.ndarray:
        """A parameter."""
        numbers, rule = self.widen(self.arrays[name]), self.rounded.get(name)
        if rule is None:
            return numbers
        return np.ascontiguousarray(rule(np.ascontiguousarray(numbers.T)).T) if name in self.turned else rule(numbers)

    def rows(self, name: str, rows: slice | np.ndarray, /) -> np.ndarray:
        """Some rows of a matrix."""
        if name in self.turned:
            return self.whole(name)[rows]
        numbers, rule = self.widen(self.arrays[name][rows]), self.rounded.get(name)
        return numbers if rule is None else rule(numbers)
