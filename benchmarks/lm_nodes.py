"""Where a token's time goes, node by node: edgepeft's graph, its twin with kernels, and the graph of onnxruntime-genai's builder.

    python benchmarks/lm_nodes.py                          # bundles and peers as benchmarks/lm_overhead.py --genai makes them

All are run by ONNX Runtime itself over the same shapes, with caches bound in place, at 128 tokens of context: first without its
profiler, in turns (ratios of this thread's CPU time over fresh sessions), then with it: the time of each kind of node, the mean
over tokens of the sum over its nodes. One thread.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from lm_overhead import CONTEXT, bundles, genai_route, ratio, source

from edgepeft.bundle import read_bundle
from edgepeft.cache import cache_dir
from edgepeft.runtime.kernel_probe import norms_that_agree, silus_that_agree
from edgepeft.runtime.kernels import library_for
from edgepeft.runtime.sessions import open_session
from edgepeft.runtime.twin import make_twin

ROOM = CONTEXT + 128


class Graph:
    """A decoder's graph, run for one token after another."""

    def __init__(self, config: dict[str, Any], path: Path, operators: Path | None, profile: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        if operators is not None:
            options.register_custom_ops_library(str(operators))
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.mask = np.ones((1, ROOM), np.int64)
        self.held: list[Any] = []
        outputs = [value.name for value in self.session.get_outputs()]
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values"):
                heads, size = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
                cache = self._value(np.full((1, heads, ROOM, size), 0.1, np.float32))
                self.binding.bind_ortvalue_input(value.name, cache)
                self.binding.bind_ortvalue_output(value.name.replace("past_key_values", "present"), cache)
            elif value.name == "logits_from":
                self.binding.bind_ortvalue_input(value.name, self._value(np.zeros(1, np.int64)))
        self.logits = self._value(np.empty((1, 1, config["vocab_size"]), np.float32))
        self.binding.bind_ortvalue_output(outputs[0], self.logits)

    def _value(self, array: np.ndarray) -> Any:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self.held += [array, value]
        return value

    def step(self, place: int) -> None:
        for name, array in (("input_ids", np.full((1, 1), 7)), ("attention_mask", self.mask[:, : place + 1])):
            self.binding.bind_ortvalue_input(name, self._value(np.ascontiguousarray(array, np.int64)))
        self.session.run_with_iobinding(self.binding)
        del self.held[-4:]


def by_kind(path: Path, tokens: int) -> tuple[dict[str, tuple[float, int]], float]:
    """Microseconds and nodes a token of each kind, and of a whole run, from the profiler's file."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    runs = []
    for event in json.loads(path.read_text()):
        if event.get("name", "").endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            sums[kind] += event["dur"]
            counts[kind] += 1
        elif event.get("name") == "model_run":
            runs.append(event["dur"])
    return {kind: (sums[kind] / tokens, round(counts[kind] / tokens)) for kind in sums}, median(runs)


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=cache_dir() / "lm-overhead")
@click.option("--tokens", type=int, default=60)
@click.option("--sets", type=int, default=5, help="Times everything is opened afresh.")
def main(work: Path, tokens: int, sets: int) -> None:
    """Print ratios, and a row for each kind of node."""
    model, folder = source("smollm2", work), work / "smollm2"
    plain, slotted = bundles(model, folder)
    peer, _, _ = genai_route(model, folder)
    graphs: dict[str, tuple[Path, Path | None]] = {
        "plain": (plain / "onnx" / "model_q4.onnx", None),
        "plain again": (plain / "onnx" / "model_q4.onnx", None),
        "slots": (slotted / "onnx" / "model_q4.onnx", None),
        "genai": (peer / "model.onnx", None),
    }
    library = library_for("auto")
    if library is not None:
        slots = read_bundle(slotted).manifest.slots.linear
        content = (slotted / "onnx" / "model_q4.onnx").read_bytes()
        forms = {
            "kernels": {
                "norms": norms_that_agree(library.path, open_session),
                "silus": silus_that_agree(library.path, open_session),
            },
            "kernels, a node a slot": {"join": False},
        }
        for name, options in forms.items():
            twin = make_twin(content, slots, adapter="adapter", **options)
            assert twin is not None
            path = slotted / "onnx" / f"nodes-{len(graphs)}.onnx"
            path.write_bytes(twin.model)
            graphs[name] = (path, library.path)
    try:
        measure(json.loads((model / "config.json").read_text()), graphs, tokens, sets)
    finally:
        for path, operators in graphs.values():
            if operators is not None:
                path.unlink()


def measure(config: dict[str, Any], graphs: dict[str, tuple[Path, Path | None]], tokens: int, sets: int) -> None:
    """Print what the graphs take."""
    ratios: dict[str, list[float]] = defaultdict(list)
    whole: dict[str, list[float]] = defaultdict(list)
    for number in range(sets):
        names = list(graphs)
        opened = {
            name: Graph(config, *graphs[name]) for name in names[number % len(names) :] + names[: number % len(names)]
        }
        times: dict[str, list[float]] = {name: [] for name in names}
        for place in range(tokens + 3):  # the first ones warm up
            for name in names if place % 2 else names[::-1]:
                start = thread_time()
                opened[name].step(CONTEXT + place)
                if place > 2:
                    times[name].append(thread_time() - start)
        for name in names:
            ratios[name].append(ratio(times[name], times["plain"]))
            whole[name].append(median(times[name]) * 1e3)
    print(
        f"one thread, context {CONTEXT}, {sets} sets of {tokens} tokens in turns, CPU time over that of the graph without slots"
    )
    for name, found in ratios.items():
        print(
            f"  {name:24s} {median(whole[name]):6.2f} ms  {median(found):.3f}x ({min(found):.3f} to {max(found):.3f})"
        )
    with tempfile.TemporaryDirectory() as scratch:
        profiled = {
            name: Graph(config, *paths, Path(scratch) / f"p{number}")
            for number, (name, paths) in enumerate(graphs.items())
        }
        for place in range(tokens):
            for graph in profiled.values():
                graph.step(CONTEXT + place)
        found_kinds = {name: by_kind(Path(graph.session.end_profiling()), tokens) for name, graph in profiled.items()}
    kinds = sorted({kind for found, _ in found_kinds.values() for kind in found})
    print("microseconds a token by kind of node (nodes in brackets), with the profiler on; and a whole run")
    print(f"  {'':36s}" + "".join(f"{name[:18]:>20s}" for name in graphs))
    for kind in kinds:
        cells = [found.get(kind) for found, _ in found_kinds.values()]
        print(f"  {kind:36s}" + "".join(f"{f'{c[0]:.0f} ({c[1]})' if c else '–':>20s}" for c in cells))
    print(
        f"  {'sum of nodes':36s}"
        + "".join(f"{sum(c[0] for c in found.values()):20.0f}" for found, _ in found_kinds.values())
    )
    print(f"  {'run':36s}" + "".join(f"{run:20.0f}" for _, run in found_kinds.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
