"""Running a graph part by part, for many runs at once, so that one part's weights are packed in memory at a time.

ONNX Runtime holds weights of few bits once more in the layout that its kernels want, and multiplies them slowly without. So each
run is a thread that waits at the door of each part; when all wait, the part that most wait for is opened, they pass, and it is
closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..base.memory import give_back
from ..bundle import Bundle
from ..errors import BundleError
from ..runtime import Runtime
from ..runtime.active import ActiveAdapter
from ..runtime.engine import Engine
from ..runtime.graph_parts import GraphParts, Part, Told
from ..runtime.sessions import open_session
from .parity import one_by_one
from .probe import CausalProbe, Found, Probe, Runs

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]

#: What keeps activations in float32 where ONNX Runtime (1.32) makes MatMulNBits of an int8 weight that is widened for a MatMul.
EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
#: Lets ONNX Runtime (1.32) pack the weights of a part on all of its threads at once. Of a whole graph it would hold more at its
#: peak (measured at 1.24 billion parameters: 2.1 in place of 1.5 GB).
PACK_TOGETHER = {"session.prepack.enable_parallel": "1"}
#: Where ONNX Runtime finds the weights of a graph that it is given in memory.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
#: Bytes of weights that one part may have: packed, they are in memory once more.
BUDGET = 400_000_000


@dataclass(eq=False)
class _Call:
    """One run that waits at a part's door, and what came of it."""

    order: tuple[int, ...]
    feeds: Arrays
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    error: BaseException | None = None
    done: bool = False


class Doors:
    """Lets threads through the parts of a graph together.

    Args:
        passing: Runs calls through a part: its number, and their feeds and outputs.
    """

    def __init__(self, passing: Callable[[int, Sequence[_Call]], None]) -> None:
        self._passing = passing
        self._changed = threading.Condition()
        self._running = 0
        self._waiting: dict[int, list[_Call]] = {}
        self._order = threading.local()

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of ``works`` returns; they may call this again. Runs of the first of them pass a door first.

        Raises:
            BaseException: The first that one of them raises, when all have ended.
        """
        if not works:
            return []
        inside = getattr(self._order, "place", None)
        left = len(works)
        results: list[Any] = [None] * len(works)
        errors: list[BaseException | None] = [None] * len(works)

        def work(number: int) -> None:
            nonlocal left
            self._order.place = (*(inside or ()), number)
            try:
                results[number] = works[number]()
            except BaseException as error:  # handed to who asked
                errors[number] = error
            with self._changed:
                left -= 1
                if left or inside is None:
                    self._running -= 1  # the last one hands its turn on to who asked, if that is one of them
                self._changed.notify_all()

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(works))]
        with self._changed:
            self._running += len(works) - (1 if inside is not None else 0)  # who asks waits meanwhile
        for each in threads:
            each.start()
        if inside is None:
            self._open_doors()
        for each in threads:
            each.join()
        first = next((error for error in errors if error is not None), None)
        if first is not None:
            raise first
        return results

    def _open_doors(self) -> None:
        """Open the door that most wait at whenever nobody runs; until nobody waits either."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
                if not self._waiting:
                    return
                part = max(self._waiting, key=lambda part: (len(self._waiting[part]), -part))
                here = sorted(self._waiting.pop(part), key=lambda call: call.order)
            try:
                self._passing(part, here)
            except BaseException as error:  # each that waits is told
                for call in here:
                    call.error = error
            with self._changed:
                for call in here:
                    call.done = True
                self._running += len(here)
                self._changed.notify_all()

    def through(self, part: int, feeds: Arrays) -> dict[str, np.ndarray]:
        """Wait at a part's door; what it makes of ``feeds``."""
        call = _Call(getattr(self._order, "place", ()), feeds)
        if not call.order:  # alone
            self._passing(part, [call])
            return call.outputs
        with self._changed:
            self._waiting.setdefault(part, []).append(call)
            self._running -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: call.done)
        if call.error is not None:
            raise call.error
        return call.outputs


