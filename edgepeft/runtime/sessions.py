"""Where every ONNX Runtime session over a bundle's graph is made, and how one is run on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError


def open_session(path: Path, *, threads: int | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """A session over a graph file, on the CPU.

    Args:
        path: The ``.onnx`` file; its weights are found beside it.
        threads: Intra-op threads; ONNX Runtime's own choice where ``None``.
        settings: Session configuration entries by name.

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
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception types are not public
        raise BundleError(f"ONNX Runtime cannot open {path}: {error}") from error


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
    found = session.run_with_ort_values(outputs, {**fed, **values}, options)
    return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}
