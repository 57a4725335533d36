"""Running a graph that is still in memory, to check it before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir


def run_graph(
    graph: ir.Model,
    batches: Sequence[Mapping[str, np.ndarray]],
    feeds: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Outputs by name for each batch; ``feeds`` are slot tensors given with every batch."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # one warning a slot otherwise
    with tempfile.TemporaryDirectory(prefix="edgepeft-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph, path, external_data="model.onnx_data")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        accepted = {value.name for value in session.get_inputs()}
        results = []
        for batch in batches:
            inputs = {name: array for name, array in batch.items() if name in accepted}
            results.append(dict(zip(names, session.run(names, {**inputs, **(feeds or {})}), strict=True)))
        del session
    return results
