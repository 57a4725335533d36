"""Slots as plain graph inputs, for runtimes that cannot override initializers (ONNX Runtime Web)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...errors import SiteError
from .edit import EditPass


@dataclass
class PlainInputsResult(ir.passes.PassResult):
    """The numbers that the inputs defaulted to, by name."""

    defaults: Mapping[str, np.ndarray]


class PlainInputs(EditPass[PlainInputsResult]):
    """Turns inputs with a default into inputs that every run must feed.

    ``names`` are the slots, and whatever else of the graph a run may leave out. Afterwards none of them is an initializer,
    and nothing else of the graph has changed: same nodes, same weights. Raises :class:`SiteError` where one is not an input
    with a default.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def requires(self, model: ir.Model) -> None:
        """Every name is an input with a default."""
        inputs = {value.name for value in model.graph.inputs}
        for name in self.names:
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or name not in inputs:
                raise SiteError(f"{name} is not a graph input with a default; was the graph edited by another tool?")

    def call(self, model: ir.Model) -> PlainInputsResult:
        """Take the defaults away."""
        defaults: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(self.names):
            value = model.graph.initializers.pop(name)
            assert value.const_value is not None
            defaults[name] = np.array(value.const_value.numpy(), copy=True)
            value.const_value = None
        return PlainInputsResult(model, bool(defaults), defaults)
