"""Graphs whose slots are plain inputs, run as a probe runs a bundle: every slot is fed on every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.bundle_graph import load_graph
from ..adapters.files import read_onnx_adapter
from ..bundle import Bundle, Manifest, variant_graphs
from ..bundle.manifest_heads import task_outputs
from ..errors import InputError
from ..runtime.active import read_tensors
from ..runtime.sessions import open_graph_session, open_session, run_values

Arrays = Mapping[str, np.ndarray]


def empty_slots(manifest: Manifest, defaults: Arrays) -> dict[str, np.ndarray]:
    """A feed for every slot tensor that gives the base: rank 0, or the default where there is one."""
    sizes = {"adapter_batch": 1}
    return {
        name: defaults[name] if name in defaults else np.zeros([_size(d, sizes) for d in shape], np.float32)
        for name, shape in manifest.slots.tensors().items()
    }


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else sizes.get(dim, 0)


class _Graph:
    """One graph; it takes what it knows of what is fed."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._halves = {value.name for value in self._session.get_inputs() if value.type == "tensor(float16)"}

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs by name."""
        known = {
            name: array.astype(np.float16) if name in self._halves else array
            for name, array in feeds.items()
            if name in self.shapes
        }
        return run_values(self._session, self._outputs, known, {})


class Fed:
    """The second graph of a variant (of an encoder-decoder: both): what a probe needs of a runtime."""

    def __init__(self, bundle: Bundle, variant: str, path: Path | None = None, *, unpack: bool = False) -> None:
        bundle = bundle.on(variant)
        self.bundle, self.manifest = bundle, bundle.manifest
        entry = self.manifest.variants[variant]
        # Unpacked: fold DequantizeLinear of constants instead of fusing it.
        settings = {"session.disable_quant_qdq": "1"} if unpack else None
        first, *second = variant_graphs(self.manifest, variant, "input")
        self._graph = _Graph(
            open_graph_session(bundle, first, settings=settings)
            if path is None
            else open_session(path, settings=settings)
        )
        self._decoder = _Graph(open_graph_session(bundle, second[0], settings=settings)) if second else None
        held = self.manifest.slot_defaults
        defaults = _read_defaults(bundle, held) if held else {}
        own = load_graph(bundle, entry.file).graph.initializers
        optional = {value.name: own[value.name].const_value for value in self.manifest.inputs if value.optional}
        self._empty: dict[str, np.ndarray] = {
            **empty_slots(self.manifest, defaults),
            **{name: tensor.numpy() for name, tensor in optional.items() if tensor is not None},
        }
        self._tensors: dict[str, np.ndarray] = {}
        self._task: str | None = None

    def use(self, adapter: str | None) -> Fed:
        """Swap as a runtime does."""
        entries = self.manifest.adapters
        self._task = None if adapter is None else entries[adapter].task
        self._tensors = {} if adapter is None else read_tensors(self.bundle, adapter, entries[adapter])
        return self

    def forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs by name."""
        found = self._graph.run({**self._empty, **self._tensors, **inputs})
        return {own: found[name] for own, name in task_outputs(self.manifest, self._task).items()}

    @property
    def decoder_shapes(self) -> Mapping[str, Sequence[int | str]]:
        """The inputs of an encoder-decoder's decoder, with their shapes."""
        return self._second.shapes

    def decode(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """One run of an encoder-decoder's decoder."""
        return self._second.run({**self._empty, **self._tensors, **inputs})

    @property
    def _second(self) -> _Graph:
        if self._decoder is None:
            raise InputError(f"{self.bundle.path} is for {self.manifest.task}; it has no decoder that writes texts")
        return self._decoder


def _read_defaults(bundle: Bundle, file: str) -> dict[str, np.ndarray]:
    with bundle.open(file) as opened:
        return read_onnx_adapter(Path(opened.load_path))[0]
