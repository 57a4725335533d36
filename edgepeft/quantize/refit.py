"""An adapter's second factors solved for again, so that it fits the rounded base that it runs on.

Beside every site the fp32 base with the adapter says what should come out, and the rounded base what does come out without the
adapter. What lacks is put into ``B`` by ridge least squares on activations, site by site in the order of the network: later
sites see what earlier ones left. Where a site's output is added to a residual stream, what the stream itself lacks is part of
what is wanted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle.slots import LinearSlot, SlotTable
from ..errors import BundleError
from ..graph.segments import Segment, values_read, write_segment
from .moments import Feeds

#: Added to the diagonal of the normal equations, as a share of its mean: it draws each ``B`` to what it was.
RIDGE = 0.01
#: Operators that add their first two inputs.
_SUMS = {"Add", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}
_VIEWS = {"Squeeze", "Unsqueeze", "Reshape"}


@dataclass(frozen=True)
class _Site:
    """Where an adapter's change is added to a linear layer: names of values that both graphs have."""

    slot: LinearSlot
    #: What the layer reads, what the first factor makes of it ``[…, rank]``, what the base gives, and the sum of both.
    read: str
    inner: str
    base: str
    total: str
    #: What the sum is added to, where it goes into a residual stream alone.
    stream: str | None = None


def refit(
    source: Path,
    rounded: Path,
    slots: SlotTable,
    tensors: Mapping[str, np.ndarray],
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    *,
    ridge: float = RIDGE,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, np.ndarray]:
    """Solve for an adapter's second factors on a rounded graph.

    Args:
        source: The fp32 graph, its weights beside it.
        rounded: The same graph with rounded weights, its weights beside it.
        slots: The bundle's slots.
        tensors: The adapter's tensors by slot, float32.
        batches: Inputs of the graphs, without slots; every row counts alike, so there is no padding.
        open_session: Opens a graph with ONNX Runtime.
        ridge: Share of the mean of the diagonal that is added to it.
        progress: Is called with the number of steps done, and of all.

    Returns:
        The second factors that changed, by the name of their tensor, in the shape they had.

    Raises:
        BundleError: An activation is not finite.
    """
    one, other = ir.load(source), ir.load(rounded)
    filled = [slot for slot in slots.linear if slot.b in tensors and tensors[slot.b].shape[1] > 0]
    sites = _sites(other.graph, filled)
    known = {site.slot.b for site in _sites(one.graph, filled)}
    sites = [site for site in sites if site.slot.b in known]
    current = {name: np.array(array, np.float32) for name, array in tensors.items()}
    fixed = [{**_defaults(one.graph, slots), **batch, **tensors} for batch in batches]
    moving = [{**_defaults(other.graph, slots), **batch} for batch in batches]
    groups = list(_together(other.graph, sites))
    wanted = _Steps(
        one, source, fixed, [_unique(n for s in g for n in (s.total, s.stream)) for g in groups], open_session
    )
    found = _Steps(
        other, rounded, moving, [_unique(n for s in g for n in (s.read, s.inner, s.base, s.stream)) for g in groups],
        open_session,
    )  # fmt: skip
    changed: dict[str, np.ndarray] = {}
    for number, group in enumerate(groups):
        targets = list(wanted.run({}))
        givens = list(found.run(current))
        for site in group:
            changed[site.slot.b] = current[site.slot.b] = _solved(site, current[site.slot.b], targets, givens, ridge)
        progress(number + 1, len(groups))
    return changed


