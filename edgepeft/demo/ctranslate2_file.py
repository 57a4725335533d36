"""Reading CTranslate2's ``model.bin``: a header, then named arrays one after the other, then second names of arrays.

Layout of binary version 6, little-endian, from ``ModelSpec._serialize`` in ctranslate2's ``specs/model_spec.py``::

    u32 version   string spec   u32 revision
    u32 count     count x (string name, u8 rank, rank x u32 dimension, u8 type, u32 bytes, the bytes)
    u32 count     count x (string second_name, string name)

where a string is a u16 length, that many bytes of UTF-8, the last of them zero.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AssetError

VERSION = 6
#: numpy's types by CTranslate2's numbers for them; bfloat16 (5) is not read.
TYPES: dict[int, str] = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_arrays(file: Path, spec: str) -> dict[str, NDArray[Any]]:
    """Every array of ``file`` by each of its names, mapped from the file rather than read.

    Args:
        file: a ``model.bin`` of binary version 6.
        spec: the kind of model that it must hold, such as ``WhisperSpec``.

    Returns:
        Read-only arrays in the type they are stored in, by name, such as ``decoder/layer_0/ffn/linear_0/weight``.
        An array with a second name is there under both.

    Raises:
        AssetError: another version, another kind of model, a type that is not read here, or a file cut short.

    Example::

        read_arrays(Path("model.bin"), "WhisperSpec")["encoder/conv1/weight"].shape  # (512, 80, 3)
    """
    reader = _Reader(file)
    version, name = reader.number("I"), reader.string()
    if (version, name) != (VERSION, spec):
        raise AssetError(
            f"{file} is version {version} of a CTranslate2 file with a {name!r}; expected version {VERSION}, {spec!r}"
        )
    reader.number("I")  # the revision of the spec
    arrays = dict(reader.array() for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        second, first = reader.string(), reader.string()
        if first not in arrays:
            raise AssetError(f"{file}: {second!r} is a second name of {first!r}, which the file does not hold")
        arrays[second] = arrays[first]
    if reader.place != len(reader.content):
        raise AssetError(f"{file}: {len(reader.content) - reader.place} bytes follow the last name; expected none")
    return arrays


class _Reader:
    """A place in the mapped file, and what is read from there on."""

    def __init__(self, file: Path) -> None:
        self.file, self.place = file, 0
        self.content = np.memmap(file, dtype=np.uint8, mode="r")

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next ``size`` bytes."""
        if self.place + size > len(self.content):
            raise AssetError(
                f"{self.file} ends at byte {len(self.content)}, inside an item that goes to {self.place + size}; "
                "it was cut short"
            )
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, form: str) -> int:
        """The next whole number; ``form`` is a letter of :mod:`struct`."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)).tobytes())[0])

    def string(self) -> str:
        """The next string."""
        text = self.take(self.number("H")).tobytes()
        if not text.endswith(b"\0"):
            raise AssetError(f"{self.file}: the string before byte {self.place} does not end with a zero byte")
        return text[:-1].decode()

    def array(self) -> tuple[str, NDArray[Any]]:
        """The next array with its name."""
        name = self.string()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind, size = self.number("B"), self.number("I")
        if kind not in TYPES:
            raise AssetError(f"{self.file}: {name!r} is of type {kind}; types that are read: {sorted(TYPES)}")
        values = self.take(size).view(TYPES[kind])
        if values.size != np.prod(shape, dtype=np.int64):
            raise AssetError(f"{self.file}: {name!r} has {values.size} numbers, expected {shape}")
        return name, values.reshape(shape)
