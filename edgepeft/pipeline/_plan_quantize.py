"""``quantize --dry-run``: the files, memory and time of a variant, told from the fp32 graph without loading a weight."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..bundle import Bundle, read_bundle
from ..quantize import recipe
from ..quantize.counts import count_quantized
from ..quantize.recipes import WHOLE
from ..quantize.sizes import planned_bytes
from ..units import MB
from ._calibrate import ROWS, check_texts
from ._calibration import held_bytes
from ._calibration_data import Data
from ._fitting import Fitting, choose_fitting, require_possible
from ._halves import whole_name
from ._mixed_variant import Goal
from ._plan import PlannedFile
from ._quantize import _check_wanted, _graphs, source_of
from ._quantize_room import memory_mb

#: CPU seconds on one core of a 2.x GHz server for a million weights; GPTQ's are for the 4,200 tokens that ship with edgepeft.
_SECONDS = {"int8": 0.05, "w8a16": 0.6, "q8": 0.1, "q4": 0.03, "q4 gptq": 0.5, "fp16": 0.5, "q4f16": 0.5}


#: What weights fitted to windows of sound take over those fitted to texts (benchmarks/speech.py, 52 windows).
_WINDOWS = 6


@dataclass(frozen=True)
class QuantizePlan:
    """What quantizing would do; sizes, memory and time are estimates.

    ``seconds`` is CPU time on one core, so that a busy machine takes longer.
    """

    variant: str
    recipe: str
    weights: int
    files: tuple[PlannedFile, ...]
    bytes_before: int
    memory_mb: float
    disk_mb: float
    free_mb: float
    seconds: float
    replaces: bool

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.disk_mb <= self.free_mb


def plan_quantize(
    bundle: str | Path,
    variant: str,
    *,
    data: Mapping[str, Data] | None = None,
    method: str | None = None,
    heal: int = 0,
    head_bits: int | None = None,
    layer_bits: int | None = None,
    goal: Goal | None = None,
    replace: bool = False,
) -> QuantizePlan:
    """Tell what :func:`quantize` would write, how large, and what it takes. Nothing is written, and no weight is loaded.

    Args:
        bundle: The bundle's folder.
        variant: As :func:`quantize` takes it, and so are the others.
        data: Texts, or rows of sound, by adapter; they are looked at, and refused as :func:`quantize` would.
        method: How ``q4`` rounds.
        heal: Rank of corrections.
        head_bits: Bits of a head that writes tokens.
        layer_bits: Bits of the other linear layers.
        goal: What bits are chosen for.
        replace: Replace a variant of that name.

    Returns:
        The plan. With a goal in divergence its size is that of the most bits that could be chosen.

    Raises:
        InputError: The call would be refused: the variant, its options or its data.
        BundleError: The bundle has no fp32 variant.

    Example:
        >>> plan_quantize("bundle", "int8").bytes
        23407040
    """
    rule = recipe(variant)
    opened = read_bundle(bundle)
    fitting = choose_fitting(
        opened, rule, data or {}, method=method, heal=heal, head_bits=head_bits, layer_bits=layer_bits, goal=goal
    )
    if rule.calibrated:
        check_texts(opened, data or {})
    begun = source_of(opened.manifest, rule)
    _check_wanted(opened.manifest, opened.path, variant, replace, begun)
    require_possible(opened, fitting, data or {}, ROWS)
    whole = opened.manifest.variants[begun]
    files, weights = [], 0
    for source in _graphs(whole).values():
        target = rule.graph_file(source if begun == WHOLE else whole_name(source, rule))
        if rule.halves == begun:
            halved, count = _halved(opened, source)
            weights += count
            files += [
                PlannedFile(target, (opened.path / source).stat().st_size),
                PlannedFile(f"{target}_data", halved),
            ]
            continue
        graph = ir.load(opened.path / source)
        count = count_quantized(graph, opened.manifest.slots).total
        weights += count
        own = (opened.path / source).stat().st_size
        files += [
            PlannedFile(target, own),
            PlannedFile(f"{target}_data", _size(variant, fitting, graph, opened, count)),
        ]
    if fitting.goal is not None and fitting.goal.bytes is not None:
        files = _within(files, fitting.goal.bytes)
    way = f"{variant} gptq" if fitting.method == "gptq" else variant
    before = sum(opened.manifest.files[name].bytes for name in whole.files())
    made = sum(file.bytes for file in files)
    beside = held_bytes(opened, data or {}, rows=ROWS) if fitting.method == "gptq" else 0
    return QuantizePlan(
        variant=variant,
        recipe=fitting.summary(rule),
        weights=weights,
        files=tuple(files),
        bytes_before=before,
        memory_mb=memory_mb(fitting.method, 4 * weights, goal=goal is not None),
        disk_mb=(made + before + beside) / MB,  # it is made beside a copy of the fp32 graph
        free_mb=shutil.disk_usage(opened.path).free / MB,
        seconds=_SECONDS.get(way, 0.1) * weights / 1e6 * (3 if goal else 1) * (_WINDOWS if beside else 1),
        replaces=variant in opened.manifest.variants,
    )


def _halved(bundle: Bundle, source: str) -> tuple[int, int]:
    """Bytes of a graph's weights with its float32 in float16, and how many weights it holds; slots are none of them."""
    graph = ir.load(bundle.path / source)
    slots = bundle.manifest.slots.tensors()
    tensors = [v.const_value for name, v in graph.graph.initializers.items() if name not in slots]
    size = sum(t.nbytes // (2 if t.dtype == ir.DataType.FLOAT else 1) for t in tensors if t is not None)
    return size, count_quantized(graph, bundle.manifest.slots).total


def _within(files: list[PlannedFile], size: int) -> list[PlannedFile]:
    """The same files with ``size`` bytes in all: what the graphs leave is shared out to their weights as these are large."""
    graphs, weights = (sum(file.bytes for file in part) for part in (files[::2], files[1::2]))
    share = (size - graphs) / max(1, weights)
    return [
        PlannedFile(file.name, round(file.bytes * share)) if place % 2 else file for place, file in enumerate(files)
    ]


def _size(variant: str, fitting: Fitting, graph: ir.Model, bundle: Bundle, count: int) -> int:
    """Bytes of the weights file of a graph with ``count`` weights; within a size in bytes that is shared out later."""
    goal = fitting.goal
    if goal is not None:
        return round(count * (goal.bits or 9.0) / 8)
    return planned_bytes(
        graph, bundle.manifest.slots, variant, method=fitting.method, heal=fitting.heal, head_bits=fitting.head_bits,
        layer_bits=fitting.layer_bits,
    )  # fmt: skip
