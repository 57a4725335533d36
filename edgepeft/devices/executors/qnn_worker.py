"""``python -m edgepeft.devices.executors.qnn_worker BUCKETS``: a job on QNN's HTP backend, in a process of its own.

Reads a :class:`~edgepeft.bench.Job` on standard input and prints a :class:`~edgepeft.bench.WorkerResult`, as
:mod:`edgepeft.worker.__main__` does.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ...adapters.bundle_graph import load_graph
from ...bench import Job, RowLogits, WorkerResult
from ...bundle import Bundle, read_bundle
from ...errors import DeviceError, EdgepeftError
from ...json_text import json_text
from ...runtime.active import read_tensors
from ...runtime.per_text import PerText
from ...runtime.text import TextEncoder
from ...targets import Shape, parse_shape
from ...worker.host import fingerprint, rss_mb

#: Snapdragon 8 Gen 3, whose HTP takes fp16; the backend asks for a chip before it takes fp16 at all.
_OPTIONS = {"soc_model": "57", "enable_htp_fp16_precision": "1"}
_PROBE = "not what I had hoped for"


class HtpModel:
    """A variant's graph with fixed shapes, its slots as inputs, compiled by the HTP backend for each bucket."""

    def __init__(self, bundle: Bundle, variant: str, buckets: Sequence[Shape], folder: Path) -> None:
        from ...graph.passes.freeze import slot_defaults, slot_shapes

        self._bundle = bundle
        self._folder = folder
        self._buckets = sorted(buckets, key=lambda shape: shape.sequence)
        self._graph = load_graph(bundle, bundle.manifest.variants[variant].file)
        self._defaults = slot_defaults(self._graph, bundle.manifest.slots)
        adapters = bundle.manifest.on(variant).adapters
        self._tensors = {name: read_tensors(bundle, name, entry) for name, entry in adapters.items()}
        self._shapes = slot_shapes(self._tensors.values())
        self._encoders = PerText(lambda own: TextEncoder(bundle, own))
        self._sessions: dict[Shape, Any] = {}
        #: (provider, operator) → nodes, of the last graph compiled.
        self.nodes: Counter[tuple[str, str]] = Counter()
        self.cut = 0

    def logits(self, text: Any, adapter: str | None) -> np.ndarray:
        """``[labels]`` of one text; longer ones are cut to the largest bucket."""
        from ...graph.passes.freeze import pad_to

        encoded = self._encoders.get(self._bundle.text_of(adapter)).encode([text])
        length = next(iter(encoded.values())).shape[1]
        shape = next((bucket for bucket in self._buckets if bucket.sequence >= length), self._buckets[-1])
        self.cut += length > shape.sequence
        inputs = {}
        for name, array in encoded.items():
            inputs[name] = np.zeros((1, shape.sequence), np.int64)
            inputs[name][:, :length] = array[:, : shape.sequence]
        tensors = self._tensors[adapter] if adapter else {}
        feeds = {**inputs, **pad_to(tensors, self._shapes, self._defaults)}
        logits: np.ndarray = self._session(shape).run(["logits"], feeds)[0][0]
        manifest = self._bundle.manifest
        labels = (manifest.adapters[adapter].labels if adapter else None) or manifest.labels
        return logits[: len(labels)] if labels else logits

    def _session(self, shape: Shape) -> Any:
        if shape not in self._sessions:
            self._sessions[shape] = self._compile(shape)
        return self._sessions[shape]

    def _compile(self, shape: Shape) -> Any:
        import onnx_ir as ir

        from ...graph.passes.freeze import freeze_inputs

        graph = freeze_inputs(self._graph, self._bundle.manifest.slots, self._shapes, batch=1, sequence=shape.sequence)
        path = self._folder / f"model_{shape}.onnx"
        ir.save(graph, path, external_data=f"model_{shape}.onnx_data")
        session = compile_graph(path)
        self.nodes = Counter(
            (part.ep_name, node.op_type)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )
        if not any(provider == "QNN" for provider, _ in self.nodes):
            raise DeviceError("the QNN provider took no node: all would run on the CPU, which is no test of it")
        return session


