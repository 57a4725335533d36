"""``export --dry-run``: what an export would write, told from headers, without loading a weight or importing torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..adapters.checkpoint import Checkpoint, read_checkpoint
from ..errors import InputError
from ..units import MB
from ._manifest import check_asked

#: Peak memory of an export over the base's size in fp32, and what Python and torch take by themselves, in MB; measured on
#: SmolLM2-135M and MiniLM (README), rounded up.
MEMORY_FACTOR, MEMORY_LIBRARIES_MB = 3.0, 700.0
#: Most bytes of a safetensors header that are read: the format's own limit.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written, and about how large it would be in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export would do. Sizes are estimates from the checkpoint's headers; ``disk_mb`` is what it needs at its peak.

    ``free_mb`` is what the disk at the target has, ``replaces`` whether a bundle there would be replaced.
    """

    mode: str
    parameters: int
    files: tuple[PlannedFile, ...]
    memory_mb: float
    disk_mb: float
    free_mb: float
    replaces: bool

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.disk_mb <= self.free_mb


def plan_export(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    mode: Literal["swap", "merge", "bake"] = "swap",
) -> ExportPlan:
    """Tell what :func:`export` would write, how large, and what memory and disk it takes. Nothing is written or loaded.

    Args:
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get; they are read, and refused as an export would.
        out: The bundle's folder.
        mode: As :func:`export` takes it.

    Returns:
        The plan.

    Raises:
        InputError: A name, the base or the folder cannot be used.
        AdapterError: A checkpoint cannot be read.

    Example:
        >>> plan_export("org/model", {"reviews": "./reviews-lora"}, "bundle").bytes
        92537112
    """
    folder = Path(out)
    check_asked(adapters, mode, folder)
    checkpoints = {name: read_checkpoint(source) for name, source in adapters.items()}
    parameters = base_parameters(str(model))
    weights = PlannedFile("onnx/model.onnx_data", parameters * 4)
    if mode == "swap":
        files = [weights]
        for name, checkpoint in checkpoints.items():
            size = _adapter_bytes(checkpoint)
            files += [PlannedFile(f"adapters/{name}.{suffix}", size) for suffix in ("onnx_adapter", "onnx")]
    else:
        nested = len(adapters) > 1
        files = [PlannedFile(f"{name}/{weights.name}" if nested else weights.name, weights.bytes) for name in adapters]
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    total = sum(file.bytes for file in files)
    return ExportPlan(
        mode=mode,
        parameters=parameters,
        files=tuple(files),
        memory_mb=MEMORY_LIBRARIES_MB + MEMORY_FACTOR * weights.bytes / MB,
        disk_mb=(total + weights.bytes) / MB,  # the weights lie in a scratch folder as well until they are written
        free_mb=shutil.disk_usage(there).free / MB,
        replaces=(folder / "edgepeft.json").is_file(),
    )


def _adapter_bytes(checkpoint: Checkpoint) -> int:
    return 4 * sum(tensor.size for tensor in checkpoint.tensors.values())


def base_parameters(source: str) -> int:
    """How many numbers a base's checkpoint holds, from the headers of its safetensors files.

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
                return sum(get_safetensors_metadata(source).parameter_count.values())
            except Exception as error:  # no network, or no such file: the hub's library has a dozen types for it
                raise InputError(
                    f"{source}: its size cannot be told without fetching it ({str(error)[:200]})"
                ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        raise InputError(f"base model {source!r} has no config.json")
    if not files:
        raise InputError(f"{source} has no safetensors file, whose header tells its size; export it without --dry-run")
    return sum(_numbers(file) for file in files)


def _numbers(file: Path) -> int:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, file.stat().st_size):
            raise InputError(f"{file} is not a readable safetensors file (truncated or damaged?)")
        try:
            header = json.loads(opened.read(length))
            return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is not a readable safetensors file (truncated or damaged?): {error}") from error


def _product(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= int(size)
    return count
