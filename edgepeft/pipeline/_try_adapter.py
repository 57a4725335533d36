"""Running the base and an adapter once: whether outputs are numbers, and others than the base's."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np

from .. import runtime as runtimes
from ..base.parity_causal import empty_cache
from ..bundle import Bundle
from ..errors import AdapterError
from ..runtime import Runtime
from ..validate.probe import CausalProbe, Found, bundle_probe, same_outputs

#: Bytes of weights from which on a language model is run part by part, and of one part: ONNX Runtime holds the weights of a session
#: once more in the kernels' own layout.
LARGE, PART = 300_000_000, 64_000_000
#: Tokens of the prompt that such a model reads.
TOKENS = 4


def changes_output(bundle: Bundle, name: str) -> bool:
    """Run the base and the adapter once: whether its outputs are others.

    A large language model reads a short prompt only, with one part of its weights in memory at a time.

    Raises:
        AdapterError: Outputs are NaN or infinite.
    """
    probe = bundle_probe(bundle)
    large = _in_parts(bundle) if isinstance(probe, CausalProbe) else None
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
    from ..validate.segmented import together_of

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


def _in_parts(bundle: Bundle) -> Runtime | None:
    """A runtime that opens the graph part by part; ``None`` where it is small, or cannot be cut here."""
    name, entry = bundle.variant()
    files = bundle.variant_files(name)
    if bundle.size(files) < LARGE or entry.file.endswith(".ort") or find_spec("onnx_ir") is None:
        return None
    from ..validate.segmented import SegmentedEngine  # with onnx_ir, which a device may lack

    bundle.check(files)  # parts name the weights themselves
    return Runtime(SegmentedEngine(bundle, name, None, kernels="off", part_bytes=PART))
