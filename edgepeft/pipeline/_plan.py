"""``export --dry-run``: what an export would write, told from headers, without loading a weight or importing torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..adapters.checkpoint import read_checkpoint
from ..errors import InputError
from ..quantize import recipe
from ..quantize.recipes import WHOLE
from ..quantize.sizes import IN_GRAPH, rounded_bytes
from ..units import MB
from ._adapter_sizes import adapter_bytes
from ._checkpoint_sizes import CheckpointSizes, checkpoint_sizes
from ._manifest import check_asked
from ._room import free_disk_mb, free_memory_mb
from ._stored_adapters import Wanted

#: What Python, torch and ONNX Runtime take by themselves, in MB.
MEMORY_LIBRARIES_MB = 700.0
#: Peak memory over the base's size in fp32 where it is held as a whole: 1.3 times in memory of its own and up to 1.1 mapped from
#: files for a shape of 0.5 billion parameters, twice in all for one of 1.24 (benchmarks/scale.py).
MEMORY_FACTOR = 2.4
#: Memory of its own where the base is read block by block, in MB: libraries, logits and caches of the prompts that are compared. On
#: top stand copies of the largest layer in fp32, or the weights of a session over the largest variant once more in the kernels'
#: layout, of a large variant those of one part: 1.6 GB for 0.5 billion parameters in q4, 1.9 GB for 1.24.
STREAMED_MB, LAYER_FACTOR, SESSION_FACTOR = 1100.0, 2.5, 1.15
#: Bytes of weights that one session holds at most: a larger variant is compared part by part (``validate.streamed.SMALL``).
LARGEST_SESSION = 500_000_000
#: Bytes of a language model in fp32 from which on it is read block by block: a smaller one is exported sooner as a whole.
STREAMED_FROM = 200_000_000
#: Context of a language model where nobody asks for another (``base.capture.CONTEXT``, which a plan need not import).
_CONTEXT = 8192
#: Processor seconds for a billion parameters: in memory, and block by block for each variant.
_SECONDS, _STREAMED_SECONDS = 190.0, 110.0


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written, and about how large it would be in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export would do. Sizes are estimates from the checkpoint's headers; ``disk_mb`` is what it needs at its peak.

    ``free_mb`` is what the disk at the target has, ``replaces`` whether a bundle there would be replaced. ``free_memory_mb`` is
    ``None`` where the system does not say. ``minutes`` are of this machine's cores, with nothing else on them.
    """

    mode: str
    parameters: int
    files: tuple[PlannedFile, ...]
    memory_mb: float
    disk_mb: float
    free_mb: float
    replaces: bool
    variants: tuple[str, ...] = (WHOLE,)
    #: Whether the base is read block by block.
    streamed: bool = False
    minutes: float = 0.0
    free_memory_mb: float | None = None

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def fits(self) -> bool:
        """Whether the disk and the memory have room."""
        return self.disk_mb <= self.free_mb and self.memory_mb <= (self.free_memory_mb or float("inf"))

    def __str__(self) -> str:
        how = "block by block" if self.streamed else "in memory"
        return (
            f"{self.parameters / 1e9:.2f} billion parameters to {', '.join(self.variants)}, {how}: about "
            f"{self.memory_mb / 1e3:.1f} GB of memory, {self.disk_mb / 1e3:.2f} GB of disk, {self.minutes:.1f} minutes"
        )

    def require_room(self, out: Path) -> None:
        """Raise :class:`InputError` where the export would run out of memory or disk."""
        if self.disk_mb > self.free_mb:
            raise InputError(
                f"{out}: the export takes about {self.disk_mb / 1e3:.1f} GB of disk, and {self.free_mb / 1e3:.1f} GB are free "
                "there. Free some, or choose another --out"
            )
        if self.free_memory_mb is not None and self.memory_mb > self.free_memory_mb:
            raise InputError(
                f"{out}: the export takes about {self.memory_mb / 1e3:.1f} GB of memory, and {self.free_memory_mb / 1e3:.1f} GB "
                "are free. Close what takes it, ask for one --variant at a time, or export on a machine with more"
            )


