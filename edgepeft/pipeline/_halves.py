"""A variant in float16: ranges are measured, islands chosen, and the result judged before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle import Bundle, Variant
from ..errors import BundleError, ParityError
from ..quantize.halves.plan import MARGIN, HalfPlan, plan_halves
from ..quantize.halves.prepare import float_values, prepare, write_exact
from ..quantize.halves.ranges import write_watched
from ..quantize.halves.write import plain_session, write_emulated
from ..quantize.recipes import WHOLE, Recipe
from ..runtime.active import read_tensors
from ..validate.probe import CausalProbe, Found, Probe, bundle_probe
from ._calibration_data import Data
from ._half_runs import GraphFile, HalfRuns, data_feeds

Announce = Callable[[str], None]

#: max |difference| of outputs under emulation, relative where they exceed 1. Rounding to 11 bits at every edge moves logits of
#: real models by 1e-3 to 2e-2 (measured: docs/quantization.md); an overflow moves them by their own size.
TOLERANCE = 0.1


#: Tokens of the longest prompt of a probe that is run.
LONGEST = 600


@dataclass(frozen=True)
class Halved:
    """What was planned for each graph, and what the emulation of it gave.

    ``difference`` is the largest of outputs to those in float32; ``texts`` says how many runs over texts each adapter had.
    """

    plans: tuple[HalfPlan, ...]
    difference: float
    texts: Mapping[str, int]

    @property
    def cache(self) -> bool:
        """Whether the key/value cache is float16."""
        return all(plan.cache for plan in self.plans)

    def told(self) -> dict[str, Any]:
        """What the manifest's provenance says of it."""
        total, reasons = sum(plan.total for plan in self.plans), [r for p in self.plans for r in p.islands.values()]
        return {
            "nodes": total,
            "islands": len(reasons),
            "measured_islands": sum(" reaches " in reason or "amplified" in reason for reason in reasons),
            "margin": MARGIN,
            "emulated_difference": float(f"{self.difference:.3g}"),
        }


def halve(
    copy: Bundle, source: Variant, rule: Recipe, data: Mapping[str, Data], rows: int, announce: Announce
) -> Halved:
    """Write a variant in float16 beside ``source``, whose graphs it is made of.

    The float32 graphs run a probe's batches, padding among them, and texts, with the base and every adapter; the largest magnitude
    of every value says which nodes stay in float32. Then the planned graphs run the same in float32 with each number rounded as
    float16 would, and are compared.

    Args:
        copy: A copy of the bundle's files.
        source: The variant that is halved.
        rule: The recipe.
        data: Texts by adapter; those that ship with edgepeft where there are none.
        rows: Texts of each adapter that may be run.
        announce: Is called with a line of text for each step.

    Raises:
        ParityError: Under emulation the outputs differ by more than ``TOLERANCE``; nothing is written.
        BundleError: A value is not a number.
    """
    files = [copy.file(file) for file in (source.file, source.decoder_file) if file is not None]
    feeds, texts = data_feeds(copy, data, rows)
    with _Work(files) as work:
        expected, largest = _measured(copy, work, feeds, announce)
        held = _slots(copy)
        cache = copy.manifest.task == "text-generation"
        plans = []
        for place, prepared in enumerate(work.prepared):
            graph = ir.load(prepared).graph
            plans.append(plan_halves(graph, work.floats[place], largest[place], held, cache=cache))
        halved = Halved(tuple(plans), _judged(copy, work, plans, feeds, expected), texts)
        told = halved.told()
        announce(
            f"{told['nodes']} nodes with floats, {told['islands']} of them stay in float32 ({told['measured_islands']} for what "
            f"was measured); emulated, outputs differ by at most {halved.difference:.1e}"
        )
        if not halved.difference <= TOLERANCE:
            raise ParityError(
                f"{rule.variant}: with every number rounded to float16 the outputs differ by {halved.difference:.2g} from "
                f"{source.file}, allowed are {TOLERANCE:g}; the bundle was left as it was. This base computes what float16 does "
                "not hold; use another variant"
            )
        for file, prepared, floats, plan in zip(files, work.prepared, work.floats, plans, strict=True):
            name = whole_name(file.relative_to(copy.path).as_posix(), rule)
            target = copy.file(rule.graph_file(name))
            rule.apply(prepared, target, copy.manifest.slots, floats=floats, plan=plan)
    return halved


def whole_name(file: str, rule: Recipe) -> str:
    """The name that a graph has in fp32: ``onnx/model_q4.onnx`` is ``onnx/model.onnx`` there."""
    return file if rule.halves == WHOLE else f"{file.removesuffix(f'_{rule.halves}.onnx')}.onnx"


def graphs_in_fp32(source: Variant, rule: Recipe) -> dict[str, str | None]:
    """The graph files of ``source`` under the names that they have in fp32, by field."""
    decoder = source.decoder_file
    return {
        "file": whole_name(source.file, rule),
        "decoder_file": None if decoder is None else whole_name(decoder, rule),
    }


