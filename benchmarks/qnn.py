"""An int8 QDQ graph with fixed shapes and float slots on Qualcomm's HTP backend (executed on this x86-64 host).

python benchmarks/qnn.py demo-out/bundle --data reviews=demo-out/data/reviews.heldout.jsonl --rows 3

Calibrates on other rows than it runs. Prints what HTP takes and how many labels equal those of fp32 on the CPU provider,
adapter by adapter, from one compiled graph. Times are the simulator's and are printed only to plan a run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime_qnn
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.data import read_examples
from edgepeft.graph.freeze import freeze_inputs, pad_to, slot_defaults, slot_shapes
from edgepeft.runtime.active import read_tensors

SEQUENCE = 32
CALIBRATION_ROWS = 12


class Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def htp_session(path: Path) -> Any:
    root = Path(onnxruntime_qnn.__file__).parent
    ort.register_execution_provider_library("QNN", str(root / "libonnxruntime_providers_qnn.so"))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "QNN"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    backend = {"backend_path": str(root / "libQnnHtp.so"), "soc_model": "57", "enable_htp_fp16_precision": "1"}
    options.add_provider_for_devices(devices[:1], backend)
    return ort.InferenceSession(str(path), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--rows", type=int, default=3, help="rows of each adapter on HTP (10 to 15 s each)")
    arguments = parser.parse_args()
    data = {name: read_examples(file) for name, file in (pair.split("=", 1) for pair in arguments.data)}

    bundle = read_bundle(arguments.bundle)
    model = runtime.open(bundle.path, variant="fp32")
    graph = ir.load(bundle.file(bundle.manifest.variants["fp32"].file))
    tensors = {name: read_tensors(bundle, name, entry) for name, entry in bundle.manifest.adapters.items()}
    shapes, defaults = slot_shapes(tensors.values()), slot_defaults(graph, bundle.manifest.slots)
    slots = {name: pad_to(each, shapes, defaults) for name, each in tensors.items()}

    def inputs(text: str) -> dict[str, np.ndarray]:
        found = {}
        for name, array in model.encode([text]).items():
            found[name] = np.zeros((1, SEQUENCE), np.int64)
            found[name][:, : array.shape[1]] = array[:, :SEQUENCE]
        return found

    with tempfile.TemporaryDirectory() as scratch:
        static, qdq = Path(scratch) / "static.onnx", Path(scratch) / "qdq.onnx"
        frozen = freeze_inputs(graph, bundle.manifest.slots, shapes, batch=1, sequence=SEQUENCE)
        ir.save(frozen, static, external_data="static.onnx_data")
        slot_nodes = [
            node.name for node in frozen.graph
            if node.op_type == "MatMul" and any(value is not None and value.name in shapes for value in node.inputs)
        ]  # fmt: skip
        calibration = (
            {**inputs(text), **slots[name]} for name, rows in data.items() for text in rows.texts[:CALIBRATION_ROWS]
        )
        logging.disable(logging.WARNING)  # onnxruntime advises pre-processing on every call
        quantize_static(
            static, qdq, Reader(calibration), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=slot_nodes,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        start = perf_counter()
        session = htp_session(qdq)
        print(f"compiled in {perf_counter() - start:.1f} s; {len(slot_nodes)} slot MatMuls stay float")
        for part in session.get_provider_graph_assignment_info():
            ops = Counter(node.op_type for node in part.get_nodes())
            print(f"{part.ep_name}: {sum(ops.values())} nodes: {', '.join(f'{n} {op}' for op, n in ops.most_common())}")
        for name, rows in data.items():
            width = len(bundle.manifest.adapters[name].labels or ())
            same, worst, start = 0, 0.0, perf_counter()
            texts = rows.texts[CALIBRATION_ROWS : CALIBRATION_ROWS + arguments.rows]
            for text in texts:
                feeds = inputs(text)
                expected = model.use(name).forward(feeds)["logits"]
                found = session.run(["logits"], {**feeds, **slots[name]})[0][:, :width]
                same += int(found.argmax() == expected.argmax())
                worst = max(worst, float(np.abs(found - expected).max()))
            seconds = (perf_counter() - start) / len(texts)
            print(
                f"{name}: {same} of {len(texts)} labels as fp32, max |difference| {worst:.3f}, {seconds:.1f} s a row here"
            )


if __name__ == "__main__":
    main()
