"""Merging: an adapter's edits folded into the base's weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..adapters.edits import Adapter, Array, SiteEdit
from ..errors import AdapterMismatchError, SiteError, UnsupportedAdapterError
from .editable import EditableBase, MergedBase
from .locate.by_content import Location, float_initializers, shared
from .nodes import is_quantized
from .passes.untie import Untie
from .quantized_weights import quantized_weights


def merged_weight(weight: Array, edit: SiteEdit, *, embedding: bool = False) -> Array:
    """``W`` (``[out, in]``; an embedding is ``[num, dim]``) with ``edit`` folded in: ``g * (W + (A B)^T) * l``.

    A convolution's weight counts as the matrix ``[out, in · kernel]``.
    """
    if weight.ndim > 2:
        return merged_weight(weight.reshape(len(weight), -1), edit).reshape(weight.shape)
    wide = weight.astype(np.float64)
    if edit.low_rank is not None:
        delta = edit.low_rank.a.astype(np.float64) @ edit.low_rank.b.astype(np.float64)
        wide = wide + (delta if embedding else delta.T)
    if edit.out_gain is not None:
        wide = wide * (edit.out_gain.gain[None, :] if embedding else edit.out_gain.gain[:, None])
    if edit.in_gain is not None:
        wide = wide * edit.in_gain.gain[None, :]
    return wide.astype(np.float32)


def _embeds(graph: ir.Model, locations: tuple[Location, ...]) -> bool:
    users = [node for loc in locations for node, _ in graph.graph.initializers[loc.initializer].uses()]
    return bool(users) and all(node.op_type == "Gather" for node in users)


def merge_graph(base: EditableBase, adapter: Adapter) -> MergedBase:
    """A copy of the base's graph whose weights are merged with ``adapter``; no slots, no extra nodes.

    Raises :class:`SiteError` where a parameter is not in the graph or stands in for several, and
    :class:`AdapterMismatchError` where sizes differ or the adapter lacks a fresh parameter, and
    :class:`UnsupportedAdapterError` for states before the sequence.
    """
    if adapter.prefix is not None:
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} ({adapter.method}) puts states before the sequence, which no change of weights "
            "expresses: it cannot be merged"
        )
    graph, locations, weights, fresh = base.graph, base.locations, base.weights, base.fresh
    unfilled = [name for name in fresh if name not in adapter.overrides]
    if unfilled:
        raise AdapterMismatchError(
            f"the base checkpoint does not hold {unfilled[0]} and adapter {adapter.name!r} does not bring it: with PEFT it is "
            "random at every load. Train with it in modules_to_save."
        )
    model = graph.clone()
    touched = (*(f"{site}.weight" for site in adapter.sites), *adapter.overrides)
    locations = Untie(locations, base.tied, touched)(model).locations
    arrays = float_initializers(model, also={place.initializer for places in locations.values() for place in places})
    changed: dict[str, np.ndarray] = {}

    def put(parameter: str, tensor: Array) -> None:
        places = locations.get(parameter, ())
        if not places:
            raise SiteError(f"adapter {adapter.name!r}: parameter {parameter} was not found in the graph by content")
        also = shared(locations, parameter)
        if also:
            raise SiteError(
                f"adapter {adapter.name!r}: {parameter} holds the same numbers as {', '.join(also)}; which is which cannot be told"
            )
        if any(is_quantized(model.graph.initializers[location.initializer]) for location in places):
            raise SiteError(
                f"adapter {adapter.name!r}: {parameter} is stored in blocks of few bits in this graph, and merging would "
                f"round the adapter away{_rounded_away(model, locations, adapter)}; export with --mode swap, which keeps it in "
                "fp32 beside this base, or merge into a base in fp32"
            )
        for location in places:
            array = changed.get(location.initializer)
            if array is None:
                array = arrays[location.initializer].copy()
            if tensor.shape != weights[parameter].shape:
                if location.packed or location.of is not None:
                    raise SiteError(f"adapter {adapter.name!r}: {parameter} changes size inside a packed matrix")
                array = tensor.T.copy() if location.transposed else tensor.copy()
            else:
                location.write(array, tensor)
            changed[location.initializer] = array

    for site, edit in adapter.sites.items():
        name = f"{site}.weight"
        if name not in weights:
            raise SiteError(
                f"adapter {adapter.name!r}: site {site} does not exist in the base. The adapter was trained on another "
                "architecture; merge it into the base that its config names."
            )
        weight = weights[name]
        embedding = _embeds(model, locations.get(name, ()))
        sizes = (edit.in_features, edit.out_features)
        matrix = (len(weight), int(weight[0].size))
        expected = matrix if embedding else matrix[::-1]
        if edit.in_features is not None and weight.ndim > 2 and edit.in_features != matrix[1]:
            raise SiteError(
                f"adapter {adapter.name!r}, site {site}: a grouped convolution, whose low-rank change mixes its groups, so no "
                "weight of its shape holds it; ship it with --mode swap"
            )
        if any(found is not None and found != size for found, size in zip(sizes, expected, strict=True)):
            raise AdapterMismatchError(
                f"adapter {adapter.name!r}, site {site}: sizes in×out {sizes}, the base has {expected}. It was made for "
                "another base."
            )
        put(name, merged_weight(weight, edit, embedding=embedding))
    for parameter, override in adapter.overrides.items():
        put(parameter, override.tensor)
    for name, array in changed.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        value.shape = ir.Shape(array.shape)
    _resize_logits(model, adapter, weights)
    return MergedBase(graph=model, adapter=adapter)


def _rounded_away(graph: ir.Model, locations: Mapping[str, tuple[Location, ...]], adapter: Adapter) -> str:
    """How much of ``adapter`` would be left by the blocks that hold its sites' weights, in words; empty without any."""
    weights = quantized_weights(graph)
    wanted = lost = 0.0
    unmoved = sites = 0
    for site, edit in adapter.sites.items():
        for place in locations.get(f"{site}.weight", ())[:1]:
            blocks = weights.get(place.initializer)
            if blocks is None or place.of is not None:
                continue
            held = blocks.read()
            weight = place.read(held).copy()
            merged = merged_weight(weight, edit)
            place.write(held, merged)
            kept = place.read(blocks.nearest(held)) - weight
            change = (merged - weight).astype(np.float64)
            wanted += float(np.square(change).sum())
            lost += float(np.square(kept - change).sum())
            unmoved += not np.abs(kept).max() > np.abs(weight).max() * 1e-6
            sites += 1
    if not wanted:
        return ""
    none = f", {unmoved} of its {sites} sites would not change at all" if unmoved else ""
    return f" (its change would arrive with a relative error of {(lost / wanted) ** 0.5:.2f}{none})"


def _resize_logits(model: ir.Model, adapter: Adapter, weights: Mapping[str, np.ndarray]) -> None:
    """A head of another width changes the declared shape of the logits, and of what was inferred on the way there."""
    resized = {
        weights[name].shape[0]: override.tensor.shape[0]
        for name, override in adapter.overrides.items()
        if override.tensor.shape != weights[name].shape
    }
    if not resized:
        return
    (old, new), *more = resized.items()
    if more:
        raise SiteError(f"adapter {adapter.name!r} changes the sizes of several layers; only its head may differ")
    outputs = set(map(id, model.graph.outputs))
    for node in model.graph:
        for output in node.outputs:
            if output.shape is None or len(output.shape) == 0 or output.shape[-1] != old:
                continue
            dims = list(output.shape)
            output.shape = ir.Shape([*dims[:-1], new]) if id(output) in outputs else None
