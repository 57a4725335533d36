"""Slots as plain graph inputs, for runtimes that cannot override initializers (ONNX Runtime Web)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ...errors import SiteError


def plain_inputs(model: ir.Model, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Turn inputs with a default into inputs that every run must feed, in place; the numbers they defaulted to, by name.

    ``names`` are the slots, and whatever else of the graph a run may leave out. Afterwards none of them is an initializer,
    and nothing else of the graph has changed: same nodes, same weights. Raises :class:`SiteError` where one is not an input
    with a default.
    """
    graph = model.graph
    inputs = {value.name for value in graph.inputs}
    defaults: dict[str, np.ndarray] = {}
    for name in names:
        value = graph.initializers.get(name)
        if value is None or value.const_value is None or name not in inputs:
            raise SiteError(f"{name} is not a graph input with a default; was the graph edited by another tool?")
        defaults[name] = np.array(value.const_value.numpy(), copy=True)
    for name in defaults:
        value = graph.initializers.pop(name)
        value.const_value = None
    return defaults
