"""Where every ONNX Runtime session over a bundle's graph is made, and how one is run on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle, Manifest, Variant
from ..errors import BundleError
from .kernel_adapter import Factors
from .kernel_probe import norms_that_agree, silus_that_agree
from .kernels import Kernels, UseKernels, library_for, say_once
from .twin import make_twin
from .warm import open_warm

#: ONNX Runtime's names of types that a manifest calls otherwise.
_TYPES = {"float32": "float", "float64": "double"}


def open_graph_session(
    bundle: Bundle, file: str, *, threads: int | None = None, settings: Mapping[str, str] | None = None
) -> Any:
    """:func:`open_session` over a graph of a bundle: it and its weights are verified, and what was verified is what is opened.

    Where there is a warm copy of the graph (:mod:`.warm`), that is opened.

    Raises:
        CorruptBundleError: A file is not what the manifest says, or the graph names one that the manifest does not list.
        BundleError: ONNX Runtime cannot open the graph.
    """
    with open_warm(bundle, file) as ready:
        if ready is not None:
            return open_session(ready.model, threads=threads, settings={**ready.settings, **(settings or {})})
    with bundle.open_graph(file) as graph:
        try:
            return open_session(graph.model, threads=threads, settings={**graph.settings, **(settings or {})})
        except BundleError as error:
            raise BundleError(f"ONNX Runtime cannot open {bundle.file(file)}: {error.__cause__}") from error.__cause__


def open_kernel_session(
    bundle: Bundle,
    file: str,
    use: UseKernels,
    *,
    threads: int | None = None,
    factors: Factors = "fp32",
    settings: Mapping[str, str] | None = None,
) -> tuple[Any, Kernels | None]:
    """A session over a graph's twin where edgepeft's kernels are installed and fit, else over the graph itself.

    A graph without slots has a twin where they multiply by its quantized matrices.

    Args:
        bundle: The bundle; graph and weights are verified as by :func:`open_graph_session`.
        file: The graph's path in it.
        use: ``"auto"``: where they are installed. ``"require"``: or an error. ``"off"``: never.
        threads: Intra-op threads.
        factors: The type in which the twin takes adapters.
        settings: Session configuration entries for the graph itself.

    Returns:
        The session, and what runs its slots; ``None`` for ONNX Runtime's own operators.

    Raises:
        MissingExtraError: ``"require"``, and there is no library that fits.
        BundleError: The graph cannot be opened, or with ``"require"`` not with kernels.
    """
    library = library_for(use)
    slots = bundle.manifest.slots.linear
    if library is None or not (slots or library.matmul):
        return open_graph_session(bundle, file, threads=threads, settings=settings), None
    with bundle.open_graph(file) as graph:
        reason: object = "its weights lie inside the graph, or it is in ONNX Runtime's own format"
        try:
            if isinstance(graph.model, bytes) and not file.endswith(".ort"):
                name = f"edgepeft.adapter:{file}"
                norms = norms_that_agree(library.path, open_session)
                silus = silus_that_agree(library.path, open_session)
                blocks = bool(library.matmul)
                twin = make_twin(graph.model, slots, adapter=name, norms=norms, silus=silus, blocks=blocks)
                reason = "it has no slot that they know"
                if twin is not None:
                    session = open_session(twin.model, threads=threads, settings=graph.settings, operators=library.path)
                    return session, Kernels.of(library, twin, factors)
        except (BundleError, IndexError) as error:
            reason = error.__cause__ or error
    if use == "require" and slots:
        raise BundleError(f"{bundle.file(file)} cannot be opened with kernels: {reason}")
    if isinstance(reason, Exception):
        say_once(f"{bundle.file(file)} cannot be opened with kernels: {str(reason)[:300]}")
    return open_graph_session(bundle, file, threads=threads, settings=settings), None


def open_session(
    model: Path | str | bytes,
    *,
    threads: int | None = None,
    settings: Mapping[str, str] | None = None,
    operators: Path | None = None,
    device: Any = None,
) -> Any:
    """A session over a graph, on the CPU where no other ``device`` is given.

    Args:
        model: The ``.onnx`` file, whose weights are found beside it, or its bytes.
        threads: Intra-op threads; ONNX Runtime's own choice where ``None``.
        settings: Session configuration entries by name.
        operators: A library of custom operators.
        device: An ``OrtEpDevice`` of a plugin; what its provider does not take runs on the CPU.

    Returns:
        An ``onnxruntime.InferenceSession``. Threads may run it at the same time.

    Raises:
        BundleError: ONNX Runtime cannot open the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    # ONNX Runtime warns once a slot that an initializer is a graph input, which is what a slot is.
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    try:
        if operators is not None:
            options.register_custom_ops_library(str(operators))
        source = model if isinstance(model, bytes) else str(model)
        if device is not None:
            options.add_provider_for_devices([device], {})
            return ort.InferenceSession(source, options)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception types are not public
        where = "the graph" if isinstance(model, bytes) else model
        raise BundleError(f"ONNX Runtime cannot open {where}: {error}") from error


def check_session(session: Any, path: Path, manifest: Manifest, variant: Variant) -> None:
    """Refuse a graph that is not what the manifest says: other inputs, or outputs that it lacks.

    Raises:
        BundleError: Names the graph and the first input or output that does not fit.
    """
    required = {value.name: value for value in session.get_inputs()}
    # Slots, and inputs that a run may leave out, have defaults in the graph.
    inputs = {value.name: value for value in session.get_overridable_initializers()} | required
    outputs = {value.name: value for value in session.get_outputs()}
    extra = required.keys() - {value.name for value in manifest.inputs} - manifest.slots.tensors().keys()
    expected = (("input", variant.typed(manifest.inputs), inputs), ("output", variant.typed(manifest.outputs), outputs))
    for what, values, found in expected:
        names = {value.name for value in values}
        if not names <= found.keys() or (what == "input" and extra):
            odd = sorted(names - found.keys() or extra)[0]
            raise BundleError(
                f"{path} has the {what}s {', '.join(sorted(found.keys() - manifest.slots.tensors().keys()))[:300]}; the manifest "
                f"says {', '.join(sorted(names))[:300]} ({odd} is odd). Export the bundle again."
            )
        for value in values:
            shape, kind = found[value.name].shape, found[value.name].type
            ranks_differ = bool(shape) and len(shape) != len(value.shape)
            if ranks_differ or kind not in {
                f"tensor({value.dtype})",
                f"tensor({_TYPES.get(value.dtype, value.dtype)})",
            }:
                raise BundleError(
                    f"{path}: {what} {value.name} is {kind} {shape}; the manifest says {value.dtype} {list(value.shape)}. "
                    "Export the bundle again."
                )


def run_values(
    session: Any,
    outputs: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, Any],
    options: Any = None,
) -> dict[str, np.ndarray]:
    """One run on ``inputs`` and on ``values``, which are OrtValues already; the named outputs as arrays."""
    import onnxruntime as ort

    fed = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    # ``run`` takes OrtValues too. ``run_with_ort_values`` ends its list of results with an exception inside of the binding
    # (1.32), which takes some 40 µs.
    return dict(zip(outputs, session.run(list(outputs), {**fed, **values}, options), strict=True))
