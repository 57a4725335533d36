"""``write_input_style``: a second graph of a variant whose slots are plain inputs, over the same weights file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..adapters.files import read_onnx_adapter, write_onnx_adapter
from ..bundle import LOCK_TIMEOUT, Bundle, Manifest, Variant
from ..errors import InputError, ParityError
from ..graph.passes.half_inputs import HalfInputs
from ..graph.passes.plain_inputs import PlainInputs
from ..graph.passes.unpack_int4 import SetAccuracyLevel, UnpackInt4
from ..runtime import open as open_bundle
from ..validate.probe import bundle_probe, same_outputs
from ._edit import Edit, edit
from ._halves import TOLERANCE as HALVES
from ._manifest import require_onnx
from ._web_session import Fed

Announce = Callable[[str], None]

#: The base's own numbers for the slots that have some (heads, gains, norms), for runs without an adapter.
DEFAULTS = "onnx/defaults.onnx_adapter"

#: max |difference|, relative beyond 1, of unpacked weights: the same numbers, summed in another order.
_TOLERANCE = 1e-3
#: The same of a variant in float16 on a CPU, where ONNX Runtime leaves out a Cast to float16 and back: a factor of an adapter is
#: then rounded in one graph only (measured: up to 5.1e-2 on a tiny random model). What is allowed is what a variant's rounding is.
_HALF_TOLERANCE = HALVES


def input_style_file(file: str) -> str:
    """The name of a graph with plain inputs: ``onnx/model_int8.onnx`` → ``onnx/model_int8_web.onnx``."""
    return f"{file.removesuffix('.onnx')}_web.onnx"


def write_input_style(
    bundle: str | Path,
    variant: str | None = None,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> Bundle:
    """Give a variant of a bundle a second graph file whose slots are plain inputs.

    ONNX Runtime Web cannot override initializers, so there every slot is fed on every run. The new graph shares the
    variant's weights file; a variant that keeps its weights inside the graph is written with them beside it first. The
    result is run against the first graph, base and every adapter, and must give the same bits. 4-bit weights, for which
    ONNX Runtime Web has no kernels, are then unpacked when a session is made (:mod:`edgepeft.graph.passes.unpack_int4`),
    checked against the same graph with fp32 activations. Needs no torch.

    Args:
        bundle: The bundle's folder.
        variant: Which variant; by default all.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle, whose variants name their ``input_file``.

    Raises:
        InputError: The bundle is merged: it has no slots, so deploy it as it is.
        ParityError: The two graphs differ; the bundle stays as it was.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> write_input_style("bundle", "q4").manifest.variants["q4"].input_file
        'onnx/model_q4_web.onnx'
    """
    with edit(bundle, lock_timeout=lock_timeout) as change:
        manifest, path = change.manifest, change.before.path
        if manifest.mode != "swap":
            raise InputError(
                f"{path} is merged with {manifest.merged!r}: it has no slots, any runtime opens it as it is"
            )
        names = [change.before.variant(variant)[0]] if variant is not None else [
            name for name, each in manifest.variants.items() if each.cache_dtype != "int8"
        ]  # fmt: skip
        for name in names:
            if manifest.variants[name].cache_dtype == "int8":
                raise InputError(
                    f"{path}: {name} keeps its cache in int8, which browsers are not given; choose the variant that it was made of"
                )
            require_onnx(path, manifest.variants[name])
            change.before.verify(change.before.variant_files(name))
        add_input_style(change, names, announce)
    return change.after


def add_input_style(change: Edit, names: Sequence[str], announce: Announce) -> None:
    """Stage second graphs of these variants in a change of a bundle, each compared with the first."""
    variants = dict(change.manifest.variants)
    for name in names:
        announce(f"writing {name} with slots as plain inputs")
        variants[name] = _write(change.folder, variants[name], change.manifest)
    written = {file for name in names for file in (*variants[name].files(), DEFAULTS)}
    defaults = DEFAULTS if (change.folder / DEFAULTS).is_file() else None
    staged = change.stage(written=written, variants=variants, slot_defaults=defaults)
    for name in names:
        announce(f"comparing both graphs of {name}")
        _compare(staged, name)
    # WebGPU has kernels for few bits in half precision, which is where such a variant is opened.
    unpacked = [name for name in names if not variants[name].half and _unpack(staged, name, announce)]
    if unpacked:
        flagged = {name: variants[name].model_copy(update={"input_unpacked": True}) for name in unpacked}
        graphs = [file for entry in flagged.values() if (file := entry.input_file) is not None]
        change.stage(written=graphs, variants={**variants, **flagged})


def _unpack(bundle: Bundle, variant: str, announce: Announce) -> bool:
    """Have a second graph with 4-bit weights unpack them when a session is made; whether it has any.

    The reference is the graph as it was, with fp32 activations. Raises :class:`ParityError` beyond ``_TOLERANCE``.
    """
    path = bundle.file(bundle.manifest.variants[variant].input_file or "")
    graph = ir.load(path)
    SetAccuracyLevel(0)(graph)
    reference = path.with_name("reference.onnx")
    ir.save(graph, reference)
    try:
        if not UnpackInt4()(graph).modified:
            return False
        announce(f"unpacking the 4-bit weights of {variant} when a session is made")
        path.unlink()
        ir.save(graph, path)
        probe = bundle_probe(bundle)
        before, after = Fed(bundle, variant, reference), Fed(bundle, variant, path, unpack=True)
        for adapter in (None, *bundle.manifest.slot_adapters):
            expected = probe.run(before.use(adapter))
            difference = probe.difference(probe.run(after.use(adapter)), expected)
            if not difference <= _TOLERANCE:
                raise ParityError(
                    f"variant {variant}, {adapter or 'the base'}: with unpacked weights the outputs differ by {difference:.1e}, "
                    f"allowed are {_TOLERANCE:g}; the bundle was left as it was"
                )
    finally:
        reference.unlink()
    return True


def _write(folder: Path, variant: Variant, manifest: Manifest) -> Variant:
    """Write the second graph of a variant, of both halves of an encoder-decoder; each has the slots that it had."""
    graphs = [file for file in (variant.file, variant.decoder_file) if file is not None]
    data = list(variant.data) or [name for file in graphs for name in _outside(folder / file)]
    defaults: dict[str, np.ndarray] = {}
    written = []
    for file in graphs:
        # Tensors stay references into the weights file: saving them writes where they are, not what they hold.
        graph = ir.load(folder / file)
        there = {value.name for value in graph.graph.inputs} | set(graph.graph.initializers)
        slots = [name for name in manifest.slots.tensors() if len(graphs) == 1 or name in there]
        optional = [value.name for value in manifest.inputs if value.optional]
        defaulted = PlainInputs([*slots, *optional])(graph).defaults
        defaults |= {name: defaulted[name] for name in slots}
        if variant.half:
            HalfInputs(slots)(graph)
        target = folder / input_style_file(file)
        target.unlink(missing_ok=True)
        ir.save(graph, target)
        written.append(input_style_file(file))
    _write_defaults(folder, defaults, manifest)
    update = {
        "data": tuple(data),
        "input_file": written[0],
        "decoder_input_file": (*written, None)[1],
        "input_unpacked": False,
    }
    return variant.model_copy(update=update)


def _outside(file: Path) -> tuple[str, ...]:
    """Put the weights of a graph into a file beside it; that file's name, where there are any."""
    weights = f"{file.name}_data"
    whole = ir.load(file)
    file.unlink()
    (file.parent / weights).unlink(missing_ok=True)
    ir.save(whole, file, external_data=weights)
    return (f"onnx/{weights}",) if (file.parent / weights).is_file() else ()


