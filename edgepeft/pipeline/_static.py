"""``write_static``: a bundle's graph with the fixed shapes of a target."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..adapters.bundle_graph import load_graph
from ..bundle import read_bundle, rereading
from ..devices.place import choose_variants, require_shapes
from ..errors import InputError
from ..graph.passes.freeze import freeze, freeze_inputs, slot_shapes
from ..json_text import json_text
from ..runtime.active import read_tensors
from ..targets import Target, parse_shape
from ._manifest import require_onnx


@rereading
def write_static(
    bundle: str | Path, target: Target, out: str | Path, *, adapter: str | None = None, variant: str | None = None
) -> tuple[Path, ...]:
    """Write a graph of fixed shapes for each bucket of a target. Fused operators are written out.

    Args:
        bundle: The bundle's folder.
        target: A target with buckets: fixed input shapes of rows x tokens.
        out: A folder that is empty or not there.
        adapter: Its tensors become constants, in ``<adapter>_<bucket>.onnx``. Without it, ``model_<bucket>.onnx`` has slots as
            inputs, whose fixed shapes ``slots.json`` lists: pad an adapter with zeros to them.
        variant: By default the first of the target's variants that the bundle has.

    Returns:
        The files that were written.

    Raises:
        InputError: The target has no buckets, the bundle no slots or no such variant, or the folder is not empty.
        TargetError: The bundle writes texts: its cache has no fixed shape.
        UnknownAdapterError: The bundle has no adapter of that name.

    Example:
        >>> files = write_static("bundle", load_target("android-qnn"), "static", adapter="reviews")
    """
    opened, out = read_bundle(bundle), Path(out)
    if not target.graph.buckets:
        raise InputError(
            f"{target.name} has no graph.buckets: its shapes are dynamic, and the bundle is deployed as it is"
        )
    if opened.manifest.mode != "swap":
        raise InputError(f"{opened.path}: static graphs are made of a bundle with slots")
    (variant,) = choose_variants(opened.manifest, target, [variant] if variant else None)
    if adapter is not None:
        opened.slot_adapter(adapter)
    require_shapes(opened.manifest, target)
    require_onnx(opened.path, opened.manifest.variants[variant])
    limit = opened.manifest.max_length
    for bucket in target.graph.buckets:
        if limit is not None and parse_shape(bucket).sequence > limit:
            raise InputError(f"bucket {bucket} of {target.name}: {opened.path} takes at most {limit} tokens")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another --out")
    opened = opened.on(variant)
    files = (*opened.variant_files(variant), *(a.onnx_adapter for a in opened.manifest.adapters.values()))
    opened.verify(files)
    graph = load_graph(opened, opened.manifest.variants[variant].file)
    table = opened.manifest.slots
    tensors = {name: read_tensors(opened, name, entry) for name, entry in opened.manifest.slot_adapters.items()}
    shapes = slot_shapes(tensors.values())
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for bucket in target.graph.buckets:
        batch, sequence = parse_shape(bucket)
        if adapter is None:
            static = freeze_inputs(graph, table, shapes, batch=batch, sequence=sequence)
        else:
            static = freeze(graph, table, tensors[adapter], batch=batch, sequence=sequence)
        path = out / f"{adapter or 'model'}_{bucket}.onnx"
        ir.save(static, path, external_data=f"{path.name}_data")
        written.append(path)
    if adapter is None:
        (out / "slots.json").write_text(json_text(shapes) + "\n", encoding="utf-8")
    return tuple(written)
