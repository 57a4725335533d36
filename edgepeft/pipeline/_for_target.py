"""``fit``: from a bundle to the one that a target gets, with nothing in it that the target does not use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime as runtimes
from ..base.parity import output_difference
from ..base.samples import bundle_batches
from ..bundle import LOCK_TIMEOUT, Bundle, Manifest, Variant, read_bundle, replacing, rereading, scratch
from ..data import Examples
from ..devices.checks.static import graph_facts
from ..devices.place import deployed_mb
from ..errors import BundleError, InputError, ParityError, TargetError
from ..quantize.recipes import RECIPES
from ..targets import Target
from ..validate.gates import PARITY_TOLERANCE
from ._edit import copy_files
from ._export import Exported, export
from ._manifest import check_target_folder, write_manifest
from ._ort_format import convert_to_ort
from ._quantize import quantize
from ._web_graph import write_input_style

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """A bundle made for a target, and why it looks as it does."""

    bundle: Bundle
    variant: str
    size_mb: float
    notes: tuple[str, ...]


def export_for(
    target: Target,
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    data: Mapping[str, Examples] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> Exported:
    """Export a base and its adapters, and write what a target gets of each bundle.

    Nothing is at ``out`` before it fits: a bundle over the target's size budget is refused.

    Args:
        target: The target (:func:`edgepeft.targets.load_target`).
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The folder of the result.
        data: Texts by adapter, as :func:`~edgepeft.pipeline.quantize` takes them, for recipes that measure activations.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns, of the bundles made for the target.

    Raises:
        TargetError: No variant suits, or a result is over the size budget.
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` raises.

    Example:
        >>> target = load_target("web-wasm")
        >>> export_for(target, "org/model", {"reviews": "./reviews-lora"}, "for-web")
    """
    out = Path(out)
    if not (options.get("mode") in {"merge", "bake"} and len(adapters) > 1):
        check_target_folder(out)
    with scratch(out) as folder:
        whole = folder / "bundle"
        exported = export(model, adapters, whole, announce=announce, **options)
        fitted = [
            fit(
                b.path,
                target,
                out / b.path.relative_to(whole),
                data=_of(b, data),
                lock_timeout=lock_timeout,
                announce=announce,
            )
            for b in exported.bundles
        ]
    for each in fitted:
        for note in each.notes:
            announce(f"passed over {note}")
        announce(f"{each.variant} for {target.name}, {each.size_mb:.1f} MB")
    return replace(exported, bundles=tuple(each.bundle for each in fitted))


def _of(bundle: Bundle, data: Mapping[str, Examples] | None) -> Mapping[str, Examples] | None:
    """The texts of a merged bundle's one adapter; all of them for a bundle with several."""
    merged = bundle.manifest.merged
    return data if merged is None or data is None else {n: e for n, e in data.items() if n in (merged, "*")}


@rereading
def fit(
    bundle: str | Path,
    target: Target,
    out: str | Path,
    *,
    data: Mapping[str, Examples] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> Fitted:
    """Write what a target gets of a bundle: its preferred variant, slot style and file format. Needs no torch.

    The variant is the first of the target's that the bundle has, or that a recipe makes of fp32, and whose operators the
    target has. The result must give what the variant gave before, adapter by adapter.

    Args:
        bundle: The bundle's folder, which stays as it is.
        target: The target (:func:`edgepeft.targets.load_target`). By default the result is opened as its threads say.
        out: The folder of the result.
        data: Texts by adapter, as :func:`~edgepeft.pipeline.quantize` takes them, for recipes that measure activations.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle, its variant, its size in MB, and what was done to it.

    Raises:
        TargetError: No variant suits, the opset is too high, or the result is over the size budget; ``out`` stays as it was.
        ParityError: The result gives other outputs than the variant.
        BusyBundleError: Another process changes ``out`` and did not end in time.

    Example:
        >>> fit("bundle", load_target("android-arm64-cpu"), "for-android").variant
        'int8'
    """
    out = Path(out)
    check_target_folder(out)
    notes: list[str] = []
    with replacing(out, keep=False, lock_timeout=lock_timeout) as folder:
        # One level down: what the steps put beside a bundle is then below the folder that is removed after a kill.
        work = folder / ".work"
        opened = read_bundle(bundle)
        copy_files(bundle, work, lambda manifest: manifest.files)
        variant = _choose(opened, work, target, data, notes, announce)
        if target.slots == "input" and opened.manifest.mode == "swap":
            write_input_style(work, variant, announce=announce)
        staged = _prune(read_bundle(work), variant, target)
        if target.graph.format == "ort":
            staged = _convert(staged, variant, announce)
        size = deployed_mb(staged.manifest, variant)
        if (limit := target.budgets.bundle_mb) is not None and size > limit:
            raise TargetError(
                f"{variant} for {target.name} has {size:.1f} MB, its budget is bundle_mb = {limit:g}; nothing was written. "
                "Raise the budget in a target file of your own, or let it prefer a smaller variant"
            )
        announce(f"comparing {variant} with the bundle it came from")
        _compare(opened, staged, variant)
        for path in work.iterdir():
            path.rename(folder / path.name)
        work.rmdir()
    return Fitted(bundle=Bundle(out, staged.manifest), variant=variant, size_mb=size, notes=tuple(notes))


def _choose(
    opened: Bundle,
    work: Path,
    target: Target,
    data: Mapping[str, Examples] | None,
    notes: list[str],
    announce: Announce,
) -> str:
    """The first variant that suits, made in ``work`` where it must be; what was passed over goes into ``notes``."""
    for name in target.variants:
        manifest = read_bundle(work).manifest
        if name not in manifest.variants:
            if name not in RECIPES or "fp32" not in manifest.variants:
                notes.append(f"{name}: the bundle has none, and no recipe makes it")
                continue
            try:
                quantize(work, name, data=data if RECIPES[name].calibrated else None, announce=announce)
            except (InputError, BundleError) as error:
                notes.append(f"{name}: {error}")
                continue
        current = read_bundle(work)
        file = current.manifest.variants[name].file
        opset, ops = graph_facts(current, file)
        if opset > target.graph.opset:
            raise TargetError(
                f"{file} is of opset {opset}, {target.name} takes at most {target.graph.opset}: give a base of a lower opset "
                "with --onnx, or raise graph.opset in a target file of your own where the runtime is newer"
            )
        if bad := [op for op in target.graph.forbidden_ops if op in ops]:
            notes.append(f"{name}: {target.name} does not run {', '.join(bad)}")
            continue
        return name
    said = "; ".join(notes)
    raise TargetError(f"no variant of {opened.path} suits {target.name} ({', '.join(target.variants)}): {said}")


def _prune(staged: Bundle, variant: str, target: Target) -> Bundle:
    """Only ``variant`` stays, and the manifest says for whom the bundle was made."""
    manifest = staged.manifest
    keep = set(manifest.deployed(variant))
    for name in manifest.files:
        if name not in keep:
            staged.file(name).unlink()
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
            "provenance": {**manifest.provenance, "target": made},
        }
    )
    known = {name: manifest.files[name] for name in keep}
    return Bundle(path=staged.path, manifest=write_manifest(staged.path, updated, known))


def _convert(staged: Bundle, variant: str, announce: Announce) -> Bundle:
    announce(f"converting {variant} to ORT format")
    manifest = staged.manifest
    entry = manifest.variants[variant]
    file, operators = convert_to_ort(staged.file(entry.file))
    for name in (entry.file, *entry.data):
        staged.file(name).unlink()
    renamed = Variant.model_validate(
        {**entry.model_dump(), "file": f"onnx/{file.name}", "data": (), "recipe": f"{entry.recipe}; ORT format"}
    )
    gone = {entry.file, *entry.data}
    known = {name: e for name, e in manifest.files.items() if name not in gone}
    updated: Manifest = manifest.model_copy(
        update={
            "variants": {variant: renamed},
            "provenance": {**manifest.provenance, "required_operators": f"onnx/{operators.name}"},
        }
    )
    return Bundle(path=staged.path, manifest=write_manifest(staged.path, updated, known))


def _compare(before: Bundle, after: Bundle, variant: str) -> None:
    """Every adapter of both bundles on ragged batches; a variant that the first lacks is compared for its adapters only."""
    if variant not in before.manifest.variants:
        runtimes.open(after.path, variant=variant)  # quantized on the way: `quantize` has opened and counted it
        return
    one, two = runtimes.open(before.path, variant=variant), runtimes.open(after.path, variant=variant)
    for adapter in (None, *before.manifest.adapters):
        for batch in bundle_batches(before):
            found: dict[str, np.ndarray] = two.adapter(adapter).forward(batch)
            worst = output_difference(found, one.adapter(adapter).forward(batch), batch["attention_mask"])
            if not worst <= PARITY_TOLERANCE:
                raise ParityError(
                    f"{adapter or 'the base'}: {variant} changed by {worst:.2g} on the way; nothing was written"
                )
