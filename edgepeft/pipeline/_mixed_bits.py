"""Bits by what each matrix is worth: a variant within a size, or within a divergence from fp32."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..bundle import SlotTable
from ..cache import cache_dir
from ..errors import InputError
from ..quantize.calibrated import NEAREST_BITS, Fitted, fit, nearest_with_bias, write_rounded
from ..quantize.mixed import MEASURED, Option, Point, front, options_of, within_loss, within_size
from ..quantize.nbits import Rounded
from ..quantize.packing import BLOCK
from ..quantize.sensitivity import Sensitivity, divergence_of, measure_sensitivity
from ..quantize.weights import Matrix, matrices
from ..report.write import replace_text
from ..runtime.sessions import open_session
from ._calibration_runs import Runs

Announce = Callable[[str], None]

#: How often a model is made anew because the divergence that was measured is not the one that was expected.
TRIES = 4
#: Points of the front that are told.
TOLD = 24


@dataclass(frozen=True)
class Goal:
    """What a variant must reach: at most so many bytes, or bits a weight, or at most that divergence from fp32 in nats."""

    bytes: int | None = None
    bits: float | None = None
    divergence: float | None = None

    def __post_init__(self) -> None:
        """Exactly one of them, and a number that can be met at all."""
        given = [value for value in asdict(self).values() if value is not None]
        if len(given) != 1:
            raise InputError("give one of a size (--budget-mb), bits a weight (--bits) and a divergence (--max-kld)")
        if not given[0] > 0:
            raise InputError(f"a size, bits and a divergence are above 0; found {given[0]}")


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


def make_mixed(source: Path, target: Path, slots: SlotTable, *, runs: Runs, goal: Goal, announce: Announce) -> Front:
    """Write a variant whose matrices have the bits that reach a goal best.

    Args:
        source: The fp32 graph, its weights beside it.
        target: The file to write; its weights go to ``<target>_data``.
        slots: The bundle's slots, which are not touched.
        runs: What calibrates, compares matrices, and is kept apart.
        goal: What to reach.
        announce: Is called with a line of text for each step.

    Raises:
        InputError: Nothing reaches the goal; the message says what comes nearest.
    """
    model = ir.load(source)
    found = {matrix.name: matrix for matrix in matrices(model.graph, slots, width=BLOCK)}
    even = dict.fromkeys(found, MEASURED)
    first = fit(source, slots, even, batches=runs.feeds, open_session=open_session)
    rounded = {name: each.rounded for name, each in first.items()}
    write_rounded(source, target, slots, rounded, even)
    known = _sensitivity(source, slots, rounded, runs, announce)
    # Kernels round activations too: what that costs is there whatever the weights are.
    floor = max(0.0, divergence_of(source, target, runs.probes, open_session) - known.together)
    options = {name: options_of(matrix, known.factor * known.each.get(name, 0.0)) for name, matrix in found.items()}
    rest = _size(target) - sum(o.bytes for each in options.values() for o in each if o.form == MEASURED)
    numbers = {name: math.prod(matrix.shape) for name, matrix in found.items()}
    whole = _Variant(source, target, slots, runs, found, first, options, rest, floor)
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


@dataclass(frozen=True)
class _Variant:
    """What is needed to write a variant in any forms."""

    source: Path
    target: Path
    slots: SlotTable
    runs: Runs
    matrices: Mapping[str, Matrix]
    first: Mapping[str, Fitted]
    options: Mapping[str, Sequence[Option]]
    rest: int
    floor: float

    def front(self) -> list[Point]:
        """All that could be had, the smallest first."""
        return front(self.options, self.floor)

    def mb(self, point: Point) -> float:
        """Megabytes of the variant's files."""
        return (point.bytes + self.rest) / 1e6

    def reach(self, goal: Goal, weights: int, announce: Announce) -> tuple[Point, float]:
        """Write what reaches ``goal``; the point, and the divergence that was measured of it."""
        points = self.front()
        if goal.divergence is None:
            size = goal.bytes - self.rest if goal.bytes is not None else int((goal.bits or 0) * weights / 8)
            best = within_size(self.options, size, self.floor)
            if best is None:
                least = points[0]
                raise InputError(
                    f"no choice of bits reaches that size: the smallest is {self.mb(least):.2f} MB "
                    f"({8 * least.bytes / weights:.2f} bits a weight), with an expected divergence of {least.loss:.3f}"
                )
            return best, self.write(best)
        wanted = goal.divergence
        point, measured = points[-1], 0.0
        for _ in range(TRIES):
            point = within_loss(points, wanted) or points[-1]
            measured = self.write(point)
            if measured <= goal.divergence:
                return point, measured
            announce(
                f"bits: {self.mb(point):.2f} MB has a divergence of {measured:.4f}, where {point.loss:.4f} was expected"
            )
            if point is points[-1]:
                break
            wanted = min(wanted, point.loss) * goal.divergence / measured * 0.95
        raise InputError(
            f"no choice of bits has a divergence of at most {goal.divergence:g}: the nearest has {measured:.4f} at "
            f"{self.mb(point):.2f} MB. Take --max-kld {measured * 1.02:.3g}, or leave the variant out"
        )

    def write(self, point: Point) -> float:
        """Write the variant; its divergence from fp32 on texts kept apart."""
        made: dict[str, Rounded] = {}
        anew: list[str] = []
        for name, fitted in self.first.items():
            form = point.forms[name]
            if form == MEASURED:
                made[name] = fitted.rounded
            elif form.bits >= NEAREST_BITS:
                made[name] = nearest_with_bias(self.matrices[name].numbers, fitted.mean, form)
            else:
                anew.append(name)
        if anew:
            again = fit(
                self.source,
                self.slots,
                point.forms,
                batches=self.runs.feeds,
                open_session=open_session,
                only=anew,
            )
            made.update({name: each.rounded for name, each in again.items()})
        for old in (self.target, Path(f"{self.target}_data")):
            old.unlink(missing_ok=True)
        write_rounded(self.source, self.target, self.slots, made, point.forms)
        return divergence_of(self.source, self.target, self.runs.apart, open_session)


