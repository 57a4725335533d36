"""A variant whose matrices have bits of their own: made for a goal, measured, and made again where it misses that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ..bundle import SlotTable
from ..errors import InputError
from ..quantize.calibrated import NEAREST_BITS, Fitted, fit, nearest_with_bias, on_stored_grid, write_rounded
from ..quantize.mixed import MEASURED, Option, Point, front, within_loss, within_size
from ..quantize.moments import Feeds
from ..quantize.nbits import Rounded
from ..quantize.sensitivity import divergence_between
from ..quantize.weights import Matrix
from ..runtime.sessions import open_session
from ._calibration_runs import Runs

Announce = Callable[[str], None]
T = TypeVar("T")

#: How often a model is made anew because the divergence that was measured is not the one that was expected.
TRIES = 4


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
class Graph:
    """One graph of a model: its fp32 file, the file to write, what it runs to be fitted, and what stands before its names.

    An encoder and a decoder may hold matrices of the same name; ``label`` (``"encoder/"``) tells them apart. A single graph has
    none.
    """

    source: Path
    target: Path
    feeds: Sequence[Feeds]
    label: str = ""
    #: How many rows of each run count; all by default.
    counted: Sequence[int] | None = None

    def own(self, named: Mapping[str, T]) -> dict[str, T]:
        """What is this graph's of all that is known by labelled names, by its own."""
        return {n.removeprefix(self.label): each for n, each in named.items() if n.startswith(self.label)}


def size_of(graphs: Sequence[Graph]) -> int:
    """Bytes of the files that were written, weights included."""
    return sum(path.stat().st_size for g in graphs for path in g.target.parent.glob(f"{g.target.name}*"))


@dataclass(frozen=True)
class MixedVariant:
    """What is needed to write a variant in any forms. Matrices are known by labelled names."""

    graphs: Sequence[Graph]
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
            elif form.offsets and (stored := on_stored_grid(self.matrices[name], form, offsets=True)) is not None:
                made[name] = stored
            elif form.bits >= NEAREST_BITS:
                made[name] = nearest_with_bias(self.matrices[name].numbers, fitted.mean, form)
            else:
                anew.append(name)
        for graph in self.graphs:
            own, forms = graph.own(made), graph.own(point.forms)
            if wanted := graph.own(dict.fromkeys(anew)):
                again = fit(
                    graph.source, self.slots, forms, batches=graph.feeds, open_session=open_session, only=wanted,
                    counted=graph.counted,
                )  # fmt: skip
                own.update({name: each.rounded for name, each in again.items()})
            for old in (graph.target, Path(f"{graph.target}_data")):
                old.unlink(missing_ok=True)
            write_rounded(graph.source, graph.target, self.slots, own, forms)
        sources, targets = [graph.source for graph in self.graphs], [graph.target for graph in self.graphs]
        return divergence_between(sources, targets, self.runs.judged(), open_session)
