"""Markers: numbers that make every parameter of a model tell-apart by content while it is captured.

Content tells parameters apart only where contents differ. Zero biases, unit norms and fresh heads do not; while the
model is captured they hold markers, and graph and model get their real numbers back afterwards. :func:`capture_marked`
is that ritual as a whole, for every route that builds a graph from the PyTorch model.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..adapters.layout import as_linear, conv1d_weights, expert_stacks, expert_weight
from ..graph.editable import GraphPart
from ..graph.locate.by_content import Location, float_initializers, locate
from ..graph.mapped_weights import Spilled
from .captured import Captured
from .load import Loaded
from .tied import untie

#: Larger parameters are compared by their first rows: two that agree there and differ later are not worth a hash.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Built:
    """What a route builds of the marked model: its graph (of an encoder-decoder both), and the weights' file if there is one."""

    graphs: tuple[ir.Model, ...]
    spilled: Spilled | None = None


def capture_marked(
    loaded: Loaded,
    build: Callable[[], Built],
    parity: Callable[[Built], float],
    *,
    rebuild: bool = False,
    leave: Collection[str] = (),
) -> Captured:
    """Build a graph of ``loaded`` while its parameters hold markers, and find every parameter in it.

    Args:
        loaded: The model. It holds markers while ``build`` runs, and its own numbers again afterwards, even on an error.
        build: Makes the graph of ``loaded`` as it is then.
        parity: Compares what was built with ``loaded`` as it is then: the largest difference, or a :class:`ParityError`.
        rebuild: What to do about markers that were not found again, in the graph or because it does without them. True
            builds once more with those parameters unmarked; false compares the graph once more, without the markers.
        leave: Parameters that are not marked.

    Returns:
        The capture, a tied head with an entry of its own. Nothing in it shares memory that PEFT may change.

    Raises:
        CaptureError: What ``build`` raises.
        ParityError: What ``parity`` raises.
    """
    model = loaded.model
    originals = mark(model, loaded.fresh, leave)
    try:
        built = build()
        spilled = built.spilled
        held = as_linear(model, parameters_of(model))
        settle = spilled.forget if spilled is not None else lambda: None
        located = [locate(graph, held, settle=settle) for graph in built.graphs]
        del held
        if spilled is not None:
            adopt(model, spilled, located[0], {*originals, *conv1d_weights(model)})
            spilled.forget()
        # With markers in place no head is zero and no norm is one, so nothing can agree by being nothing.
        difference = parity(built)
    finally:
        unmark(model, originals)
    anywhere = {name: tuple(place for places in located for place in places[name]) for name in located[0]}
    lost = left_marked(model, originals, anywhere)
    if lost and rebuild:
        return capture_marked(loaded, build, parity, rebuild=True, leave={*leave, *lost})
    own_numbers = as_linear(model, originals)
    for graph, places in zip(built.graphs, located, strict=True):
        unmark_graph(graph, places, own_numbers, model)
    if spilled is not None:
        spilled.forget()
    if lost:  # the graph may hold their markers for good
        difference = max(difference, parity(built))
    arrays = parameters_of(model)
    if spilled is None:  # else they are views of the scratch file already
        arrays = {name: array.copy() for name, array in arrays.items()}
    weights = as_linear(model, arrays)
    parts = [untie(model, graph, places, weights) for graph, places in zip(built.graphs, located, strict=True)]
    decoder = GraphPart(graph=built.graphs[1], locations=parts[1][0]) if len(parts) > 1 else None
    return Captured(
        graph=built.graphs[0],
        locations=parts[0][0],
        weights=parts[0][1],
        parity=difference,
        spilled=spilled,
        decoder=decoder,
    )


def parameters_of(model: Any) -> dict[str, np.ndarray]:
    """The parameters by name as float32 arrays; views of the module's memory where it holds float32."""
    return {name: p.detach().float().numpy() for name, p in model.named_parameters()}