def _unique(names: Iterator[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _defaults(graph: ir.Graph, slots: SlotTable) -> dict[str, np.ndarray]:
    """The base's own numbers for its slots."""
    found = {}
    for name in slots.tensors():
        value = graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            found[name] = value.const_value.numpy()
    return found


def _sites(graph: ir.Graph, filled: Sequence[LinearSlot]) -> list[_Site]:
    """The sites of slots in the order of the graph; slots whose factors are read at several places are left out."""
    place = {node: number for number, node in enumerate(graph)}
    sites: list[tuple[int, _Site]] = []
    for slot in filled:
        inner, outer = (_only_user(graph.initializers.get(name)) for name in (slot.a, slot.b))
        if inner is None or outer is None or {inner[0].op_type, outer[0].op_type} != {"MatMul"}:
            continue
        delta = outer[0].outputs[0]
        user = _only_user(delta)
        while user is not None and user[0].op_type in _VIEWS:
            delta = user[0].outputs[0]
            user = _only_user(delta)
        if user is None or user[0].op_type != "Add" or user[0] not in place:
            continue
        total = user[0].outputs[0]
        base, own = user[0].inputs[1 - user[1]], inner[0].inputs[0]
        assert base is not None
        assert own is not None
        read, given, lacking, whole = (v.name or "" for v in (own, inner[0].outputs[0], base, total))
        sites.append((place[user[0]], _Site(slot, read, given, lacking, whole, _stream(total, place))))
    return [site for _, site in sorted(sites, key=lambda each: each[0])]


def _only_user(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """The one node that reads a value, and as which of its inputs; ``None`` where there are none or several."""
    uses = [] if value is None else list(value.uses())
    return (uses[0].node, uses[0].idx) if len(uses) == 1 else None


def _stream(total: ir.Value, place: Mapping[ir.Node, int]) -> str | None:
    """What a site's output is added to, where that was there before the site's own sum."""
    user, maker = _only_user(total), total.producer()
    if user is None or maker is None or total.is_graph_output():
        return None
    node, index = user
    other = node.inputs[1 - index] if node.op_type in _SUMS and index < 2 else None
    producer = None if other is None else other.producer()
    if other is None or producer is None or place.get(producer, len(place)) > place[maker]:
        return None
    return other.name


def _together(graph: ir.Graph, sites: Sequence[_Site]) -> Iterator[list[_Site]]:
    """Sites behind each other that read the same value: what one of them gives, the others do not see."""
    group: list[_Site] = []
    for site in sites:
        if group and site.read != group[-1].read:
            yield group
            group = []
        group.append(site)
    if group:
        yield group


class _Steps:
    """A graph run step by step on several batches, each step giving the values that it is asked for."""

    def __init__(
        self, model: ir.Model, file: Path, batches: list[dict[str, np.ndarray]], asked: Sequence[tuple[str, ...]],
        open_session: Callable[[Path], Any],
    ) -> None:  # fmt: skip
        self._model, self._values, self._open = model, batches, open_session
        self._file = file.with_name(f"{file.stem}_step.onnx")
        self._asked = asked
        self._segments = _segments(model.graph, asked, set(batches[0]))
        self._next = 0

    def run(self, slots: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """The next step, with these slot tensors: the values asked for, by batch."""
        asked, segment = self._asked[self._next], self._segments[self._next]
        later = {name for each in self._segments[self._next + 1 :] for name in each.inputs}
        later |= {name for names in self._asked[self._next + 1 :] for name in names}
        self._next += 1
        if segment.outputs:
            write_segment(self._model, segment, {**self._values[0], **slots}, self._file)
            session = self._open(self._file)
            self._file.unlink()
        for values in self._values:
            values.update(slots)
            if segment.outputs:
                outputs = session.run(list(segment.outputs), {name: values[name] for name in segment.inputs})
                values.update(zip(segment.outputs, outputs, strict=True))
            found = {name: values[name] for name in asked}
            for name in [name for name in values if name not in later]:
                del values[name]
            yield found


def _segments(graph: ir.Graph, asked: Sequence[tuple[str, ...]], given: set[str]) -> list[Segment]:
    """For each step the nodes that its values need and no step before has run: what they read, and what is read of them."""
    makers = {value.name or "": node for node in graph for value in node.outputs}
    inputs = {value.name or "" for value in graph.inputs}
    steps: list[set[ir.Node]] = []
    done: set[ir.Node] = set()
    for names in asked:
        new: set[ir.Node] = set()
        waiting = [makers[name] for name in names if name in makers]
        while waiting:
            node = waiting.pop()
            if node in done or node in new:
                continue
            new.add(node)
            waiting += [makers[value.name or ""] for value in values_read(node) if (value.name or "") in makers]
        steps.append(new)
        done |= new
    segments = []
    for number, nodes in enumerate(steps):
        read = dict.fromkeys(value.name or "" for node in nodes for value in values_read(node))
        own = {value.name or "" for node in nodes for value in node.outputs}
        taken = tuple(
            name for name in read if name not in own and (name in makers or (name in inputs and name in given))
        )
        after = {value.name or "" for each in steps[number + 1 :] for node in each for value in values_read(node)}
        after |= {name for each in asked[number:] for name in each}
        segments.append(Segment(taken, tuple(sorted(own & after))))
    return segments


def _solved(
    site: _Site, before: np.ndarray, targets: Sequence[Feeds], givens: Sequence[Feeds], ridge: float
) -> np.ndarray:
    """The second factor ``[1, rank, out]`` of one site."""
    old = before[0].astype(np.float64)
    rank = len(old)
    gram, moment = np.zeros((rank, rank)), np.zeros(old.shape)
    for target, given in zip(targets, givens, strict=True):
        inner = _rows(given[site.inner])
        lacks = _rows(target[site.total]) - _rows(given[site.base])
        if site.stream is not None:
            lacks = lacks + (_rows(target[site.stream]) - _rows(given[site.stream]))
        if not (np.isfinite(inner).all() and np.isfinite(lacks).all()):
            raise BundleError(
                f"{site.slot.name} has activations that are not finite on these texts: nothing can be fitted to them"
            )
        weights = _weights(_rows(given[site.read]))
        weighted = (inner * weights).T
        gram += weighted @ inner
        moment += weighted @ (lacks - inner @ old.astype(np.float32))
    gram[np.diag_indices(rank)] += max(ridge * float(np.trace(gram)) / rank, 1e-30)
    new = old.copy()
    for part in site.slot.parts:
        columns = slice(part.offset, part.offset + part.size)
        used = np.flatnonzero(np.any(old[:, columns] != 0, axis=1))
        if len(used):
            new[used, columns] += np.linalg.solve(gram[np.ix_(used, used)], moment[used, columns])
    found: np.ndarray = new.astype(np.float32)[None]
    return found


def _rows(array: np.ndarray) -> np.ndarray:
    """``[rows, width]``, float32."""
    return array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)


def _weights(read: np.ndarray) -> np.ndarray:
    """What each row counts, ``[rows, 1]``: a token of huge activations would else outweigh all others."""
    energy = np.einsum("ri,ri->r", read, read, dtype=np.float64)
    level = float(energy.mean()) or 1.0
    return (level / (energy + level)).astype(np.float32)[:, None]