class _Work:
    """Files that come and go beside the graphs whose weights they name."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._made: list[Path] = []
        self.prepared = [self.path(file, "prepared") for file in files]
        self.exact = [self.path(file, "exact") for file in files]
        self.floats: list[frozenset[str]] = []

    def path(self, file: Path, what: str) -> Path:
        """A file of its own beside ``file``, which is removed at the end."""
        made = file.with_name(f"{file.stem}_{what}.onnx")
        self._made.append(made)
        return made

    def __enter__(self) -> _Work:
        for file, prepared, exact in zip(self._files, self.prepared, self.exact, strict=True):
            prepare(file, prepared)
            self.floats.append(float_values(prepared, plain_session))
            write_exact(file, exact)
        return self

    def __exit__(self, *raised: object) -> None:
        for file in self._made:
            for each in (file, file.with_name(f"{file.name}_data")):
                each.unlink(missing_ok=True)


def _watched(copy: Bundle, work: _Work) -> HalfRuns:
    """The prepared graphs, which tell the largest magnitude of each value."""
    graphs = []
    for prepared, floats in zip(work.prepared, work.floats, strict=True):
        exact, watched = work.path(prepared, "exact"), work.path(prepared, "watched")
        write_exact(prepared, exact)
        graphs.append(GraphFile(watched, write_watched(exact, watched, floats)))
    return HalfRuns(copy, graphs)


#: Outputs of a probe by adapter, and of each graph's texts.
_Expected = tuple[dict[str | None, Found], list[list[dict[str, np.ndarray]]]]


def _probe(copy: Bundle) -> Probe:
    """What is run beside texts: magnitudes do not grow with a prompt's length, so those of thousands of tokens are left out."""
    probe = bundle_probe(copy)
    if not isinstance(probe, CausalProbe):
        return probe
    return replace(probe, batches=[batch for batch in probe.batches if batch.ids.shape[1] <= LONGEST])


def _adapters(copy: Bundle) -> tuple[str | None, ...]:
    return (None, *copy.manifest.adapters)


def _measured(
    copy: Bundle, work: _Work, feeds: Sequence[Sequence[Mapping[str, np.ndarray]]], announce: Announce
) -> tuple[_Expected, list[dict[str, float]]]:
    """What the float32 graphs compute, and the largest magnitude of each of their values."""
    probe = _probe(copy)
    runs = HalfRuns(copy, [GraphFile(file) for file in work.exact])
    probed: dict[str | None, Found] = {name: probe.run(runs.use(name)) for name in _adapters(copy)}
    for name, found in probed.items():
        if not np.isfinite(probe.difference(found, found)):  # NaN and infinity differ from themselves
            raise BundleError(
                f"{name or 'the base'} computes numbers that are not finite in float32 already: look for NaN or infinite weights "
                "in the checkpoint"
            )
    runs = _watched(copy, work)
    for name in _adapters(copy):
        announce(f"measuring what {name or 'the base'} computes")
        probe.run(runs.use(name))
    texts = [[_logits(graph.run(each)) for each in own] for graph, own in zip(runs.graphs, feeds, strict=False)]
    return (probed, texts), [graph.largest for graph in runs.graphs]


def _judged(
    copy: Bundle,
    work: _Work,
    plans: Sequence[HalfPlan],
    feeds: Sequence[Sequence[Mapping[str, np.ndarray]]],
    expected: _Expected,
) -> float:
    """The largest difference of the planned graphs' outputs, rounded at every edge."""
    probe, graphs = _probe(copy), []
    for prepared, floats, plan in zip(work.prepared, work.floats, plans, strict=True):
        exact, emulated = prepared.with_name(f"{prepared.stem}_exact.onnx"), work.path(prepared, "emulated")
        write_emulated(exact, emulated, floats, plan)
        graphs.append(GraphFile(emulated))
    runs = HalfRuns(copy, graphs)
    probed, texts = expected
    worst = max(probe.difference(probe.run(runs.use(name)), found) for name, found in probed.items())
    for graph, own, wanted in zip(graphs, feeds, texts, strict=False):
        for each, outputs in zip(own, wanted, strict=True):
            worst = max(worst, _difference(_logits(graph.run(each)), outputs))
    return worst


def _logits(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs that are answers: caches are compared by what comes of them. Of a long text the last tokens are kept."""
    return {
        name: array if array.ndim < 3 else array[:, -8:]
        for name, array in outputs.items()
        if not name.startswith("present.")
    }


def _difference(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """max |difference|, relative where numbers exceed 1; infinite where a number is none."""
    worst = 0.0
    for name, array in expected.items():
        apart = np.abs(found[name].astype(np.float64) - array)
        if not np.isfinite(apart).all():
            return float("inf")
        worst = max(worst, float(apart.max(initial=0.0)) / max(1.0, float(np.abs(array).max(initial=0.0))))
    return worst


def _slots(copy: Bundle) -> dict[str, float]:
    """The largest magnitude that any adapter holds for each slot."""
    found: dict[str, float] = {}
    for name, entry in copy.manifest.adapters.items():
        for tensor, array in read_tensors(copy, name, entry).items():
            found[tensor] = max(found.get(tensor, 0.0), float(np.abs(array).max(initial=0.0)))
    return found
