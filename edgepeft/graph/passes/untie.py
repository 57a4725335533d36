"""Giving a tied head weights of its own, where an edit must reach one of the two and not the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from ..locate.by_content import Location
from ..nodes import linear_users


def separate(
    graph: ir.Model, locations: Mapping[str, tuple[Location, ...]], tied: Mapping[str, str], parameters: Iterable[str]
) -> dict[str, tuple[Location, ...]]:
    """Locations after each tied pair that holds one of ``parameters`` got two initializers in ``graph``.

    ``tied`` maps a head's parameter to the embedding's. PEFT edits the module it names, never its tied twin.
    """
    wanted = set(parameters)
    found = dict(locations)
    for head, embedding in tied.items():
        shared = set(found.get(head, ())) & set(found.get(embedding, ()))
        if not shared or not wanted & {head, embedding}:
            continue
        (place,) = shared
        value = graph.graph.initializers[place.initializer]
        assert value.const_value is not None
        array = np.ascontiguousarray(value.const_value.numpy().T)
        own = ir.Value(name=head, shape=ir.Shape(array.shape), type=value.type, const_value=ir.tensor(array, name=head))
        graph.graph.register_initializer(own)
        for node in linear_users(value):
            behind = node.inputs[1].producer() if node.inputs[1] is not None else None
            node.replace_input_with(1, own)
            if behind is not None and not behind.outputs[0].uses():
                graph.graph.remove(behind, safe=True)
        found[head] = (Location(head, transposed=True, offset=0, size=array.shape[1], packed=False),)
    return found
