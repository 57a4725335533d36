"""Graphs whose slots are plain inputs, run as a probe runs a bundle: every slot is fed on every run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..adapters.bundle_graph import load_graph
from ..adapters.files import read_onnx_adapter
from ..bundle import Bundle, Manifest
from ..runtime.active import read_tensors

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

    def __init__(self, path: Path, unpack: bool) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if unpack:  # fold DequantizeLinear of constants instead of fusing it
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.shapes = {value.name: value.shape for value in self._session.get_inputs()}

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs by name."""
        import onnxruntime as ort

        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in feeds.items()
            if name in self.shapes
        }
        found = self._session.run_with_ort_values(self._outputs, values)
        return {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}


class Fed:
    """The second graph of a variant (of an encoder-decoder: both): what a probe needs of a runtime."""

    def __init__(self, bundle: Bundle, variant: str, path: Path | None = None, *, unpack: bool = False) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        entry = self.manifest.variants[variant]
        self._graph = _Graph(path or bundle.file(entry.input_file or ""), unpack)
        decoder = entry.decoder_input_file
        self.seq2seq = None if decoder is None else _Decoder(_Graph(bundle.file(decoder), unpack))
        held = self.manifest.slot_defaults
        defaults = _read_defaults(bundle, held) if held else {}
        first = load_graph(bundle, entry.file).graph.initializers
        optional = {value.name: first[value.name].const_value for value in self.manifest.inputs if value.optional}
        self._empty: dict[str, np.ndarray] = {
            **empty_slots(self.manifest, defaults),
            **{name: tensor.numpy() for name, tensor in optional.items() if tensor is not None},
        }
        self._tensors: dict[str, np.ndarray] = {}

    def use(self, adapter: str | None) -> Fed:
        """Swap as a runtime does."""
        entries = self.manifest.adapters
        self._tensors = {} if adapter is None else read_tensors(self.bundle, adapter, entries[adapter])
        return self

    def snapshot(self) -> Arrays:
        """What the adapter in use feeds."""
        return {**self._empty, **self._tensors}

    def forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs by name."""
        return self.run_arrays(inputs, self.snapshot())

    def run_arrays(self, inputs: Arrays, active: Arrays) -> dict[str, np.ndarray]:
        """:meth:`forward` with what :meth:`snapshot` gave."""
        return self._graph.run({**active, **inputs})


def _read_defaults(bundle: Bundle, file: str) -> dict[str, np.ndarray]:
    with bundle.open(file) as opened:
        return read_onnx_adapter(Path(opened.load_path))[0]


class _Decoder:
    """The decoder of an encoder-decoder, as :class:`edgepeft.runtime.generation.encoder_decoder.Seq2Seq` runs it."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self.shapes = graph.shapes

    def slots(self, active: Arrays) -> Arrays:
        """What is fed beside the tokens and caches."""
        return active

    def step(self, feeds: Arrays, active: Arrays) -> dict[str, np.ndarray]:
        """One run of the decoder."""
        return self._graph.run({**active, **feeds})
