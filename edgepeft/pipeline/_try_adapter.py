"""Running the base and an adapter once: whether outputs are numbers, and others than the base's."""

from __future__ import annotations

from functools import partial

import numpy as np

from .. import runtime as runtimes
from ..base.parity_causal import empty_cache
from ..bundle import Bundle
from ..errors import AdapterError
from ..runtime import Runtime
from ..validate.probe import CausalProbe, Found, bundle_probe, same_outputs
from ..validate.segmented import SegmentedEngine, together_of

#: Bytes of weights from which on a language model is run part by part, and of one part: ONNX Runtime holds the weights of a session
#: once more in the kernels' own layout.
LARGE, PART = 300_000_000, 64_000_000
#: Tokens of the prompt that such a model reads: with one alone, attention would give it the same whatever its keys are.
TOKENS = 2


def changes_output(bundle: Bundle, name: str, before: Bundle) -> bool:
    """Run the base and the adapter once: whether its outputs are others.

    A large language model reads a short prompt only, with one part of its weights in memory at a time.

    Args:
        bundle: A bundle that holds the adapter.
        name: The adapter.
        before: The bundle that it is a copy of. What of a large base is the same there is read there, where it is known not to have
            changed; the copy is hashed when it is first opened, beside ONNX Runtime's own work.

    Raises:
        AdapterError: Outputs are NaN or infinite.
    """
    probe = bundle_probe(bundle)
    large = _in_parts(bundle, before) if isinstance(probe, CausalProbe) else None
    if large is not None and isinstance(probe, CausalProbe):
        plain, edited = _on_a_prompt(large, probe, name)
    else:
        runtime = runtimes.open(bundle.path)
        view = runtime.adapter(name)
        plain, edited = probe.run(runtime.adapter(None, task=view.task)), probe.run(view)
    if not all(np.isfinite(array).all() for found in edited for array in found.values()):
        raise AdapterError(f"adapter {name!r} gives NaN or infinite outputs; the bundle was left as it was")
    return not same_outputs(edited, plain)


def _on_a_prompt(runtime: Runtime, probe: CausalProbe, name: str) -> tuple[Found, Found]:
    """What the base and the adapter make of the first tokens of a prompt, both at each part while it is open."""
    ids = probe.batches[0].ids[:1, :TOKENS]
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "logits_from": np.array([0], np.int64),
    }
    feeds = {**empty_cache(probe.shapes, 1), **{key: array for key, array in known.items() if key in probe.shapes}}
    views = (runtime.adapter(None), runtime.adapter(name))
    plain, edited = together_of(runtime)([partial(view.forward, feeds) for view in views])
    return [{"logits": plain["logits"]}], [{"logits": edited["logits"]}]


def _in_parts(bundle: Bundle, before: Bundle) -> Runtime | None:
    """A runtime that opens the graph part by part; ``None`` where it is small, or in ONNX Runtime's own format."""
    name, entry = bundle.variant()
    files = (entry.file, *entry.data)
    if bundle.size(files) < LARGE or entry.file.endswith(".ort"):
        return None
    same = all(bundle.manifest.files[file] == before.manifest.files.get(file) for file in files)
    held = before if same else bundle
    held.check(files)  # parts name the weights themselves
    return Runtime(SegmentedEngine(bundle, name, None, kernels="off", part_bytes=PART, held=held))