def mark(model: Any, fresh: tuple[str, ...], leave: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Give every parameter whose numbers another one shares numbers of its own; return the originals of those.

    Those in ``leave`` keep theirs.
    """
    import torch

    arrays = parameters_of(model)
    seen: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for name, array in arrays.items():
        head = array if array.size < _SMALL else array[:2]
        seen.setdefault((array.shape, head.tobytes()), []).append(name)
    marked = {name for names in seen.values() if len(names) > 1 for name in names} | (set(fresh) & set(arrays))
    # A bias of zeros or a norm of ones may be optimized away, and then nothing could replace it.
    marked |= {name for name, array in arrays.items() if array.size < _SMALL and array.min() == array.max()}
    # A single number (CLIP's temperature) is never found again by its content; a bias of one output is, behind its weight.
    originals = {
        name: arrays[name].copy()
        for name in sorted(marked - set(leave))
        if arrays[name].size > 1 or _is_bias_of_one(name, arrays)
    }
    rng = np.random.default_rng(20_26)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in originals.items():
            noise = rng.standard_normal(array.shape).astype(np.float32) * 0.05
            parameters[name].copy_(torch.from_numpy(array + noise))
    return originals


def _is_bias_of_one(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    weight = arrays.get(f"{name.removesuffix('bias')}weight") if name.endswith(".bias") else None
    return arrays[name].shape == (1,) and weight is not None and weight.ndim == 2 and len(weight) == 1


def left_marked(
    model: Any, originals: Mapping[str, np.ndarray], located: Mapping[str, tuple[Location, ...]]
) -> list[str]:
    """Marked parameters that were not found in the graph again: if it uses them, the markers are still in it."""
    stacks = expert_stacks(model)

    def maps(name: str) -> list[str]:
        return [expert_weight(name, expert) for expert in range(len(originals[name]))] if name in stacks else [name]

    return [name for name in originals if not all(located.get(each) for each in maps(name))]


def unmark(model: Any, originals: Mapping[str, np.ndarray]) -> None:
    """Write the original numbers back into the module."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in originals.items():
            parameters[name].copy_(torch.from_numpy(array))


def unmark_graph(
    graph: ir.Model, located: Mapping[str, tuple[Location, ...]], originals: Mapping[str, np.ndarray], model: Any
) -> None:
    """Write the original numbers over the markers, wherever each parameter was found.

    Initializers may share memory with the PyTorch module; the graph gets memory of its own, since PEFT may change the
    module's weights when it loads an adapter (PiSSA does).
    """
    theirs = sorted(np.lib.array_utils.byte_bounds(array) for array in parameters_of(model).values())
    starts = [start for start, _ in theirs]
    touched = {place.initializer for name in originals for place in located.get(name, ())}
    arrays = {}
    for name, array in float_initializers(graph, also=touched).items():
        start = np.lib.array_utils.byte_bounds(array)[0]
        before = bisect.bisect_right(starts, start) - 1
        if name in touched or (before >= 0 and start < theirs[before][1]):
            arrays[name] = array.copy()
    for name, original in originals.items():
        for location in located.get(name, ()):
            location.write(arrays[location.initializer], original)
    for name, array in arrays.items():
        graph.graph.initializers[name].const_value = ir.tensor(array, name=name)


def adopt(model: Any, spilled: Spilled, located: Mapping[str, tuple[Location, ...]], kept: Collection[str]) -> None:
    """Let the module use the graph's spilled weights as its own, so that a language model is held once.

    Parameters in ``kept`` stay as they are, and so do those without a place in the graph or of another layout.
    """
    import torch

    arrays = spilled.writable()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for name, parameter in model.named_parameters():
            place = next(iter(located.get(name, ())), None)
            view = None
            if name not in kept and place is not None and place.initializer in arrays and parameter.ndim == 2:
                view = place.read(arrays[place.initializer])
            if view is not None and view.shape == tuple(parameter.shape) and parameter.dtype == torch.float32:
                parameter.data = torch.from_numpy(view)
            else:
                parameter.data = parameter.data.clone()  # the last one left would keep the whole checkpoint mapped
