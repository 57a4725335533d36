"""What slot insertion returns."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..bundle.manifest import SlotTable


@dataclass(frozen=True)
class SlottedBase:
    """A graph with slots: ``table`` lists them, ``added_nodes`` is how many nodes they cost."""

    graph: ir.Model
    table: SlotTable
    added_nodes: int
