"""What an executor says of itself where the GPU that is there decides it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol


class FoundGpu(Protocol):
    """A GPU: whether a program on the CPU stands in for one, and whether it computes in float16."""

    @property
    def software(self) -> bool:
        """Whether it is a program on the CPU."""

    @property
    def halves(self) -> bool:
        """Whether it computes in float16 (``shader-f16``)."""


class GpuTraits(ABC):
    """Of an executor that computes on the GPU that ``_gpu`` finds."""

    @property
    @abstractmethod
    def _gpu(self) -> FoundGpu | None:
        """The GPU; ``None`` where there is none."""

    @property
    def emulated(self) -> bool:
        """Whether the GPU is a program on the CPU."""
        gpu = self._gpu
        return gpu is not None and gpu.software

    @property
    def halves(self) -> bool:
        """Whether the GPU computes in float16, as variants in half precision need."""
        gpu = self._gpu
        return gpu is not None and gpu.halves

    @property
    def rows(self) -> int:
        """Few where the GPU is a program on the CPU: a row of MiniLM takes it a second or more."""
        return 8 if self.emulated else 200
