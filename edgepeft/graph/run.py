"""Running a graph that is still in memory, to check it before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..errors import CaptureError
from ..scratch import scratch_folder


@contextmanager
def open_graph(
    graph: ir.Model | Path,
) -> Iterator[Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]]:
    """A function that runs ``graph``, or the file of one: inputs by name (unknown ones are left out) to outputs by name.

    Raises :class:`CaptureError` where ONNX Runtime rejects the graph or fails while it runs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below; the log would say it twice
    if isinstance(graph, Path):
        # Weights are in a file to save memory: no second copy in the kernels' own layout, for a few runs.
        options.add_session_config_entry("session.disable_prepacking", "1")
    with scratch_folder("graph") as folder:
        if isinstance(graph, Path):
            path = graph
        else:
            path = Path(folder) / "model.onnx"
            ir.save(graph, path, external_data="model.onnx_data")
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise CaptureError(f"ONNX Runtime rejects the graph: {error}") from error
        names = [output.name for output in session.get_outputs()]
        accepted = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}

        def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            inputs = {name: array for name, array in feeds.items() if name in accepted}
            try:
                outputs = session.run(names, inputs)
            except Exception as error:  # as above
                shapes = {name: array.shape for name, array in inputs.items()}
                raise CaptureError(f"ONNX Runtime fails on inputs {shapes}: {error}") from error
            return dict(zip(names, outputs, strict=True))

        yield run


def run_graph(
    graph: ir.Model,
    batches: Sequence[Mapping[str, np.ndarray]],
    feeds: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Outputs by name for each batch; ``feeds`` are slot tensors given with every batch.

    Raises :class:`CaptureError` where ONNX Runtime rejects the graph or fails while it runs.
    """
    with open_graph(graph) as run:
        return [run({**batch, **(feeds or {})}) for batch in batches]