def plan_export(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    mode: Literal["swap", "merge", "bake"] = "swap",
    variants: Sequence[str] = (),
    form: Wanted = "fp32",
    streamed: bool | None = None,
) -> ExportPlan:
    """Tell what :func:`export` would write, how large, and what memory and disk it takes. Nothing is written or loaded.

    Args:
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get; they are read, and refused as an export would.
        out: The bundle's folder.
        mode: As :func:`export` takes it.
        variants: As :func:`export_variants` takes them; fp32 by default.
        form: How adapters are stored, as :func:`store_adapters` takes it; ``"auto"`` is planned as fp32, the most it may take.
        streamed: Whether the base is read block by block; by default a language model's is, for variants or a large fp32.

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
    sizes = checkpoint_sizes(str(model))
    wanted = tuple(dict.fromkeys(variants)) or (WHOLE,)
    if streamed is None:
        large = bool(variants) or 4 * sizes.parameters >= STREAMED_FROM
        streamed = large and mode == "swap" and continues_texts(str(model))
    tables = rotary_bytes(str(model))
    weights = {variant: _bytes_of(variant, sizes) + tables for variant in wanted}
    named = [PlannedFile(_weights_file(variant), size) for variant, size in weights.items()]
    if mode == "swap":
        files = list(named)
        for name, checkpoint in checkpoints.items():
            stored = adapter_bytes(checkpoint, form, sizes.shapes)
            files += [PlannedFile(f"adapters/{name}.{suffix}", size) for suffix, size in stored.items()]
    else:
        nested = len(adapters) > 1
        files = [
            PlannedFile(f"{name}/{each.name}" if nested else each.name, each.bytes)
            for name in adapters
            for each in named
        ]
    total, whole = sum(file.bytes for file in files), 4 * sizes.parameters
    if streamed:
        compared = min(LARGEST_SESSION, max((size for name, size in weights.items() if name != WHOLE), default=0))
        memory = STREAMED_MB + max(4 * LAYER_FACTOR * sizes.largest_layer, SESSION_FACTOR * compared) / MB
        disk, seconds = total, _STREAMED_SECONDS * len(wanted)
    else:
        memory = MEMORY_LIBRARIES_MB + MEMORY_FACTOR * whole / MB
        # The weights lie in a scratch folder as well until they are written, and a variant is made of fp32.
        disk, seconds = total + (whole if wanted == (WHOLE,) else 2 * whole), _SECONDS
    return ExportPlan(
        mode=mode,
        parameters=sizes.parameters,
        files=tuple(files),
        memory_mb=memory,
        disk_mb=disk / MB,
        free_mb=free_disk_mb(folder),
        replaces=(folder / "edgepeft.json").is_file(),
        variants=wanted,
        streamed=streamed,
        minutes=(15 + seconds * sizes.parameters / 1e9 / min(4, os.cpu_count() or 1)) / 60,
        free_memory_mb=free_memory_mb(),
    )


def _bytes_of(variant: str, sizes: CheckpointSizes) -> int:
    """About what the weights of a variant take."""
    if variant == WHOLE:
        return 4 * sizes.parameters
    if not sizes.shapes:
        kept = 4 * (sizes.parameters - sizes.in_matrices)
        return round(recipe(variant).weight_bytes * sizes.in_matrices) + kept
    vectors = [4 * math.prod(shape) for shape in sizes.shapes.values() if len(shape) < 2]
    kept = sum(size for size in vectors if size > IN_GRAPH)
    matrices = [(math.prod(shape[:-1]), shape[-1]) for shape in sizes.shapes.values() if len(shape) > 1]
    return sum(rounded_bytes(variant, rows, columns) for rows, columns in matrices) + kept


def rotary_bytes(source: str) -> int:
    """About what the rotary tables of a language model take: a sine and a cosine for each place of its context."""
    if not continues_texts(source):
        return 0
    config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    heads, hidden, context = (
        config.get(key) for key in ("num_attention_heads", "hidden_size", "max_position_embeddings")
    )
    rotates = config.get("rope_theta") or config.get("rope_parameters")
    if not (rotates and heads and hidden and context):
        return 0
    width = int((config.get("head_dim") or hidden // heads) * float(config.get("partial_rotary_factor") or 1))
    own = 2 if config.get("rope_local_base_freq") else 1  # sliding layers rotate by frequencies of their own
    return own * 2 * 4 * min(int(context), _CONTEXT) * (width // 2)


def _weights_file(variant: str) -> str:
    return f"{'onnx/model.onnx' if variant == WHOLE else recipe(variant).graph_file('onnx/model.onnx')}_data"


def streams_whole(source: str) -> bool:
    """Whether fp32 of a base is exported block by block where nobody asks for it: a language model's from ``STREAMED_FROM`` on."""
    if not continues_texts(source):
        return False
    try:
        return 4 * checkpoint_sizes(source).parameters >= STREAMED_FROM
    except InputError:  # no safetensors file tells it: the export says what is wrong, if anything
        return False


def continues_texts(source: str) -> bool:
    """Whether a folder's config names a language model that continues texts."""
    try:
        names = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return False
    return str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))