class SegmentedSession:
    """A graph in parts that is run like an ONNX Runtime session; inside :attr:`doors` many runs pass each part together.

    Args:
        model: The graph's bytes.
        folder: Where its weights lie.
        threads: Intra-op threads; ONNX Runtime's own choice where ``None``.
        budget: Bytes of weights of one part; ``BUDGET`` by default.
    """

    def __init__(self, model: bytes, folder: Path, threads: int | None = None, budget: int | None = None) -> None:
        self._graph = GraphParts(model, budget or BUDGET)
        self._folder, self._threads = folder, threads
        self.doors = Doors(self._pass)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._graph.parts)

    def get_inputs(self) -> list[Told]:
        """As of the whole graph."""
        return self._graph.inputs

    def get_outputs(self) -> list[Told]:
        """As of the whole graph."""
        return self._graph.outputs

    def get_overridable_initializers(self) -> list[Told]:
        """As of the whole graph."""
        return self._graph.overridable

    def run_arrays(self, outputs: Sequence[str], feeds: Arrays) -> dict[str, np.ndarray]:
        """One run; the named outputs."""
        values, parts = dict(feeds), self._graph.parts
        for number, part in enumerate(parts):
            own = (*part.inputs, *(name for name in part.optional if name in values))
            values.update(self.doors.through(number, {name: values[name] for name in own}))
            later = {name for each in parts[number + 1 :] for name in (*each.inputs, *each.optional)} | set(outputs)
            values = {name: array for name, array in values.items() if name in later}
        return {name: values[name] for name in outputs}

    def _pass(self, number: int, calls: Sequence[_Call]) -> None:
        part = self._graph.parts[number]
        if not part.outputs:
            return
        session = self._open(number, part, calls[0].feeds)
        try:
            for call in calls:
                found = session.run(list(part.outputs), dict(call.feeds))
                call.outputs = dict(zip(part.outputs, found, strict=True))
        finally:
            del session
            give_back(collect=False)

    def _open(self, number: int, part: Part, feeds: Arrays) -> Any:
        settings = {**EXACT, **PACK_TOGETHER, WEIGHTS_FOLDER: str(self._folder)}
        return open_session(self._graph.model_of(part, feeds), threads=self._threads, settings=settings)


class SegmentedEngine(Engine):
    """An engine whose graph is run in parts of ``part_bytes`` of weights. Only arrays are run: it writes no texts.

    ``held`` is a bundle that has the variant's graph and its weights too, where they are to be read there.
    """

    def __init__(
        self, *arguments: Any, part_bytes: int | None = None, held: Bundle | None = None, **options: Any
    ) -> None:
        self._part_bytes, self._held = part_bytes, held
        super().__init__(*arguments, **options)

    def _opened(self, settings: Mapping[str, str] | None) -> tuple[Any, None]:
        bundle, file = self._held or self.bundle, self._entry.file
        try:
            session = SegmentedSession(bundle.read(file), bundle.file(file).parent, self.threads, self._part_bytes)
        except IndexError as error:
            raise BundleError(f"{bundle.file(file)} is not an ONNX graph: {error}; export the bundle again") from error
        return session, None

    def _run(self, session: Any, inputs: Arrays, active: ActiveAdapter) -> dict[str, np.ndarray]:
        names = self._outputs.get(active.head.task or "") or self._outputs[self.manifest.task]
        slots = {name: value.numpy() for name, value in self._plain_values(active).items() if name in self._slots}
        found = session.run_arrays(list(names.values()), {**inputs, **slots})
        return {own: found[name] for own, name in names.items()}


@dataclass(frozen=True)
class Spread(CausalProbe):
    """A probe whose batches run at once: each is compared alone, and none waits for another at a door."""

    together: Callable[[Sequence[Callable[[], Any]]], list[Any]] = one_by_one

    def run(self, runtime: Runs) -> Found:
        """Logits of prompts and of following tokens, with the adapter in use."""
        parts = [partial(CausalProbe([batch], self.shapes).run, runtime) for batch in self.batches]
        return [found for each in self.together(parts) for found in each]


@dataclass(frozen=True)
class Together:
    """How to run many things on a runtime: at once where it runs its graph in parts, else in their order."""

    doors: Doors | None

    def __call__(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each of ``works`` returns."""
        return one_by_one(works) if self.doors is None else self.doors.together(works)

    def spread(self, probe: Probe) -> Probe:
        """``probe`` with its batches run so."""
        if self.doors is None or not isinstance(probe, CausalProbe):
            return probe
        return Spread(probe.batches, probe.shapes, self)


def together_of(runtime: Runtime) -> Together:
    """How to run many things on ``runtime``."""
    session = runtime.base.engine.session
    return Together(session.doors if isinstance(session, SegmentedSession) else None)