def compile_graph(path: Path, *, optimize: bool = True) -> Any:
    """A session of a static graph on the HTP backend; :class:`DeviceError` where it cannot be compiled."""
    import onnxruntime as ort
    import onnxruntime_qnn

    root = Path(onnxruntime_qnn.__file__).parent
    if not any(device.ep_name == "QNN" for device in ort.get_ep_devices()):
        ort.register_execution_provider_library("QNN", str(root / "libonnxruntime_providers_qnn.so"))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "QNN"]
    if not devices:
        raise DeviceError("onnxruntime-qnn registered no device: it needs onnxruntime 1.24 or newer")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices[:1], {"backend_path": str(root / "libQnnHtp.so"), **_OPTIONS})
    try:
        session = ort.InferenceSession(str(path), options)
    except Exception as error:  # ONNX Runtime's exception types are not public
        raise DeviceError(f"the HTP backend cannot compile {path.name}: {error}") from error
    return session


def measure(job: Job, buckets: Sequence[Shape]) -> WorkerResult:
    """Do ``job`` in this process; see :class:`HtpModel`."""
    import onnxruntime as ort

    bundle = read_bundle(job.bundle)
    bundle.verify(bundle.manifest.deployed(job.variant))
    names: tuple[str | None, ...] = (None, *bundle.manifest.adapters)
    with tempfile.TemporaryDirectory(prefix="edgepeft-qnn-") as scratch:
        started, start = rss_mb(), perf_counter()
        model = HtpModel(bundle, job.variant, buckets, Path(scratch))
        before = {name: model.logits(_PROBE, name) for name in names} if job.restore else {}
        load_ms = (perf_counter() - start) * 1e3
        done = []
        for rows in job.rows:
            texts = rows.texts if rows.pairs is None else zip(rows.texts, rows.pairs, strict=True)
            logits = tuple(tuple(map(float, model.logits(text, rows.adapter))) for text in texts)
            done.append(RowLogits(adapter=rows.adapter, logits=logits))
        after = {name: model.logits(_PROBE, name) for name in reversed(names)} if job.restore else {}
    taken = sum(count for (provider, _), count in model.nodes.items() if provider == "QNN")
    left = {op: count for (provider, op), count in model.nodes.items() if provider != "QNN"}
    notes = [
        f"QNN took {taken} of {sum(model.nodes.values())} nodes, floats in fp16; on the CPU: "
        + (", ".join(f"{count} {op}" for op, count in left.items()) or "none")
    ]
    if model.cut:
        notes.append(f"{model.cut} texts were cut to the largest bucket, {max(buckets, key=lambda s: s.sequence)}")
    return WorkerResult(
        host=fingerprint(ort.__version__, job.threads),
        import_ms=0.0,
        load_ms=load_ms,
        rss_start_mb=started,
        rss_loaded_mb=None,
        # Most of it is the compiler for the NPU, which does not run there.
        peak_rss_mb=None,
        cases=(),
        rows=tuple(done),
        base_restored=all(np.array_equal(before[name], after[name], equal_nan=True) for name in names)
        if job.restore
        else None,
        notes=tuple(notes),
    )


def assigned(path: Path) -> list[str]:
    """Names of the nodes of the graph at ``path`` that QNN takes."""
    # As it stands: after ONNX Runtime's own optimizations nodes have other names.
    parts = compile_graph(path, optimize=False).get_provider_graph_assignment_info()
    return sorted(node.name for part in parts if part.ep_name == "QNN" for node in part.get_nodes())


def main() -> int:
    """0, or 2 with one line on standard error."""
    import os

    # The backend writes to standard output, which is kept for the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        if sys.argv[1] == "--assign":
            said = json_text(assigned(Path(sys.argv[2])), indent=None)
        else:
            job = Job.model_validate_json(sys.stdin.read())
            said = measure(job, [parse_shape(text) for text in sys.argv[1].split(",")]).model_dump_json()
    except EdgepeftError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        file.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
