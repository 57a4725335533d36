"""edgepeft's custom operators for ONNX Runtime (``edgepeft[kernels]``): found, checked, and opened over a twin of the graph."""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..bundle.slots import LinearSlot
from ..errors import InputError, MissingExtraError
from .buffers import as_values, packed
from .twin import VERSION, reach_name

UseKernels = Literal["auto", "require", "off"]
Factors = Literal["fp32", "fp16"]

_PACKAGE = "edgepeft_kernels"
_WHOLE, _NOTHING = -1, -2  # of targets/kernels/src/low_rank.hpp


class KernelWarning(UserWarning):
    """The installed kernels cannot be used, so the standard graph is."""


@dataclass(frozen=True)
class KernelLibrary:
    """A library that fits: its path, and the instructions that it chose for this processor (avx512, avx2, portable)."""

    path: Path
    isa: str


@dataclass(frozen=True)
class Kernels:
    """What a model's session runs its slots with.

    Attributes:
        isa: The instructions: avx512, avx2 or portable (on aarch64: NEON).
        library: The library's path.
        slots: The slots that are one node each.
        factors: In which type adapters are read.
    """

    isa: str
    library: Path
    slots: tuple[LinearSlot, ...]
    factors: Factors = "fp32"

    def __repr__(self) -> str:
        return f"<Kernels {self.isa}: {len(self.slots)} slots, factors in {self.factors}>"

    def feeds(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a run is fed beside, or in place of, an adapter's slot tensors: where B has numbers, and factors in fp16.

        Args:
            values: The adapter's slot tensors as OrtValues by name.

        Returns:
            OrtValues by the names of the twin's inputs.
        """
        found: dict[str, np.ndarray] = {}
        for slot in self.slots:
            if slot.b not in values:
                continue
            rows = values[slot.b].shape()[0]
            half = self.factors == "fp16"
            b = values[slot.b].numpy() if half or len(slot.parts) > 1 or rows > 1 else None
            if half and b is not None:
                found |= {slot.a: as_half(values[slot.a].numpy(), slot.a), slot.b: as_half(b, slot.b)}
            if b is not None and (len(slot.parts) > 1 or rows > 1):
                found[reach_name(slot)] = reach_of(b, slot)
        return as_values(packed(found, found))


def as_half(array: np.ndarray, name: str) -> np.ndarray:
    """A factor in float16; :class:`InputError` where it holds numbers too large for it."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(array).all():
        raise InputError(
            f"{name} holds {np.abs(array).max():.3g}, too large for factors='fp16'; open with factors='fp32'"
        )
    return half


def reach_of(b: np.ndarray, slot: LinearSlot) -> np.ndarray:
    """The part of B's columns in which each rank's row has numbers: int32 ``[adapters, rank]``, -1: several, -2: none."""
    offsets = sorted({part.offset for part in slot.parts})
    if offsets[0] != 0:
        offsets = [0]
    ends = [*offsets[1:], b.shape[2]]
    filled = np.stack([b[:, :, begin:end].any(axis=2) for begin, end in zip(offsets, ends, strict=True)])
    count = filled.sum(axis=0)
    reach = np.where(count == 1, filled.argmax(axis=0), np.where(count == 0, _NOTHING, _WHOLE))
    return np.ascontiguousarray(reach, np.int32)


def check_use(kernels: object, factors: object) -> None:
    """Raise :class:`InputError` for words that ``runtime.open`` does not know."""
    for name, value, known in (("kernels", kernels, UseKernels), ("factors", factors, Factors)):
        if value not in get_args(known):
            raise InputError(f"{name} is one of {', '.join(get_args(known))}, found {value!r:.80}")
    if factors != "fp32" and kernels != "require":
        raise InputError(f"factors={factors!r} needs the kernels: open with kernels='require'")


def library_for(kernels: UseKernels) -> KernelLibrary | None:
    """The installed library, or ``None`` where there is none or none is wanted.

    Raises:
        MissingExtraError: ``kernels`` is ``"require"`` and there is none that fits.
    """
    if kernels == "off":
        return None
    found = _installed()
    if isinstance(found, KernelLibrary):
        return found
    if kernels == "require":
        raise MissingExtraError(
            f"kernels='require': {found or 'no kernels are installed: pip install edgepeft-kernels'}"
        )
    if found is not None:
        say_once(found)
    return None


@cache
def _installed() -> KernelLibrary | str | None:
    """The library, what is wrong with it, or ``None`` where the package is not installed."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return None
    try:
        package = importlib.import_module(_PACKAGE)
        path = Path(package.library())
        loaded = ctypes.CDLL(str(path))
        abi = int(loaded.edgepeft_kernels_abi())
        loaded.edgepeft_kernels_isa.restype = ctypes.c_char_p
        isa = str(loaded.edgepeft_kernels_isa().decode("ascii"))
    except (OSError, AttributeError, ImportError, ValueError) as error:
        return f"the installed edgepeft-kernels cannot be loaded here: {str(error)[:300]}"
    if abi != VERSION:
        return (
            f"the installed edgepeft-kernels ({path}) has operators of version {abi}, and this edgepeft uses version {VERSION}: "
            "install the two of one release"
        )
    return KernelLibrary(path, isa)


_said: set[str] = set()


def say_once(what: str) -> None:
    """Warn that the standard graph is used, once for each reason in a process."""
    if what not in _said:
        _said.add(what)
        warnings.warn(
            f"{what}. The standard graph is used, which is slower and computes the same.", KernelWarning, stacklevel=3
        )
