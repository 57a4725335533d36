"""What a variant in float16 is measured and judged on: a probe's batches and texts, with the base and every adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..bundle.manifest_heads import task_outputs
from ..data import Examples, evenly
from ..errors import BundleError
from ..quantize.halves.ranges import LARGEST
from ..quantize.halves.write import plain_session
from ..quantize.recipes import WHOLE
from ..runtime.active import read_tensors
from ..runtime.prefix import after_prefix
from ._calibrate import takes_texts
from ._calibration_crossed import CrossedRuns, crossed_runs
from ._calibration_data import Data, sounds_of, texts_of
from ._calibration_runs import HELD_OUT, calibration_runs, can_calibrate, shipped_paragraphs
from ._calibration_sound import sound_runs

Arrays = Mapping[str, np.ndarray]

#: Runs over texts of the base, and of each adapter: activations have their outliers in the first tokens of any of them.
BASE_RUNS, ADAPTER_RUNS = 8, 3


class GraphFile:
    """One graph's file in a session, and the largest magnitudes that its runs have told."""

    def __init__(self, file: Path, watched: Sequence[str] = ()) -> None:
        self._session = plain_session(file)
        self._watched = watched
        self._names = [value.name for value in self._session.get_outputs()]
        given = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self.shapes = {value.name: value.shape for value in given}
        self._sizes = np.zeros(len(watched), np.float32)

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name, for what the graph takes of ``feeds``."""
        known = {name: array for name, array in feeds.items() if name in self.shapes}
        found = dict(zip(self._names, self._session.run(self._names, known), strict=True))
        if self._watched:
            self._note(found.pop(LARGEST))
        return found

    def _note(self, sizes: np.ndarray) -> None:
        if np.isnan(sizes).any():
            name = self._watched[int(np.isnan(sizes).argmax())]
            raise BundleError(
                f"activation {name} is not a number on the texts that it was measured on: nothing can be said of its range. Look "
                "for NaN or infinite weights in the checkpoint"
            )
        self._sizes = np.maximum(self._sizes, sizes)

    @property
    def largest(self) -> dict[str, float]:
        """The largest magnitude of each watched value so far."""
        return {name: float(size) for name, size in zip(self._watched, self._sizes, strict=True)}


class HalfRuns:
    """The graphs of a variant, one or an encoder and its decoder: what a probe needs of a runtime."""

    def __init__(self, bundle: Bundle, graphs: Sequence[GraphFile]) -> None:
        self.bundle, self.manifest, self.graphs = bundle, bundle.manifest, graphs
        self._tensors: Arrays = {}
        self._prefix: Arrays = {}
        self._task: str | None = None

    def use(self, adapter: str | None) -> HalfRuns:
        """Swap as a runtime does."""
        entry = None if adapter is None else self.manifest.adapters[adapter]
        held = {} if adapter is None or entry is None else read_tensors(self.bundle, adapter, entry)
        pasts = {tensor: tensor.replace("prefix.", "past_key_values.", 1) for tensor in self.manifest.prefix_tensors()}
        self._prefix = {pasts[name]: array for name, array in held.items() if name in pasts}
        self._tensors = {name: array for name, array in held.items() if name not in pasts}
        self._task = None if entry is None else entry.task
        return self

    def forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs by name."""
        if self._prefix:
            return after_prefix(self._forward, inputs, self._prefix, self.manifest.max_length)
        return self._forward(inputs)

    def _forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        found = self.graphs[0].run({**self._tensors, **inputs})
        if len(self.graphs) > 1:
            return found
        return {own: found[name] for own, name in task_outputs(self.manifest, self._task).items()}

    @property
    def decoder_shapes(self) -> Mapping[str, Sequence[int | str]]:
        """The inputs of an encoder-decoder's decoder, with their shapes."""
        return self.graphs[1].shapes

    def decode(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """One run of an encoder-decoder's decoder."""
        return self.graphs[1].run({**self._tensors, **inputs})


def data_feeds(
    bundle: Bundle, data: Mapping[str, Data], rows: int
) -> tuple[tuple[tuple[Arrays, ...], ...], dict[str, int]]:
    """Feeds over texts or sounds for each graph of the fp32 variant, adapters' tensors among them, and how many each ran.

    They are ``data``, or texts that ship with edgepeft where the base takes texts alone; nothing where it does not.
    """
    manifest = bundle.manifest
    shipped = {"*": Examples(tuple(shipped_paragraphs()), labels=None)}
    if any(entry.prefix_length for entry in manifest.adapters.values()) and not manifest.writes:
        return (), {}
    if "tokenizer.json" not in manifest.files or not (manifest.writes or manifest.hears or takes_texts(manifest)):
        return (), {}
    if manifest.hears:
        enough = min(rows, BASE_RUNS + BASE_RUNS // HELD_OUT + 1)
        return _crossed(sound_runs(bundle, sounds_of(bundle, data), rows=enough)) if data else ((), {})
    texts = texts_of(bundle, data)
    if any(variant.decoder_file is not None for variant in manifest.variants.values()):
        return _crossed(crossed_runs(bundle, texts, rows=rows)) if WHOLE in manifest.variants else ((), {})
    runs = calibration_runs(bundle, texts if not can_calibrate(bundle, data) else shipped, rows=rows)
    return (tuple(runs.feeds[i] for i in _chosen(runs.counts)),), _counts(runs.counts)


def _crossed(runs: CrossedRuns) -> tuple[tuple[tuple[Arrays, ...], ...], dict[str, int]]:
    places = list(_chosen(runs.counts))
    feeds = tuple(tuple(each[i] for i in places) for each in (runs.feeds, runs.decoder))
    return feeds, _counts(runs.counts)


def _most(name: str) -> int:
    return BASE_RUNS if name == "*" else ADAPTER_RUNS


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: min(count, _most(name)) for name, count in counts.items()}


def _chosen(counts: Mapping[str, int]) -> Iterator[int]:
    """Places of the runs that are taken: some of the base's, which come first, and some of each adapter's."""
    start = 0
    for name, count in counts.items():
        yield from (start + place for place in evenly(count, _most(name)))
        start += count
