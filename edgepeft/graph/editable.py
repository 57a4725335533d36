"""What graph edits take and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ..adapters.edits import Adapter
from ..bundle.slots import SlotTable
from .locate.by_content import Location


class EditableBase(Protocol):
    """What an edit needs of a base; :class:`edgepeft.base.base.Base` has it."""

    @property
    def graph(self) -> ir.Model:
        """The base as ONNX, without slots."""

    @property
    def locations(self) -> Mapping[str, tuple[Location, ...]]:
        """Where in the graph each parameter lies."""

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The parameters by name, in PyTorch's layout."""

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parameters that the checkpoint does not hold."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Linear weights that are an embedding's too: the head's parameter → the embedding's."""

    @property
    def head(self) -> str | None:
        """The site that gives a language model's logits; slots reserved for adapters to come leave it out."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Labels of the base's head, where it classifies."""

    @property
    def head_widths(self) -> Mapping[str, int]:
        """How many labels a head has, by what the names of its parameters begin with; empty where nothing has labels."""

    @property
    def decoder(self) -> GraphPart | None:
        """The second graph of an encoder-decoder."""


@dataclass(frozen=True)
class GraphPart:
    """A further graph of a base, and where in it each parameter lies."""

    graph: ir.Model
    locations: Mapping[str, tuple[Location, ...]]


@dataclass(frozen=True)
class SlottedBase:
    """A graph with slots: ``table`` lists them, ``added_nodes`` is how many nodes they cost."""

    graph: ir.Model
    table: SlotTable
    added_nodes: int
    #: The second graph of an encoder-decoder; ``table`` holds its slots too.
    decoder: ir.Model | None = None


@dataclass(frozen=True)
class MergedBase:
    """A graph whose weights are merged with ``adapter``."""

    graph: ir.Model
    adapter: Adapter
    decoder: ir.Model | None = None
    #: Whether the adapter was traced unmerged instead of folded into weights.
    baked: bool = False
