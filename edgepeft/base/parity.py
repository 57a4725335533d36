"""Comparing a graph with the PyTorch model it was captured from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ParityError
from .load import Loaded, sample_batches
from .parity_causal import causal_batches, causal_difference, reference_causal, run_causal

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..graph.mapped_weights import Spilled

#: max |difference| of any output against PyTorch fp32, relative to max(1, max |output|): the sum over a layer in
#: another order costs about 1e-7 a step, six to twelve layers stay two orders below this.
TOLERANCE = 1e-4


def reference_outputs(module: Any, inputs: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """What the PyTorch ``module`` computes for ``inputs``, by output name."""
    import torch

    with torch.no_grad():
        outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: found.numpy() for name in names if (found := _output(outputs, name)) is not None}


def _output(outputs: Any, name: str) -> Any:
    """An output by name; ``vision_model_output.pooler_output`` lies one level down."""
    head, _, rest = name.partition(".")
    output = outputs.get(head) if hasattr(outputs, "get") else None
    return _output(output, rest) if rest and output is not None else output


def output_difference(
    mine: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], mask: np.ndarray | None
) -> float:
    """max |difference| over all outputs, padded positions of per-token outputs ignored.

    Outputs larger than 1 count relative to their largest number. ``mask`` is ``[batch, sequence]``, or ``None`` for inputs
    without padding.
    """
    worst = 0.0
    for name, expected in reference.items():
        actual = mine[name]
        if actual.shape != expected.shape:
            raise ParityError(f"output {name} has shape {actual.shape}, PyTorch gives {expected.shape}")
        difference = np.abs(actual.astype(np.float64) - expected)
        if not np.isfinite(difference).all():
            return float("inf")
        if mask is not None and expected.ndim == 3 and expected.shape[:2] == mask.shape:
            difference = difference * mask[:, :, None]
        worst = max(worst, float(difference.max(initial=0.0)) / max(1.0, float(np.abs(expected).max(initial=0.0))))
    return worst


def graph_causal_parity(graph: ir.Model, loaded: Loaded, spilled: Spilled | None = None) -> float:
    """max |logit difference| of a causal LM's ``graph`` against PyTorch, prompts and decode steps, ragged and padded.

    ``spilled`` is the graph where its weights lie in a file. Raises :class:`ParityError` where it exceeds ``TOLERANCE``.
    """
    from ..graph.run import open_graph

    config = loaded.model.config
    batches = causal_batches(
        vocab=int(config.vocab_size),
        pad_id=int(config.pad_token_id or 0),
        max_length=loaded.max_length,
        window=getattr(config, "sliding_window", None),
    )
    shapes = {
        value.name or "": [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]
        for value in graph.graph.inputs
    }
    expected = [reference_causal(loaded.model, batch) for batch in batches]
    if spilled is not None:
        spilled.forget(copies=True)  # PyTorch has read them all, and nobody has written yet
    with open_graph(graph if spilled is None else spilled.path) as step:
        worst = max(
            causal_difference(run_causal(step, shapes, batch), reference, batch.mask)
            for batch, reference in zip(batches, expected, strict=True)
        )
    if not worst <= TOLERANCE:
        raise ParityError(f"logits differ from PyTorch by {worst:.2g}, allowed is {TOLERANCE:.0e}")
    return worst


def parity(graph: ir.Model, loaded: Loaded) -> float:
    """max |difference| of ``graph`` against the PyTorch model on ragged padded batches.

    Raises :class:`ParityError` where it exceeds ``TOLERANCE``.
    """
    from ..graph.run import run_graph

    outputs = [value.name or "" for value in graph.graph.outputs]
    batches = sample_batches(loaded)
    results = run_graph(graph, batches)
    worst = max(
        output_difference(mine, reference_outputs(loaded.model, inputs, outputs), inputs.get("attention_mask"))
        for inputs, mine in zip(batches, results, strict=True)
    )
    if not worst <= TOLERANCE:
        raise ParityError(f"outputs differ from PyTorch by {worst:.2g}, allowed is {TOLERANCE:.0e}")
    return worst
