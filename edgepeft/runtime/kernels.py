"""edgepeft's custom operators for ONNX Runtime (``edgepeft[kernels]``): found, checked, and opened over a twin of the graph."""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..bundle.slots import LinearSlot
from ..errors import InputError, MissingExtraError
from .buffers import as_values, packed
from .kernel_adapter import Factors, join_adapters, pack_adapter, pack_rows
from .twin import VERSION, Twin

UseKernels = Literal["auto", "require", "off"]

_PACKAGE = "edgepeft_kernels"


class KernelWarning(UserWarning):
    """The installed kernels cannot be used, so the standard graph is."""


@dataclass(frozen=True)
class KernelLibrary:
    """A library that fits: its path, and the instructions that it chose for this processor (avx512, avx2, portable).

    ``matmul`` are those for quantized matrices (avx512vnni); empty where ONNX Runtime multiplies by them.
    """

    path: Path
    isa: str
    matmul: str = ""

    def __str__(self) -> str:
        return f"{self.isa} for slots, {self.matmul or 'ONNX Runtime'} for quantized matrices"


@dataclass(frozen=True)
class Kernels:
    """What a model's session runs its slots with.

    Attributes:
        isa: The instructions: avx512, avx2 or portable (on aarch64: NEON).
        library: The library's path.
        slots: The slots that are one node each.
        factors: In which type adapters are read.
        adapter: The twin's input that takes an adapter in one piece.
        rows: The twin's input that says where each row's adapter begins in it.
        matrices: The quantized matrices that are multiplied by where they lie in their file.
    """

    isa: str
    library: Path
    slots: tuple[LinearSlot, ...]
    factors: Factors = "fp32"
    adapter: str = ""
    rows: str = ""
    matrices: int = 0

    def __repr__(self) -> str:
        matrices = f", {self.matrices} quantized matrices" if self.matrices else ""
        return f"<Kernels {self.isa}: {len(self.slots)} slots, factors in {self.factors}{matrices}>"

    @classmethod
    def of(cls, library: KernelLibrary, twin: Twin, factors: Factors) -> Kernels:
        """Those of a twin."""
        return cls(library.isa, library.path, twin.slots, factors, twin.adapter, twin.rows, twin.matrices)

    @cached_property
    def taken(self) -> frozenset[str]:
        """The slot tensors that come in one piece; others are inputs of the twin as they are of the graph."""
        return frozenset(name for slot in self.slots for name in (slot.a, slot.b))

    def pieces(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the twin's nodes take in place of the tensors of :attr:`taken`.

        Args:
            tensors: An adapter's slot tensors by name; ``adapter_batch`` is 1, or each row of a batch has its own.

        Returns:
            Arrays by the names of the twin's inputs; none where the adapter edits none of the slots.

        Raises:
            InputError: A factor holds what the type that was asked for cannot.
        """
        mine = {name: array for name, array in tensors.items() if name in self.taken}
        if not mine:
            return {}
        if all(len(array) == 1 for array in mine.values()):
            return {self.adapter: pack_adapter(mine, self.slots, self.factors)}
        whole, starts = pack_rows(mine, self.slots, self.factors)
        return {self.adapter: whole, self.rows: starts}

    def resident(self, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray | None]:
        """What a run is fed for an adapter of the bundle, as OrtValues; and its piece, which batches join with others'."""
        pieces = self.pieces(tensors)
        rest = {name: array for name, array in tensors.items() if name not in self.taken}
        return as_values({**packed(rest, rest), **pieces}), pieces.get(self.adapter)

    def mixed(self, pieces: Sequence[np.ndarray | None]) -> dict[str, Any]:
        """What a batch is fed whose rows have these pieces, in part the same ones; ``None``: a row without."""
        each = {id(piece): piece for piece in pieces if piece is not None}
        if not each:
            return {}
        places = {key: place for place, key in enumerate(each)}
        rows = [None if piece is None else places[id(piece)] for piece in pieces]
        whole, starts = join_adapters(list(each.values()), rows)
        return as_values({self.adapter: whole, self.rows: starts})


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


def installed_kernels() -> str:
    """What the installed kernels run with, in words, or what is wrong with them; empty where there are none."""
    return str(_installed() or "")


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
        matmul = ""
        if abi == VERSION:
            loaded.edgepeft_kernels_matmul.restype = ctypes.c_char_p
            matmul = str(loaded.edgepeft_kernels_matmul().decode("ascii"))
    except (OSError, AttributeError, ImportError, ValueError) as error:
        return f"the installed edgepeft-kernels cannot be loaded here: {str(error)[:300]}"
    if abi != VERSION:
        return (
            f"the installed edgepeft-kernels ({path}) has operators of version {abi}, and this edgepeft uses version {VERSION}: "
            "install the two of one release"
        )
    return KernelLibrary(path, isa, matmul)


_said: set[str] = set()


def say_once(what: str) -> None:
    """Warn that the standard graph is used, once for each reason in a process."""
    if what not in _said:
        _said.add(what)
        warnings.warn(
            f"{what}. The standard graph is used, which is slower and computes the same.", KernelWarning, stacklevel=3
        )
