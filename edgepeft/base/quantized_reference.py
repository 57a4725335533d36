"""PyTorch's side of a base that was quantized before it came here: the model with the numbers the graph holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..adapters.layout import as_held, as_linear
from ..graph.locate.by_content import Location, locate
from ..graph.locate.by_rounded_content import locate_quantized
from ..graph.nodes import is_quantized_linear
from ..graph.quantized_weights import Blocks, quantized_weights
from .markers import parameters_of
from .tied import untie


@dataclass(frozen=True)
class Found:
    """Where a graph holds a model's parameters, the parameters, those it holds rounded, and how each was told."""

    locations: Mapping[str, tuple[Location, ...]]
    weights: Mapping[str, np.ndarray]
    #: What the graph computes with, float32 as the module holds it, for parameters that are stored in blocks.
    rounded: Mapping[str, np.ndarray]
    #: Parameters told by content, by rounded content and by name.
    matched: Mapping[str, int]


def find_parameters(graph: ir.Model, model: Any) -> Found:
    """Find ``model``'s parameters in ``graph``: by content, by rounded content, else by name."""
    weights = as_linear(model, {name: array.copy() for name, array in parameters_of(model).items()})
    located = locate(graph, weights)
    told = Counter({"content": sum(bool(places) for places in located.values())})
    quantized = quantized_weights(graph)
    if quantized:
        match = locate_quantized(graph, weights)
        for name, places in match.locations.items():
            told[match.how[name]] += not located[name]
            located[name] += places
    locations, weights = untie(model, graph, located, weights)
    return Found(locations, weights, as_held(model, _rounded(quantized, locations)), dict(told))


def _rounded(quantized: Mapping[str, Blocks], locations: Mapping[str, tuple[Location, ...]]) -> dict[str, np.ndarray]:
    """The numbers behind every location in ``quantized``, each weight read once."""
    at: dict[str, list[tuple[str, Location]]] = {}
    for name, places in locations.items():
        for place in places if places and places[0].of is not None else places[:1]:
            if place.initializer in quantized:
                at.setdefault(place.initializer, []).append((name, place))
    numbers: dict[str, np.ndarray] = {}
    for initializer, users in at.items():
        array = quantized[initializer].read()
        for name, place in users:
            if place.of is None:
                numbers[name] = np.ascontiguousarray(place.read(array))
            else:
                numbers.setdefault(name, np.empty((place.of, array.shape[1]), np.float32))[place.rows] = place.read(
                    array
                )
    return numbers


@contextmanager
def computing_with(model: Any, numbers: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Let ``model`` compute with other ``numbers`` for some of its parameters; its own come back afterwards.

    A tied head and its embedding may get different ones.
    """
    kept = replace_parameters(model, numbers)
    try:
        yield
    finally:
        for (module, leaf), parameter in kept.items():
            module._parameters[leaf] = parameter


def replace_parameters(model: Any, numbers: Mapping[str, np.ndarray]) -> dict[tuple[Any, str], Any]:
    """Give ``model`` other ``numbers`` for some of its parameters; the parameters it had, by module and name."""
    import torch

    kept = {}
    for name, array in numbers.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        # PEFT stands its layers in front of the module that holds the base's numbers, at experts one in the other.
        while leaf not in module._parameters:
            module = module.original_module if hasattr(module, "original_module") else module.base_layer
        kept[module, leaf] = module._parameters[leaf]
        module._parameters[leaf] = torch.nn.Parameter(torch.from_numpy(array), requires_grad=False)
    return kept


@contextmanager
def exact_activations(graph: ir.Model) -> Iterator[None]:
    """Let kernels over weights in blocks compute in float32, as PyTorch does, while ``graph`` is checked.

    ``accuracy_level`` 4 lets them round activations to 8 bits, which moves a real model's logits by far more than any
    mistake worth finding; without it the graph must agree with PyTorch as closely as a float one.
    """
    kept = []
    for node in graph.graph:
        if is_quantized_linear(node) and "accuracy_level" in node.attributes:
            kept.append((node, node.attributes["accuracy_level"]))
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    try:
        yield
    finally:
        for node, attribute in kept:
            node.attributes["accuracy_level"] = attribute


def variant_of(graph: ir.Model) -> str:
    """What a graph is called by the bits that most of its weights have: ``fp32``, ``q4`` or ``int8``."""
    bits: Counter[int] = Counter()
    for weight in quantized_weights(graph).values():
        bits[weight.bits] += weight.rows * weight.columns
    if not bits:
        return "fp32"
    most = bits.most_common(1)[0][0]
    return "int8" if most == 8 else f"q{most}"
