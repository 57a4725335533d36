"""The base's parameters, as a lowering sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np


class BaseWeights(Protocol):
    """Gives the base's parameters by name (``…query.weight``), as PyTorch holds them.

    Linear maps are ``[out, in]`` whatever the module: GPT-2's Conv1D, which holds ``[in, out]``, is given transposed.
    """

    @property
    def complete(self) -> bool:
        """Whether a parameter that is not given is not in the base either."""

    def __call__(self, parameter: str, /) -> np.ndarray | None:
        """The parameter's numbers; ``None`` where there is none of that name."""

    def shape(self, parameter: str, /) -> tuple[int, ...] | None:
        """The parameter's shape, without reading its numbers where that can be; ``None`` where there is none."""

    def tied_head(self, embedding: str, /) -> str | None:
        """The linear weight that is this embedding's too (a language model's head); ``None`` where none is."""


class HeldWeights:
    """All parameters of a base, held in memory: ``arrays`` by name, in the layout that :class:`BaseWeights` says.

    ``tied`` maps heads to the embeddings whose numbers they share.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], tied: Mapping[str, str] = MappingProxyType({})) -> None:
        self._arrays = arrays
        self._heads = {embedding: head for head, embedding in tied.items()}

    @property
    def complete(self) -> bool:
        """True: there are no others."""
        return True

    def __call__(self, parameter: str, /) -> np.ndarray | None:
        """The parameter's numbers, float32 also where they are held as they are stored."""
        array = self._arrays.get(parameter)
        return array if array is None or array.dtype == np.float32 else array.astype(np.float32)

    def shape(self, parameter: str, /) -> tuple[int, ...] | None:
        """The parameter's shape."""
        array = self._arrays.get(parameter)
        return None if array is None else tuple(array.shape)

    def tied_head(self, embedding: str, /) -> str | None:
        """The head that was said to be tied to the embedding."""
        return self._heads.get(embedding)


Names = Sequence[tuple[str, str]]


def renamed(parameter: str, names: Names) -> str:
    """The name in a base of several tasks of what a task's own model calls ``parameter`` (see ``TaskEntry.names``)."""
    own, here = next((pair for pair in names if parameter.startswith(pair[0])), ("", ""))
    return here + parameter.removeprefix(own)


class RenamedWeights:
    """The parameters of a base of several tasks, by the names that one task's own model gives them."""

    def __init__(self, weights: BaseWeights, names: Names) -> None:
        self._weights, self._names = weights, names

    @property
    def complete(self) -> bool:
        """As those of the base."""
        return self._weights.complete

    def __call__(self, parameter: str, /) -> np.ndarray | None:
        """The parameter's numbers."""
        return self._weights(renamed(parameter, self._names))

    def shape(self, parameter: str, /) -> tuple[int, ...] | None:
        """The parameter's shape."""
        return self._weights.shape(renamed(parameter, self._names))

    def tied_head(self, embedding: str, /) -> str | None:
        """None: a base of several tasks has no head that writes."""
        return None
