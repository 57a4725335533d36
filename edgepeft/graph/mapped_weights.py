"""Keeping a graph's weights in a file instead of in memory."""

from __future__ import annotations

import mmap
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import CaptureError
from ..scratch import room


class _Mapped(mmap.mmap):
    """A mapping that can be referred to weakly."""


@dataclass(frozen=True)
class Spilled:
    """A graph whose weights are mapped from a scratch file, which lives as long as any array taken from it."""

    graph: ir.Model
    #: The graph as ONNX Runtime can open it.
    path: Path
    _buffer: _Mapped
    _places: Mapping[str, tuple[np.dtype[Any], tuple[int, ...], int]]
    _copies: weakref.WeakSet[_Mapped] = field(default_factory=weakref.WeakSet)

    def forget(self, *, copies: bool = False) -> None:
        """Let the system take back the pages that were read; they come from the file again when they are used.

        ``copies`` gives back :meth:`writable` weights as well; what was written into them is lost.
        """
        for buffer in (self._buffer, *(self._copies if copies else ())):
            if hasattr(mmap, "MADV_DONTNEED"):
                buffer.madvise(mmap.MADV_DONTNEED)

    def writable(self) -> dict[str, np.ndarray]:
        """The spilled weights by initializer, mapped once more; who writes into one gets pages of its own."""
        with self.path.with_name(f"{self.path.name}_data").open("rb") as file:
            buffer = _Mapped(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._copies.add(buffer)
        return {name: _view(buffer, *place) for name, place in self._places.items()}


def _view(buffer: _Mapped, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> np.ndarray:
    return np.frombuffer(buffer, dtype, int(np.prod(shape)), offset).reshape(shape)


def spill(graph: ir.Model) -> Spilled:
    """Write ``graph``'s weights to a scratch file and map them from there, so that they need not be held in memory."""
    with room():
        folder = Path(tempfile.mkdtemp(prefix="edgepeft-"))
        path, data = folder / "model.onnx", folder / "model.onnx_data"
        try:
            ir.save(graph, path, external_data=data.name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    mapped = ir.load(path)
    places = {
        name: (tensor.dtype.numpy(), tuple(tensor.shape.numpy()), tensor.offset or 0)
        for name, value in mapped.graph.initializers.items()
        if isinstance(tensor := value.const_value, ir.ExternalTensor) and tensor.size
    }
    if not places:
        shutil.rmtree(folder)
        raise CaptureError("the graph has no weights")
    with data.open("rb") as file:
        buffer = _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
    weakref.finalize(buffer, shutil.rmtree, folder, ignore_errors=True)
    for name, place in places.items():
        mapped.graph.initializers[name].const_value = ir.tensor(_view(buffer, *place), name=name)
    return Spilled(mapped, path, buffer, places)
