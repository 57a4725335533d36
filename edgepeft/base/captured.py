"""What a capture is: the base's graph and where its parameters are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph.editable import GraphPart
from ..graph.locate.by_content import Location
from ..graph.mapped_weights import Spilled


@dataclass(frozen=True)
class Captured:
    """A graph, where in it each parameter lies, the parameters, and the largest difference from PyTorch.

    ``variant`` is the precision the graph has; ``matched`` counts the parameters told by each kind of evidence.
    """

    graph: ir.Model
    locations: Mapping[str, tuple[Location, ...]]
    weights: Mapping[str, np.ndarray]
    parity: float
    #: Where the graph's weights lie in a file and not in memory.
    spilled: Spilled | None = None
    variant: str = "fp32"
    matched: Mapping[str, int] = field(default_factory=dict)
    #: The second graph of an encoder-decoder.
    decoder: GraphPart | None = None
