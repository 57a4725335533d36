"""What a rank costs in milliseconds: slots of a layer's shape run through ONNX Runtime, with and without ranks in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .allocation import SiteCost

if TYPE_CHECKING:
    from ..targets import Target

#: Ranks that are timed; a line through them is the cost.
_RANKS = (4, 8, 16, 32, 64)
#: Each graph holds one shape so many times, or as often as its weights fit into this many bytes: a single product takes
#: microseconds.
_MOST_COPIES, _MOST_BYTES = 8, 1 << 25
#: Sessions that are opened anew, for where memory comes to lie moves a product by some per cent; and runs of each rank in each.
_SESSIONS, _ROUNDS = 3, 12
#: No rank is free: where nothing can be told from noise a rank costs this, in milliseconds.
_LEAST_MS = 1e-6
_OPSET, _IR_VERSION = 21, 10
#: Clocks that tick more coarsely than this, in seconds, cannot time a product.
_COARSE = 1e-6


def check_measurable(target: Target) -> None:
    """Refuse a target whose latency this process cannot measure.

    Raises:
        InputError: It is another kind of machine, something else executes it, or slots do not run there as they do here.
    """
    why = None
    if target.executor != "local":
        why = f"it is executed by {target.executor}, and a layer's ranks are timed in this process"
    elif target.runtime.providers != ("CPUExecutionProvider",):
        why = f"it runs on {', '.join(target.runtime.providers)}, and a layer's ranks are timed on the CPU provider"
    else:
        why = target.here()
    if why is not None:
        raise InputError(
            f"ranks cannot be given by the milliseconds of {target.name}: {why}. Give --rank-budget-mb, or call it on such a "
            'machine with a target of its own (executor = "local")'
        )


def measure_rank_costs(
    widths: Iterable[tuple[int, int]], target: Target, *, gain: bool = False, seed: int = 0
) -> dict[tuple[int, int], SiteCost]:
    """The milliseconds that ranks add to one run of ``target``'s smallest shape, by widths of layers.

    For each pair of widths a graph of some layers is run with its slots (two MatMul and an Add, ``gain``: and a Mul) and without,
    in turns, at ranks from 4 to 64. Of each the shortest run counts, since all that disturbs a run makes it longer; a line through
    the differences gives what a slot costs and what each rank does, the median of three pairs of sessions. With one thread it is
    that thread's processor time.

    Args:
        widths: ``(inputs, outputs)`` of layers.
        target: Gives the threads and the shape; see :func:`check_measurable`.
        gain: Whether slots hold a gain for each output too (DoRA).
        seed: Of the numbers in the graphs.

    Returns:
        Costs in milliseconds, by widths.

    Raises:
        InputError: The target cannot be measured here.

    Example:
        >>> measure_rank_costs([(384, 1536)], load_target("linux-x64-cpu"))  # doctest: +SKIP
        {(384, 1536): SiteCost(rank=0.0012, opening=0.021)}
    """
    check_measurable(target)
    shape, threads = target.shapes()[0], target.runtime.threads
    generator = np.random.default_rng(seed)
    return {
        pair: _cost(pair, (shape.batch, shape.sequence), threads, gain, generator) for pair in dict.fromkeys(widths)
    }


def _cost(
    widths: tuple[int, int], tokens: tuple[int, int], threads: int, gain: bool, generator: np.random.Generator
) -> SiteCost:
    inputs, outputs = widths
    copies = max(1, min(_MOST_COPIES, _MOST_BYTES // (4 * inputs * outputs)))

    def drawn(*sizes: int) -> Any:
        return generator.standard_normal(sizes).astype(np.float32)

    feeds = {0: {"x": drawn(*tokens, inputs)}}
    for rank in _RANKS:
        tensors = {"a": drawn(1, inputs, rank), "b": drawn(1, rank, outputs)}
        if gain:
            tensors["g"] = drawn(1, 1, outputs)
        slots = {f"{name}{copy}": tensor for name, tensor in tensors.items() for copy in range(copies)}
        feeds[rank] = feeds[0] | slots
    lines = []
    for _ in range(_SESSIONS):
        plain, slotted = (_session(widths, copies, threads, slots, gain, generator) for slots in (False, True))
        shortest = _shortest(
            {rank: (slotted if rank else plain, mine) for rank, mine in feeds.items()}, _clock(threads)
        )
        added = [1e3 * (shortest[rank] - shortest[0]) / copies for rank in _RANKS]
        lines.append(np.polyfit(np.array(_RANKS, float), added, 1))
    slope, start = np.median(lines, axis=0)
    return SiteCost(rank=max(_LEAST_MS, float(slope)), opening=max(0.0, float(start)))


def _shortest(runs: Mapping[int, tuple[Any, Mapping[str, Any]]], clock: Callable[[], float]) -> dict[int, float]:
    """The seconds of the shortest run of each session with its feeds, all of them in turns."""
    found = dict.fromkeys(runs, float("inf"))
    for number in range(_ROUNDS + 1):
        for rank in sorted(runs, reverse=bool(number % 2)):
            session, feeds = runs[rank]
            began = clock()
            session.run(None, feeds)
            took = clock() - began
            if number:  # in the first run memory is got, and kernels are chosen
                found[rank] = min(found[rank], took)
    return found


def _clock(threads: int) -> Callable[[], float]:
    """The processor time of this thread where it does all the work, else what the clock on the wall says."""
    if threads == 1 and time.get_clock_info("thread_time").resolution <= _COARSE:
        return time.thread_time
    return time.perf_counter


def _session(
    widths: tuple[int, int], copies: int, threads: int, slots: bool, gain: bool, generator: np.random.Generator
) -> Any:
    """A session over ``copies`` layers that all read ``x`` ``[batch, sequence, inputs]``, with slots ``a0``, ``b0``, … or not."""
    import onnx_ir as ir
    import onnxruntime

    inputs, outputs = widths

    def value(name: str, *sizes: int | str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT))

    states = value("x", "batch", "sequence", inputs)
    given = [states]
    nodes: list[ir.Node] = []

    def node(op: str, *takes: ir.Value) -> ir.Value:
        nodes.append(ir.Node("", op, list(takes)))
        return nodes[-1].outputs[0]

    weights, results = [], []
    for copy in range(copies):
        weight = value(f"w{copy}", inputs, outputs)
        weight.const_value = ir.tensor(
            generator.standard_normal((inputs, outputs)).astype(np.float32) / np.float32(np.sqrt(inputs)),
            name=weight.name,
        )
        weights.append(weight)
        found = node("MatMul", states, weight)
        if slots:  # of each copy's own, or the runtime would compute equal products once
            a, b = value(f"a{copy}", 1, inputs, "rank"), value(f"b{copy}", 1, "rank", outputs)
            given += [a, b]
            found = node("Add", found, node("MatMul", node("MatMul", states, a), b))
            if gain:
                given.append(value(f"g{copy}", 1, 1, outputs))
                found = node("Mul", found, given[-1])
        found.name, found.shape, found.type = f"y{copy}", ir.Shape(("batch", "sequence", outputs)), states.type
        results.append(found)
    graph = ir.Graph(given, results, nodes=nodes, initializers=weights, opset_imports={"": _OPSET}, name="ranks")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    content = ir.to_proto(ir.Model(graph, ir_version=_IR_VERSION)).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
