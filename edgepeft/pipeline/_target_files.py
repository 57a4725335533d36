"""``stage_for``: the files that a target gets of a bundle, of the first of its variants that suits and fits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, Manifest, Variant, read_bundle
from ..devices.checks.static import variant_facts
from ..devices.place import deployed_mb
from ..errors import BundleError, InputError, TargetError
from ..quantize.recipes import RECIPES
from ..targets import Target
from ._calibration_data import Data
from ._calibration_runs import can_calibrate
from ._edit import copy_files
from ._embedding import embeddings_in_ort_format
from ._manifest import write_manifest
from ._ort_format import convert_to_ort
from ._quantize import quantize
from ._web_graph import write_input_style

Announce = Callable[[str], None]


class _UnsuitableError(Exception):
    """Why a target passes a variant over."""


@dataclass(frozen=True)
class Staged:
    """A bundle with one variant, written for a target; ``notes`` say why variants before it were passed over."""

    bundle: Bundle
    variant: str
    size_mb: float
    notes: tuple[str, ...]


def stage_for(
    opened: Bundle,
    target: Target,
    folder: Path,
    *,
    data: Mapping[str, Data] | None,
    announce: Announce,
) -> Staged:
    """Write below ``folder`` the first of the target's variants whose operators it has and that keeps its size budget.

    A size is that of the files as they are deployed: with the target's slots and in its format. Raises
    :class:`TargetError` where no variant suits or fits.
    """
    # One level down: what the steps put beside a bundle is then below the folder that is removed after a kill.
    work, out = folder / ".work", folder / ".staged"
    copy_files(opened.path, work, lambda manifest: manifest.files)
    limit, notes, sizes = target.budgets.bundle_mb, list[str](), dict[str, float]()
    for variant in target.variants:
        try:
            _make(work, variant, target, data, announce)
            staged = _write(work, out, variant, target, announce)
        except _UnsuitableError as why:
            notes.append(f"{variant}: {why}")
            shutil.rmtree(out, ignore_errors=True)
            continue
        size = deployed_mb(staged.manifest, variant)
        if limit is None or size <= limit:
            shutil.rmtree(work)
            return Staged(staged, variant, size, tuple(notes))
        sizes[variant] = size
        notes.append(f"{variant}: {size:.1f} MB, the budget is bundle_mb = {limit:g}")
        shutil.rmtree(out)
    said = "; ".join(notes)
    if sizes:
        least = min(sizes, key=lambda name: sizes[name])
        raise TargetError(
            f"{least} for {target.name} has {sizes[least]:.1f} MB, its budget is bundle_mb = {limit:g}; nothing was written. "
            f"No variant of {opened.path} fits ({said}). Raise the budget in a target file of your own, or let it prefer a "
            "smaller variant"
        )
    raise TargetError(f"no variant of {opened.path} suits {target.name} ({', '.join(target.variants)}): {said}")


def _make(work: Path, variant: str, target: Target, data: Mapping[str, Data] | None, announce: Announce) -> None:
    """Put a variant into ``work`` where it is not there yet, and hold its graphs against the target's rules."""
    variants = read_bundle(work).manifest.variants
    if variant not in variants:
        if variant not in RECIPES or "fp32" not in variants:
            raise _UnsuitableError("the bundle has none, and no recipe makes it")
        if RECIPES[variant].halves:
            raise _UnsuitableError(
                "the bundle has none, and not every device computes in float16; where all do: edgepeft quantize --variant "
                f"{variant}"
            )
        try:
            quantize(work, variant, data=_taken(read_bundle(work), variant, data), announce=announce)
        except (InputError, BundleError) as error:
            raise _UnsuitableError(str(error)) from error
    current = read_bundle(work)
    file = current.manifest.variants[variant].file
    if file.endswith(".ort"):
        raise _UnsuitableError(f"{file} is in ORT format already; pack the bundle that it was made from")
    opset, ops = variant_facts(current, variant)
    if opset > target.graph.opset:
        raise TargetError(
            f"{file} is of opset {opset}, {target.name} takes at most {target.graph.opset}: give a base of a lower opset "
            "with --onnx, or raise graph.opset in a target file of your own where the runtime is newer"
        )
    if bad := [op for op in target.graph.forbidden_ops if op in ops]:
        raise _UnsuitableError(f"{target.name} does not run {', '.join(bad)}")


def _taken(bundle: Bundle, variant: str, data: Mapping[str, Data] | None) -> Mapping[str, Data] | None:
    """``data`` where a variant's recipe runs the model over it; of fitted weights, where the bundle can be run so."""
    rule = RECIPES[variant]
    takes = rule.calibrated or (rule.fitted is not None and not can_calibrate(bundle, data or {}))
    return data if takes else None


def _write(work: Path, out: Path, variant: str, target: Target, announce: Announce) -> Bundle:
    """Copy a variant of ``work`` to ``out``, with the target's slots and in its format."""
    if target.slots == "input" and read_bundle(work).manifest.mode == "swap":
        write_input_style(work, variant, announce=announce)
    staged = _only(copy_files(work, out, lambda manifest: manifest.deployed(variant)), variant, target)
    return _convert(staged, variant, announce) if target.graph.format == "ort" else staged


def _only(staged: Bundle, variant: str, target: Target) -> Bundle:
    """List ``variant`` alone in the manifest, and for whom the bundle was made."""
    manifest = staged.manifest
    made = {
        "name": target.name,
        "threads": target.runtime.threads,
        "providers": list(target.runtime.providers),
        "format": target.graph.format,
        "slots": target.slots,
    }
    updated = manifest.model_copy(
        update={
            "variants": {variant: manifest.variants[variant]},
            "adapters": {name: entry.only([variant]) for name, entry in manifest.adapters.items()},
            "provenance": {**manifest.provenance, "target": made},
        }
    )
    known = {name: manifest.files[name] for name in manifest.deployed(variant)}
    return Bundle(path=staged.path, manifest=write_manifest(staged.path, updated, known))


def _convert(staged: Bundle, variant: str, announce: Announce) -> Bundle:
    """Every graph of the variant in ORT format, which holds its weights itself."""
    announce(f"converting {variant} to ORT format")
    manifest = staged.manifest
    entry = manifest.variants[variant]
    gone = (*entry.graphs(), *entry.data)
    try:
        files, operators = convert_to_ort(
            [staged.file(name) for name in entry.graphs()], [staged.file(name) for name in entry.data]
        )
    except BundleError as error:
        raise _UnsuitableError(str(error)) from error
    for name in gone:
        staged.file(name).unlink()
    converted = {name: f"onnx/{file.name}" for name, file in zip(entry.graphs(), files, strict=True)}
    fields = {name: converted.get(value, value) for name, value in entry.model_dump().items() if isinstance(value, str)}
    renamed = Variant.model_validate(
        {**entry.model_dump(), **fields, "data": (), "recipe": f"{entry.recipe}; ORT format"}
    )
    known = {name: e for name, e in manifest.files.items() if name not in gone}
    manifest = embeddings_in_ort_format(staged)
    updated: Manifest = manifest.model_copy(
        update={
            "variants": {variant: renamed},
            "provenance": {**manifest.provenance, "required_operators": f"onnx/{operators.name}"},
        }
    )
    return Bundle(path=staged.path, manifest=write_manifest(staged.path, updated, known))
