"""How large a base is, told from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError

#: Most bytes of a safetensors header that are read: the format's own limit.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class CheckpointSizes:
    """How many numbers a checkpoint holds: in all, in matrices, and in its largest group of tensors and largest tensor.

    A group is a layer: tensors whose names agree up to their first number. Of a base that only the hub knows the total is known.
    """

    parameters: int
    in_matrices: int
    largest_layer: int
    largest_tensor: int
    #: Of every tensor, by its name; empty for a base that only the hub knows.
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict, compare=False)


def checkpoint_sizes(source: str) -> CheckpointSizes:
    """The sizes of a base.

    Raises:
        InputError: There is no such base, or it has no safetensors file, whose header says it.
    """
    from ..base.load import check_source

    check_source(source)
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import get_safetensors_metadata, snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=["config.json"]))
        if not [*folder.glob("*.safetensors")]:
            try:
                total = sum(get_safetensors_metadata(source).parameter_count.values())
            except Exception as error:  # no network, or no such file: the hub's library has a dozen types for it
                raise InputError(
                    f"{source}: its size cannot be told without fetching it ({str(error)[:200]})"
                ) from error
            return CheckpointSizes(total, total, total // 16, total // 4)
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        raise InputError(f"base model {source!r} has no config.json")
    if not files:
        raise InputError(f"{source} has no safetensors file, whose header tells its size; export it without --dry-run")
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    layers: dict[str, int] = {}
    for name, count in counts.items():
        parts = name.split(".")
        number = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
        if number is not None:
            group = ".".join(parts[: number + 1])
            layers[group] = layers.get(group, 0) + count
    return CheckpointSizes(
        parameters=sum(counts.values()),
        in_matrices=sum(count for name, count in counts.items() if len(shapes[name]) > 1),
        largest_layer=max(layers.values(), default=max(counts.values(), default=0)),
        largest_tensor=max(counts.values(), default=0),
        shapes=shapes,
    )


def _shapes(file: Path) -> dict[str, list[int]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, file.stat().st_size):
            raise InputError(f"{file} is not a readable safetensors file (truncated or damaged?)")
        try:
            header = json.loads(opened.read(length))
            return {
                name: [int(dim) for dim in entry["shape"]] for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is not a readable safetensors file (truncated or damaged?): {error}") from error
