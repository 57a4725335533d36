"""What slots, adapters and int8 cost on a real encoder (all-MiniLM-L6-v2), against the figures the project promises.

Needs what `make demo` leaves (its adapters and its bundle). Every ratio is the median of paired ratios from one run in
which the variants take turns; each line says what it must reach.

    python benchmarks/encoder.py [--demo demo-out] [--threads 1] [--skip-export] [--only-slots] [--kernels]

``--only-slots`` needs no demo; ``--kernels`` measures the slots with edgepeft's kernels too.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgepeft.bench import Case, Job, Sampling, run_worker
from edgepeft.data import read_examples
from edgepeft.demo.assets import minilm
from edgepeft.demo.run import ADAPTERS
from edgepeft.pipeline import add_slots, capture, validate
from edgepeft.runtime.buffers import as_values
from edgepeft.runtime.kernel_probe import norms_that_agree, silus_that_agree
from edgepeft.runtime.kernels import Kernels, library_for
from edgepeft.runtime.sessions import open_session
from edgepeft.runtime.twin import make_twin

Feeds = Mapping[str, ort.OrtValue]

#: Sets of fresh sessions for the slot ratios: where a session's weights come to lie in memory moves it by 1-3 %.
SESSIONS = 7


def report(name: str, value: float, goal: str, ok: bool, unit: str = "") -> None:
    print(f"{'ok  ' if ok else 'MISS'}  {name:<58} {value:>9.4g} {unit:<3} goal {goal}", flush=True)


def session(path: Path, threads: int, operators: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Several sessions take turns in this process: threads that spin after their run would disturb the next one's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def tokens(length: int) -> dict[str, ort.OrtValue]:
    rng = np.random.default_rng(0)
    arrays = {
        "input_ids": rng.integers(1000, 20000, (1, length), dtype=np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "token_type_ids": np.zeros((1, length), np.int64),
    }
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def ratios(
    runs: Mapping[str, tuple[ort.InferenceSession, Feeds]], base: str, length: int, seconds: float
) -> dict[str, float]:
    """Median of paired ratios to ``base``: every round runs each variant once, in alternating order."""
    inputs = tokens(length)
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    number = 0
    while number < 30 or time.perf_counter() - start < seconds:
        for name in list(runs) if number % 2 else list(reversed(runs)):
            opened, feeds = runs[name]
            before = time.perf_counter()
            opened.run(["logits"], {**inputs, **feeds})
            times[name].append(time.perf_counter() - before)
        number += 1
    reference = np.array(times[base][5:])
    return {name: float(np.median(np.array(samples[5:]) / reference)) for name, samples in times.items()}


def random_feeds(table, rank: int) -> dict[str, ort.OrtValue]:
    """An adapter of ``rank`` at every site: a packed matrix has as many times the rank as it has parts."""
    rng = np.random.default_rng(1)
    feeds = {}
    for slot in table.linear:
        inner = rank * len(slot.parts)
        for name, shape in ((slot.a, (1, slot.in_features, inner)), (slot.b, (1, inner, slot.out_features))):
            array = rng.standard_normal(shape).astype(np.float32) * 0.01
            feeds[name] = ort.OrtValue.ortvalue_from_numpy(array)
    return feeds


def slots(demo: Path, folder: Path, threads: int, kernels: bool) -> None:
    base = capture(minilm(), task="text-classification")
    everywhere = add_slots(base, reserve="all-linear")
    paths = {}
    for name, graph in (("plain", base.graph), ("slots", everywhere.graph)):
        paths[name] = folder / f"{name}.onnx"
        ir.save(graph, paths[name], external_data=f"{name}.onnx_data")
    paths["demo"] = demo / "bundle" / "onnx" / "model.onnx"
    feeds = random_feeds(everywhere.table, 8)
    limits = {"demo bundle, no adapter": 1.02, "all-linear empty": 1.02, "all-linear rank 8": 1.10}
    if not paths["demo"].is_file():
        del limits["demo bundle, no adapter"]
    library = library_for("require") if kernels else None
    if library is not None:
        norms = norms_that_agree(library.path, open_session)
        twin = make_twin(
            paths["slots"].read_bytes(),
            everywhere.table.linear,
            adapter="adapter",
            norms=norms,
            silus=silus_that_agree(library.path, open_session),
        )
        assert twin is not None
        arrays = {name: value.numpy() for name, value in feeds.items()}
        piece = as_values(Kernels.of(library, twin, "fp32").pieces(arrays))
        paths["kernels"] = folder / "kernels.onnx"
        paths["kernels"].write_bytes(twin.model)
        limits |= {"kernels, empty": 1.0, "kernels, rank 8": 1.04}
    print(f"      {len(everywhere.table.linear)} slots, {everywhere.added_nodes} nodes added")
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(SESSIONS):
        slotted = session(paths["slots"], threads)
        runs = {
            "plain": (session(paths["plain"], threads), {}),
            "plain again": (session(paths["plain"], threads), {}),
            "all-linear empty": (slotted, {}),
            "all-linear rank 8": (slotted, feeds),
        }
        if "demo bundle, no adapter" in limits:
            runs["demo bundle, no adapter"] = (session(paths["demo"], threads), {})
        if library is not None:
            opened = session(paths["kernels"], threads, library.path)
            runs |= {"kernels, empty": (opened, {}), "kernels, rank 8": (opened, piece)}
        for length in (32, 128):
            for name, ratio in ratios(runs, "plain", length, 6).items():
                found.setdefault((length, name), []).append(ratio)
    for length in (32, 128):
        noise = found[length, "plain again"]
        print(f"      plain against itself, 1x{length}: {np.median(noise):.3f} ({min(noise):.3f} to {max(noise):.3f})")
        for name, limit in limits.items():
            values = found[length, name]
            ratio = float(np.median(values))
            report(f"{name} / base without slots, 1x{length}", ratio, f"<= {limit}", ratio <= limit, "x")
            print(f"      over {SESSIONS} sets of sessions: {min(values):.3f} to {max(values):.3f}")


def int8(demo: Path, threads: int) -> None:
    files = demo / "bundle" / "onnx"
    runs = {
        name: (session(files / file, threads), {})
        for name, file in (("fp32", "model.onnx"), ("int8", "model_int8.onnx"))
    }
    ratio = ratios(runs, "fp32", 128, 15)["int8"]
    report("int8 / fp32, 1x128", ratio, "<= 0.75", ratio <= 0.75, "x")


def quality(demo: Path) -> None:
    heldout = {name: read_examples(demo / "data" / f"{name}.heldout.jsonl") for name in ADAPTERS}
    sources = {name: demo / "adapters" / name for name in ADAPTERS}
    result = validate(demo / "bundle", data=heldout, adapters=sources, base=str(minilm()))
    for parity in result.parity:
        difference = parity.max_difference
        report(f"{parity.adapter}: max |logit difference| against PEFT", difference, "<= 1e-4", difference <= 1e-4)
    fp32 = {}
    for row in result.accuracy:
        name = f"{row.adapter} {row.variant}"
        if row.variant == "fp32":
            fp32[row.adapter] = row.accuracy
            same = (row.peft and row.peft.same_label) or 0
            report(f"{name}: rows with PEFT's label, of {row.rows}", same, f"= {row.rows}", same == row.rows)
            difference = row.peft.max_difference if row.peft and row.peft.max_difference is not None else float("nan")
            report(f"{name}: max |logit difference|, held-out rows", difference, "<= 1e-4", difference <= 1e-4)
        else:
            drop = fp32[row.adapter] - row.accuracy
            report(f"{name}: accuracy lost against fp32", drop, "<= 0.01", drop <= 0.01)
    report("base restored bit for bit", float(bool(result.base_restored)), "= 1", bool(result.base_restored))


def swaps(demo: Path) -> None:
    cases = (Case(adapter=ADAPTERS[0], batch=1, sequence=32),)
    sampling = Sampling(warmup_s=0.05, measure_s=0.05)
    found = run_worker(
        Job(bundle=str(demo / "bundle"), variant="fp32", cases=cases, threads=1, sampling=sampling, swaps=1000)
    )
    assert found.swap is not None
    warm = float(np.median(found.swap.use_ms))
    cold = max(found.swap.cold_ms)
    report("use(name) to ready, median of 1,000 swaps", warm, "<= 1", warm <= 1, "ms")
    report("use(name) the first time, slowest adapter", cold, "<= 1", cold <= 1, "ms")
    drift = found.swap.drift_mb
    report("RSS growth over 1,000 swaps", drift if drift is not None else float("nan"), "<= 5", (drift or 0) <= 5, "MB")


def timed(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def processes(demo: Path, folder: Path, export: bool) -> None:
    python = sys.executable
    for name, code in (
        ("import edgepeft", "import edgepeft"),
        ("edgepeft --help", "import sys; sys.argv = ['edgepeft', '--help']; import edgepeft.cli as c; c.main()"),
    ):
        seconds = min(timed([python, "-c", code])[0] for _ in range(5))
        report(f"{name}, whole process", seconds, "<= 0.5", seconds <= 0.5, "s")
    copy = folder / "bundle"
    shutil.copytree(demo / "bundle", copy)
    code = (
        "import sys, json; from edgepeft.pipeline import add; "
        "add(sys.argv[1], 'again', sys.argv[2], replace=True); print(json.dumps('torch' in sys.modules))"
    )
    found = [timed([python, "-c", code, str(copy), str(demo / "adapters" / "reviews")]) for _ in range(3)]
    seconds = min(each[0] for each in found)
    report("edgepeft add, whole process", seconds, "<= 3", seconds <= 3, "s")
    torch = any(json.loads(each[1]) for each in found)
    report("edgepeft add imports torch", float(torch), "= 0", not torch)
    if export:
        arguments = [f"--adapter={name}={demo / 'adapters' / name}" for name in ADAPTERS]
        command = [
            python,
            "-m",
            "edgepeft",
            "export",
            "--model",
            str(minilm()),
            "--out",
            str(folder / "out"),
            *arguments,
        ]
        seconds = timed(command)[0]
        report("edgepeft export, three adapters, whole process", seconds, "<= 60", seconds <= 60, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-export", action="store_true")
    parser.add_argument("--only-slots", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgepeft-bench-") as name:
        folder = Path(name)
        print(f"onnxruntime {ort.__version__}, {arguments.threads} thread(s)")
        slots(arguments.demo, folder, arguments.threads, arguments.kernels)
        if arguments.only_slots:
            return
        int8(arguments.demo, arguments.threads)
        swaps(arguments.demo)
        processes(arguments.demo, folder, not arguments.skip_export)
        quality(arguments.demo)


if __name__ == "__main__":
    main()
