"""Comparing a base that was quantized before it came here: both sides compute with the numbers the graph holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime as runtimes
from ..adapters.bundle_graph import load_graph
from ..bundle import MANIFEST_NAME, Bundle, dump_manifest, hash_file
from ..errors import InputError, ParityError
from ..runtime import Runtime
from ..scratch import scratch_folder
from .probe import CausalProbe, bundle_probe
from .reference import Rounded


@contextmanager
def comparable(runtime: Runtime) -> Iterator[tuple[Runtime, Rounded | None]]:
    """What is to be compared with PEFT in ``runtime``'s place, and the numbers PyTorch computes with for it.

    A float bundle is compared as it is. One that has only a quantized variant differs from its checkpoint by more than
    an adapter does, so PyTorch computes with the numbers the graph holds, and a temporary copy of the graph keeps
    activations in float32, as PyTorch does.
    """
    if "fp32" in runtime.manifest.variants:
        yield runtime, None
        return
    import onnx_ir as ir

    from ..base.quantized_reference import exact_activations, find_parameters

    bundle, (_, variant) = runtime.bundle, runtime.bundle.variant(runtime.variant)
    graph = load_graph(bundle, variant.file)

    def rounded(model: Any) -> Mapping[str, np.ndarray]:
        return find_parameters(graph, model).rounded

    with scratch_folder("base") as folder:
        copy = Path(folder) / "bundle"
        for listed in bundle.manifest.files:
            if listed not in variant.files():
                bundle.copy(listed, copy / listed)
        (copy / variant.file).parent.mkdir(parents=True, exist_ok=True)
        with exact_activations(graph):
            name = Path(variant.file).name
            ir.save(graph, copy / variant.file, external_data=f"{name}_data" if variant.data else None)
        files = {name: hash_file(copy / name) for name in bundle.manifest.files if (copy / name).is_file()}
        manifest = bundle.manifest.model_copy(update={"files": files})
        (copy / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
        yield runtimes.open(copy, variant=runtime.variant), rounded


def check_given(bundle: Bundle, onnx: Path) -> None:
    """Raise :class:`ParityError` where a bundle without an adapter differs in a bit from the file it was made from."""
    import onnx_ir as ir

    from ..base.parity_causal import run_causal
    from ..graph.run import open_graph

    probe = bundle_probe(bundle)
    if not isinstance(probe, CausalProbe):
        raise InputError(f"{bundle.path}: only language models are taken from a quantized ONNX file")
    mine = probe.run(runtimes.open(bundle.path))
    with open_graph(ir.load(onnx)) as step:
        for batch, found in zip(probe.batches, mine, strict=True):
            prompt, following = run_causal(step, probe.shapes, batch)
            if not np.array_equal(prompt, found["prompt"]) or not np.array_equal(following, found["following"]):
                worst = max(
                    float(np.abs(a - b).max()) for a, b in ((prompt, found["prompt"]), (following, found["following"]))
                )
                raise ParityError(
                    f"without an adapter the bundle differs from {onnx} by {worst:.2g}; it must give the same bits. "
                    "Nothing was written"
                )
