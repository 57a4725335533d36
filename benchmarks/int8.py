"""Recipes for encoders side by side, 8 bits and 4: whose labels are PEFT's, and at which latency relative to fp32.

    python benchmarks/int8.py demo-out            # after `edgepeft demo`
    qemu-x86_64-static -cpu Haswell $(which python) benchmarks/int8.py --exact    # integer sums without VNNI

fp32 stands for PEFT: `edgepeft validate` shows that they agree on every row. w8a16 and GPTQ are calibrated
on training rows.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import argparse
import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgepeft import runtime
from edgepeft.bundle import SlotTable, read_bundle
from edgepeft.data import read_examples
from edgepeft.graph.nodes import is_linear
from edgepeft.pipeline._calibrate import measure_ranges
from edgepeft.pipeline._calibration_runs import calibration_runs
from edgepeft.quantize.calibrated import calibrated
from edgepeft.quantize.int8 import int8, quantize_channels
from edgepeft.quantize.q4 import q4
from edgepeft.quantize.searched import least_error, q8
from edgepeft.quantize.w8a16 import w8a16
from edgepeft.runtime.sessions import open_session

SHAPES = ((1, 32), (1, 128))
ROUNDS = 24


def session(path: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
    )


def dynamic(reduce_range: bool) -> Callable[[Path, Path, SlotTable], None]:
    """ONNX Runtime's dynamic quantization, slots left out."""

    def apply(source: Path, target: Path, slots: SlotTable) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        tensors = slots.tensors()
        nodes = [
            node.name or ""
            for node in ir.load(source).graph
            if (is_linear(node) and node.inputs[1] is not None and node.inputs[1].name not in tensors)
            or node.op_type == "Gather"
        ]
        logging.getLogger().setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_dynamic(
                source, target, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
                reduce_range=reduce_range, weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
                extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip

    return apply


def exact() -> None:
    """MatMulInteger on this processor with activations at their ends: are its sums those of 64-bit integers?"""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    activations = rng.choice([1, 255], (5, 384)).astype(np.uint8)
    weight = rng.choice([-1.0, 0.99, 1.0], (384, 64)).astype(np.float32)
    full = np.rint(weight * 127).astype(np.int8)
    ours = np.ascontiguousarray(quantize_channels(weight.T)[0].T)
    for name, numbers in (("all 8 bits", full), ("edgepeft's range", ours)):
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b", "zero"], ["y"])], "g",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, activations.shape)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
            [numpy_helper.from_array(numbers, "b"), numpy_helper.from_array(np.uint8(128), "zero")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        (found,) = session(model.SerializeToString()).run(None, {"a": activations})
        expected = (activations.astype(np.int64) - 128) @ numbers.astype(np.int64)
        wrong = int((found != expected).sum())
        print(f"{name}: {wrong} of {found.size} sums wrong, by at most {np.abs(found - expected).max()}")


def compare(demo: Path) -> None:
    bundle = read_bundle(demo / "bundle")
    source = bundle.file(bundle.manifest.variants["fp32"].file)
    encoder = runtime.open(demo / "bundle", variant="fp32")
    batches: dict[str, list[dict[str, np.ndarray]]] = {}
    adapters = {}
    for name, entry in bundle.manifest.adapters.items():
        texts = sorted(read_examples(demo / "data" / f"{name}.heldout.jsonl").texts, key=len)
        batches[name] = [encoder.encode(texts[at : at + 32]) for at in range(0, len(texts), 32)]
        adapters[name] = ort.LoraAdapter()
        adapters[name].Load(str(bundle.file(entry.onnx_adapter)))

    def logits(opened: ort.InferenceSession) -> dict[str, np.ndarray]:
        found = {}
        for name, parts in batches.items():
            options = ort.RunOptions()
            options.add_active_adapter(adapters[name])
            found[name] = np.concatenate([opened.run(["logits"], part, options)[0] for part in parts])
        return found

    training = {name: read_examples(demo / "data" / f"{name}.train.jsonl") for name in bundle.manifest.adapters}
    ranges, _ = measure_ranges(bundle, training, announce=print)
    fitted = calibration_runs(bundle, training, rows=64).feeds
    recipes: dict[str, Callable[[Path, Path, SlotTable], None]] = {
        "reduce_range": dynamic(True),
        "all 8 bits": dynamic(False),
        "edgepeft's int8": int8,
        "edgepeft's w8a16": partial(w8a16, ranges=ranges),
        "edgepeft's q8": q8,
        "edgepeft's q4, rtn": q4,
        "edgepeft's q4, mse": least_error,
        "edgepeft's q4, gptq": partial(calibrated, batches=fitted, open_session=open_session),
        "edgepeft's q4, gptq, heal 8": partial(calibrated, batches=fitted, open_session=open_session, heal=8),
    }
    with tempfile.TemporaryDirectory() as scratch:
        sessions = {"fp32": session(source)}
        for number, (name, recipe) in enumerate(recipes.items()):
            target = Path(scratch) / f"{number}.onnx"
            recipe(source, target, bundle.manifest.slots)
            sessions[name] = session(target)
    expected = logits(sessions["fp32"])
    ratios = latencies(sessions)
    header = " | ".join(f"latency / fp32, {rows}x{tokens}" for rows, tokens in SHAPES)
    print(f"| recipe | {' | '.join(f'{name}: same label' for name in expected)} | rms of logits | {header} |")
    print("| --- |" + " ---: |" * (len(expected) + 1 + len(SHAPES)))
    for name, opened in sessions.items():
        found = logits(opened)
        same = [f"{(found[a].argmax(1) == e.argmax(1)).sum()} of {len(e)}" for a, e in expected.items()]
        error = np.sqrt(np.mean([((found[a] - e) ** 2).mean() for a, e in expected.items()]))
        print(f"| {name} | {' | '.join(same)} | {error:.4f} | {' | '.join(f'{r:.2f}x' for r in ratios[name])} |")


def latencies(sessions: dict[str, Any]) -> dict[str, list[float]]:
    """Ratios of lower quartiles to fp32's, sessions taking turns; a busy machine only ever adds time."""
    rng = np.random.default_rng(0)
    ratios: dict[str, list[float]] = {name: [] for name in sessions}
    for rows, tokens in SHAPES:
        feeds = {
            "input_ids": rng.integers(1000, 20000, (rows, tokens)),
            "attention_mask": np.ones((rows, tokens), np.int64),
            "token_type_ids": np.zeros((rows, tokens), np.int64),
        }
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(ROUNDS):
            for name in list(sessions) if turn % 2 == 0 else reversed(sessions):
                sessions[name].run(["logits"], feeds)
                for _ in range(3):
                    start = time.perf_counter()
                    sessions[name].run(["logits"], feeds)
                    taken[name].append(time.perf_counter() - start)
        quartile = {name: float(np.percentile(each, 25)) for name, each in taken.items()}
        for name, value in quartile.items():
            ratios[name].append(value / quartile["fp32"])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", help="what `edgepeft demo` made")
    parser.add_argument("--exact", action="store_true", help="only check this processor's integer sums")
    chosen = parser.parse_args()
    if chosen.exact:
        exact()
    elif chosen.demo is not None:
        compare(chosen.demo)
    else:
        parser.error("give the demo's folder, or --exact")


if __name__ == "__main__":
    main()
