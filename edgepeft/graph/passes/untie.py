"""Giving a tied head weights of its own, where an edit must reach one of the two and not the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..locate.by_content import Location
from ..nodes import linear_users
from .edit import EditPass, home_of

Locations = Mapping[str, tuple[Location, ...]]


@dataclass
class Untied(ir.passes.PassResult):
    """Where the parameters lie afterwards."""

    locations: dict[str, tuple[Location, ...]]


class Untie(EditPass[Untied]):
    """Gives each tied pair that holds one of ``parameters`` two initializers.

    ``tied`` maps a head's parameter to the embedding's. PEFT edits the module it names, never its tied twin.
    """

    def __init__(self, locations: Locations, tied: Mapping[str, str], parameters: Iterable[str]) -> None:
        self.locations = locations
        self.tied = tied
        self.parameters = frozenset(parameters)

    def call(self, model: ir.Model) -> Untied:
        """Store the head's numbers once more."""
        locations = dict(self.locations)
        modified = False
        for head, embedding in self.tied.items():
            shared = set(locations.get(head, ())) & set(locations.get(embedding, ()))
            if shared and self.parameters & {head, embedding}:
                (place,) = shared
                locations[head] = (_own_head(model.graph, head, place),)
                modified = True
        return Untied(model, modified, locations)


def _own_head(graph: ir.Graph, head: str, place: Location) -> Location:
    """An initializer of the head's own, which its nodes multiply by from now on."""
    value = graph.initializers[place.initializer]
    assert value.const_value is not None
    array = np.ascontiguousarray(value.const_value.numpy().T)
    own = ir.Value(name=head, shape=ir.Shape(array.shape), type=value.type, const_value=ir.tensor(array, name=head))
    graph.register_initializer(own)
    for node in linear_users(value):
        behind = node.inputs[1].producer() if node.inputs[1] is not None else None
        node.replace_input_with(1, own)
        if behind is not None and not behind.outputs[0].uses():
            home_of(behind).remove(behind, safe=True)
    return Location(head, transposed=True, offset=0, size=array.shape[1], packed=False)