def _write_defaults(folder: Path, defaults: Mapping[str, np.ndarray], manifest: Manifest) -> None:
    """The defaults that hold numbers; one file serves all variants, since slots are never quantized."""
    held = {name: array for name, array in defaults.items() if array.size}
    path = folder / DEFAULTS
    if not held:
        return
    if path.is_file():
        tensors, _, _ = read_onnx_adapter(path)
        if tensors.keys() == held.keys() and all(np.array_equal(tensors[name], held[name]) for name in held):
            return
        path.unlink()
    write_onnx_adapter(path, held, base_identity=manifest.base.identity, slots_hash=manifest.slots.hash)


def _compare(bundle: Bundle, variant: str) -> None:
    manifest, probe = bundle.manifest, bundle_probe(bundle)
    # Both graphs by ONNX Runtime's own operators: installed kernels round an adapter's sums otherwise.
    runtime, fed = open_bundle(bundle.path, variant=variant, kernels="off"), Fed(bundle, variant)
    for adapter in (None, *manifest.slot_adapters):
        mine, theirs = probe.run(fed.use(adapter)), probe.run(runtime.adapter(adapter))
        entry = manifest.variants[variant]
        if same_outputs(mine, theirs):
            continue
        difference = probe.difference(mine, theirs)
        if not (entry.half and difference <= _HALF_TOLERANCE):
            raise ParityError(
                f"variant {variant}, {adapter or 'the base'}: outputs of {entry.file} and {entry.input_file} differ by "
                f"{difference:.1e}; the bundle was left as it was"
            )
