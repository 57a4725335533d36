"""A checkpoint's tensors, mapped from their safetensors files and checked before a number is used."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
#: Most bytes of a header that are read: safetensors' own limit.
_MAX_HEADER = 100_000_000
#: Float types that can be read, and how many bytes a number takes.
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class StoredCheckpoint:
    """The tensors of a checkpoint by name, as they are stored: bfloat16, float16 or float32, backed by their files.

    Nothing is in memory until it is read, and the system may drop what was.
    """

    folder: Path
    arrays: Mapping[str, np.ndarray]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(array.nbytes for array in self.arrays.values())


def widen(array: np.ndarray) -> np.ndarray:
    """``array`` as float32; the same array where it is that already.

    Example:
        >>> widen(np.array([1.5], np.float16)).dtype
        dtype('float32')
    """
    if array.dtype.name == "bfloat16":  # the upper half of a float32: several times as fast as a cast
        wide = array.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return array.astype(np.float32, copy=False)


def open_checkpoint(folder: Path) -> StoredCheckpoint:
    """Map every tensor of a folder's safetensors files, one file or shards with an index.

    Args:
        folder: Where ``config.json`` lies.

    Returns:
        The tensors.

    Raises:
        InputError: There are no such files, a shard is missing, truncated or damaged, or does not hold what the index says,
            or a tensor has a type that is not read (the type and the tensor are named).
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}")
        return StoredCheckpoint(folder, _tensors(folder / SINGLE))
    where = _weight_map(index)
    files: dict[str, dict[str, np.ndarray]] = {}
    for file in sorted(set(where.values())):
        path = folder / file
        if not path.is_file():
            held = sum(1 for each in where.values() if each == file)
            raise InputError(
                f"{folder} lacks {file}, the shard that {INDEX} lists for {held} of {len(where)} tensors; fetch it again"
            )
        files[file] = _tensors(path)
    for name, file in where.items():
        if name not in files[file]:
            raise InputError(
                f"{folder}/{file} does not hold {name}, which {INDEX} lists there; the two are of different checkpoints"
            )
    for file, tensors in files.items():
        other = next((name for name in tensors if where.get(name) != file), None)
        if other is not None:
            raise InputError(
                f"{folder}/{file} holds {other}, which {INDEX} does not list there; the two are of different checkpoints"
            )
    return StoredCheckpoint(folder, {name: files[file][name] for name, file in where.items()})


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        good = isinstance(where, dict) and bool(where) and all(isinstance(file, str) for file in where.values())
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is not a readable index: {error}") from error
    if not good:
        raise InputError(f"{index} is not a readable index: its weight_map names no file for each tensor")
    outside = next((file for file in where.values() if Path(file).name != file), None)
    if outside is not None:
        raise InputError(f"{index} lists {outside!r}, which is no file of this folder")
    return where


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise InputError(
                f"{path} is not a readable safetensors file: its header does not fit into its {size:,} bytes (truncated?)"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from error
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + length
    found = {
        name: _tensor(path, name, entry, buffer, start) for name, entry in header.items() if name != "__metadata__"
    }
    if not found:
        raise InputError(f"{path} holds no tensor")
    return found


def _tensor(path: Path, name: str, entry: Any, buffer: mmap.mmap, start: int) -> np.ndarray:
    try:
        stored, shape, (begin, end) = entry["dtype"], tuple(int(dim) for dim in entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: its header says no type, shape and place of {name}"
        ) from error
    if stored not in _FLOATS:
        raise InputError(
            f"{path}: {name} is stored as {stored}; of floats {', '.join(_FLOATS)} are read. Save the model in one of them: "
            "model.to(torch.bfloat16).save_pretrained(FOLDER)"
        )
    numbers = math.prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end or end - begin != numbers * _FLOATS[stored]:
        raise InputError(
            f"{path} is not a readable safetensors file: {name} {list(shape)} does not take {end - begin:,} bytes as {stored}"
        )
    if start + end > len(buffer):
        raise InputError(
            f"{path} is truncated: {name} ends at byte {start + end:,} of {len(buffer):,}. Fetch or copy the file again"
        )
    return np.frombuffer(buffer, _numpy(stored), numbers, start + begin).reshape(shape)


def _numpy(stored: str) -> np.dtype[Any]:
    if stored == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({"F32": np.float32, "F16": np.float16}[stored])
