"""``quantize``: another precision of the base in the same bundle, for all of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import runtime as runtimes
from ..bundle import Bundle, Variant, read_bundle, replacing
from ..data import Examples
from ..errors import BundleError, InputError
from ..quantize import recipe
from ..quantize.counts import Quantized, count_quantized, total
from ..quantize.merge_error import NOTABLE
from ._calibrate import ROWS, measure_ranges
from ._manifest import write_manifest
from ._web_graph import write_input_style


@dataclass(frozen=True)
class QuantizedBundle:
    """The bundle with its new variant, what was quantized, and the sizes of both variants' files in bytes."""

    bundle: Bundle
    variant: str
    quantized: Quantized
    bytes_before: int
    bytes_after: int
    #: For a base merged with an adapter: the relative error with which the adapter's change survives this rounding.
    merge_error: float | None = None

    @property
    def warning(self) -> str:
        """What rounding took of a merged adapter, in words; empty where that is little or nothing was merged."""
        if self.merge_error is None or self.merge_error < NOTABLE:
            return ""
        return (
            f"adapter {self.bundle.manifest.merged!r} is merged into these weights, and rounding to {self.variant} leaves its "
            f"change of them with a relative error of {self.merge_error:.2f} (0 is exact; from 1 on the noise of rounding is "
            "larger than the change). Exported with --mode swap and quantized then, it stays in fp32 beside the same base"
        )


def quantize(
    bundle: str | Path,
    variant: str,
    *,
    data: Mapping[str, Examples] | None = None,
    rows: int = ROWS,
    replace: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> QuantizedBundle:
    """Add a variant to a bundle, made from its fp32 one; adapters and slots are unchanged and serve both.

    ``data`` are texts by adapter (``"*"``: for all), of which ``rows`` an adapter are run to measure activations, for
    recipes that want their ranges as constants (``w8a16``). Raises :class:`InputError` for an unknown variant, one that
    exists (without ``replace``) or one that wants texts and has none, and :class:`BundleError` where the recipe quantized
    nothing or ONNX Runtime cannot open the result; the bundle then stays as it was.
    """
    rule = recipe(variant)
    opened = read_bundle(bundle)
    manifest = opened.manifest
    if variant in manifest.variants and not replace:
        raise InputError(f"{opened.path} already has a variant {variant!r}; replace it with --replace")
    if "fp32" not in manifest.variants:
        raise BundleError(
            f"{opened.path} has no fp32 variant to quantize, only {', '.join(manifest.variants)}: it was made from a file that is "
            "quantized already. Export the model itself, without --onnx, to choose a precision."
        )
    if data and not rule.calibrated:
        raise InputError(f"{variant} measures nothing beforehand: leave the data out")
    opened.verify(opened.variant_files("fp32"))
    apply, calibration = rule.apply, {}
    if rule.calibrated:
        ranges, counts = measure_ranges(opened, data or {}, rows=rows, announce=announce)
        apply, calibration = partial(rule.apply, ranges=ranges), {variant: {"texts": counts}}
    announce(f"quantizing to {variant}: {rule.summary}")
    with replacing(opened.path, keep=True) as folder:
        whole = manifest.variants["fp32"]
        old = manifest.variants.get(variant)
        for stale in old.files() if old is not None else ():
            (folder / stale).unlink(missing_ok=True)
        made = {file: rule.graph_file(file) for file in (whole.file, whole.decoder_file) if file is not None}
        for file, target in made.items():
            (folder / target).unlink(missing_ok=True)
            apply(folder / file, folder / target, manifest.slots)
        graphs = [ir.load(folder / target) for target in made.values()]
        counted = total(count_quantized(graph, manifest.slots) for graph in graphs)
        if counted.quantized == 0:
            raise BundleError(
                f"recipe {variant} quantized none of {counted.total} weights; the bundle was left as it was"
            )
        present = {name for graph in graphs for name in graph.graph.initializers}
        lost = sorted(set(manifest.slots.tensors()) - present)
        if lost:
            raise BundleError(f"recipe {variant} dropped slot {lost[0]}; the bundle was left as it was")
        entry = Variant(
            file=made[whole.file],
            decoder_file=made[whole.decoder_file] if whole.decoder_file is not None else None,
            data=tuple(
                f"onnx/{path.name}"
                for target in made.values()
                for path in sorted((folder / "onnx").glob(f"{Path(target).name}_data*"))
            ),
            slots=whole.slots,
            recipe=rule.summary,
            quantized_share=round(counted.share, 6),
        )
        remade = {*entry.files(), *(old.files() if old is not None else ())}
        known = {name: e for name, e in manifest.files.items() if name not in remade}
        changes: dict[str, Any] = {"variants": {**manifest.variants, variant: entry}}
        if calibration:
            before = manifest.provenance.get("calibration", {})
            changes["provenance"] = {**manifest.provenance, "calibration": {**before, **calibration}}
        staged = Bundle(path=folder, manifest=write_manifest(folder, manifest.model_copy(update=changes), known))
        runtimes.open(staged.path, variant=variant)
    if old is not None and old.input_file is not None:
        write_input_style(opened.path, variant, announce=announce)
    result = read_bundle(opened.path)
    return QuantizedBundle(
        bundle=result,
        variant=variant,
        quantized=counted,
        bytes_before=result.size(result.variant_files("fp32")),
        bytes_after=result.size(result.variant_files(variant)),
        merge_error=result.manifest.provenance.get("merge_error", {}).get(variant),
    )