def _size(target: Path) -> int:
    return sum(path.stat().st_size for path in target.parent.glob(f"{target.name}*"))


def _sensitivity(
    source: Path, slots: SlotTable, rounded: Mapping[str, Rounded], runs: Runs, announce: Announce
) -> Sensitivity:
    """Measured once for the same weights, adapters and texts; then read from the cache."""
    kept = cache_dir() / "sensitivity" / f"{_key(source, rounded, runs)}.json"
    if kept.is_file():
        announce("bits: what each matrix is worth is known from an earlier run")
        return Sensitivity(**json.loads(kept.read_text(encoding="utf-8")))
    announce(f"bits: running the model with one matrix rounded at a time, {len(rounded)} in all")

    def progress(done: int, of: int) -> None:
        if done % max(1, of // 4) == 0 and done < of:
            announce(f"bits: {done} of {of} matrices")

    found = measure_sensitivity(source, slots, rounded, runs.probes, open_session, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_text(kept, json.dumps(asdict(found), allow_nan=False))
    return found


def _key(source: Path, rounded: Mapping[str, Rounded], runs: Runs) -> str:
    """A hash of all that sensitivities depend on: what the weights became says what they were and how they were fitted."""
    content = hashlib.sha256(f"{__version__} {source.stat().st_size}".encode())
    for name, each in sorted(rounded.items()):
        content.update(name.encode())
        content.update(np.ascontiguousarray(each.packed.numbers).data)
        content.update(np.ascontiguousarray(each.packed.scales).data)
    for batch in runs.probes:
        for name, array in sorted(batch.items()):
            content.update(name.encode())
            content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:32]
