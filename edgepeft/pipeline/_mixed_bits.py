"""Bits by what each matrix is worth: a variant within a size, or within a divergence from fp32."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..bundle import SlotTable
from ..cache import cache_dir
from ..quantize.calibrated import fit, write_rounded
from ..quantize.mixed import MEASURED, OFFSET, options_of
from ..quantize.nbits import Rounded
from ..quantize.packing import BLOCK
from ..quantize.sensitivity import Sensitivity, Stage, divergence_between, sensitivity_of
from ..quantize.weights import Matrix, matrices
from ..report.write import replace_text
from ..runtime.sessions import open_session
from ._calibration_runs import Runs
from ._mixed_variant import Goal, Graph, MixedVariant, size_of

Announce = Callable[[str], None]

#: Points of the front that are told.
TOLD = 24


@dataclass(frozen=True)
class Front:
    """What was chosen, and what else could have been had: megabytes of the variant, and the divergence expected of it, in nats."""

    points: tuple[tuple[float, float], ...]
    chosen: tuple[float, float]
    #: Measured on texts kept apart, for what was chosen.
    measured: float
    #: How many weights have each form.
    forms: Mapping[str, int]
    bits: float
    #: The divergence that each matrix causes by itself in 4 bits; of a few hundred, what matters most is first.
    sensitivity: Mapping[str, float]

    def told(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {
            "front_mb_divergence": [[round(mb, 2), round(loss, 5)] for mb, loss in self.points],
            "mb": round(self.chosen[0], 2),
            "expected_divergence": round(self.chosen[1], 5),
            "measured_divergence": round(self.measured, 5),
            "bits": round(self.bits, 3),
            "forms": dict(self.forms),
            "most_sensitive": dict(list(self.sensitivity.items())[:TOLD]),
        }


def make_mixed(graphs: Sequence[Graph], slots: SlotTable, *, runs: Runs, goal: Goal, announce: Announce) -> Front:
    """Write a variant whose matrices have the bits that reach a goal best.

    Args:
        graphs: The fp32 graphs in the order in which they run, what is written of each, and what fits it.
        slots: The bundle's slots, which are not touched.
        runs: What compares matrices, and is kept apart.
        goal: What to reach: one for all graphs.
        announce: Is called with a line of text for each step.

    Raises:
        InputError: Nothing reaches the goal; the message says what comes nearest.
    """
    models = {graph.label: ir.load(graph.source) for graph in graphs}
    found: dict[str, Matrix] = {
        f"{label}{matrix.name}": matrix
        for label, model in models.items()
        for matrix in matrices(model.graph, slots, width=BLOCK)
    }
    even = dict.fromkeys(found, MEASURED)
    first = {
        f"{graph.label}{name}": fitted
        for graph in graphs
        for name, fitted in fit(
            graph.source, slots, graph.own(even), batches=graph.feeds, open_session=open_session, counted=graph.counted
        ).items()
    }
    rounded = {name: each.rounded for name, each in first.items()}
    for graph in graphs:
        write_rounded(graph.source, graph.target, slots, graph.own(rounded), graph.own(even))
    known = _sensitivity(graphs, slots, rounded, runs, announce)
    # Kernels round activations too: what that costs is there whatever the weights are.
    sources, targets = [graph.source for graph in graphs], [graph.target for graph in graphs]
    made = divergence_between(sources, targets, runs.probed(), open_session)
    floor = max(0.0, made - known.together)
    options = {name: options_of(matrix, known.factor * known.each.get(name, 0.0)) for name, matrix in found.items()}
    rest = size_of(graphs) - sum(o.bytes for each in options.values() for o in each if o.form == MEASURED)
    # Offsets share a table of blocks for each width.
    widths = {found[name].shape[1] for name, each in options.items() if any(o.form == OFFSET for o in each)}
    rest += sum(width * (width // OFFSET.block) for width in widths)
    numbers = {name: math.prod(matrix.shape) for name, matrix in found.items()}
    whole = MixedVariant(graphs, slots, runs, found, first, options, rest, floor)
    point, measured = whole.reach(goal, sum(numbers.values()), announce)
    points = [(whole.mb(each), each.loss) for each in whole.front()]
    forms: dict[str, int] = {}
    for name, form in point.forms.items():
        forms[str(form)] = forms.get(str(form), 0) + numbers[name]
    return Front(
        points=tuple(points[i] for i in np.unique(np.linspace(0, len(points) - 1, TOLD).astype(int))),
        chosen=(whole.mb(point), point.loss),
        measured=measured,
        forms=dict(sorted(forms.items())),
        bits=8 * point.bytes / sum(numbers.values()),
        sensitivity=dict(sorted(known.each.items(), key=lambda item: -item[1])),
    )


def _sensitivity(
    graphs: Sequence[Graph], slots: SlotTable, rounded: Mapping[str, Rounded], runs: Runs, announce: Announce
) -> Sensitivity:
    """Measured once for the same weights, adapters and texts; then read from the cache."""
    kept = cache_dir() / "sensitivity" / f"{_key(graphs, rounded, runs)}.json"
    if kept.is_file():
        announce("bits: what each matrix is worth is known from an earlier run")
        return Sensitivity(**json.loads(kept.read_text(encoding="utf-8")))
    announce(f"bits: running the model with one matrix rounded at a time, {len(rounded)} in all")

    def progress(done: int, of: int) -> None:
        if done % max(1, of // 4) == 0 and done < of:
            announce(f"bits: {done} of {of} matrices")

    stages = [Stage(graph.source, graph.own(rounded), graph.label) for graph in graphs]
    found = sensitivity_of(stages, slots, runs.probed(), open_session, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_text(kept, json.dumps(asdict(found), allow_nan=False))
    return found


def _key(graphs: Sequence[Graph], rounded: Mapping[str, Rounded], runs: Runs) -> str:
    """A hash of all that sensitivities depend on: what the weights became says what they were and how they were fitted."""
    sizes = " ".join(str(graph.source.stat().st_size) for graph in graphs)
    content = hashlib.sha256(f"{__version__} {sizes}".encode())
    for name, each in sorted(rounded.items()):
        content.update(name.encode())
        content.update(np.ascontiguousarray(each.packed.numbers).data)
        content.update(np.ascontiguousarray(each.packed.scales).data)
    for batch in (feeds for steps in runs.probed() for feeds in steps):
        for name, array in sorted(batch.items()):
            content.update(name.encode())
            content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:32]
