"""Parameters with several names: a head that is tied to the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.locate.by_content import Location
from ..graph.nodes import linear_users


def tied_linears(model: Any) -> dict[str, str]:
    """For each linear weight that is an embedding's too (a fill-mask decoder): its name → the embedding's name."""
    import torch

    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        primary = first.setdefault(id(parameter), name)
        modules = [model.get_submodule(each.rpartition(".")[0]) for each in (primary, name)]
        if isinstance(modules[0], torch.nn.Embedding) and isinstance(modules[1], torch.nn.Linear):
            tied[name] = primary
    return tied


def output_head(model: Any) -> str | None:
    """The module path of the layer that gives a language model's logits."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def untie(
    model: Any, graph: ir.Model, located: Mapping[str, tuple[Location, ...]], weights: Mapping[str, np.ndarray]
) -> tuple[dict[str, tuple[Location, ...]], dict[str, np.ndarray]]:
    """Locations and weights in which a tied head has an entry of its own.

    PEFT edits the module it names, never its tied twin, so the copy behind the head's MatMul must not pass for the
    embedding's. Where the graph holds one copy for both, the two entries share it and an edit of either is refused.
    """
    locations, named = dict(located), dict(weights)
    for head, embedding in tied_linears(model).items():
        everywhere = located[embedding]
        used = [(place, linear_users(graph.graph.initializers[place.initializer])) for place in everywhere]
        locations[head] = tuple(place for place, linear in used if linear)
        locations[embedding] = tuple(
            place
            for place, linear in used
            if len(linear) < len(list(graph.graph.initializers[place.initializer].uses()))
        )
        named[head] = weights[embedding]
    return locations, named
