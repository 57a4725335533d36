"""Comparing a graph with the PyTorch model it was captured from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ParityError
from .load import Loaded, sample_batches
from .parity_causal import causal_batches, causal_difference, reference_causal, run_causal, sees_calls
from .parity_positions import Place, place_difference, reference_place, reference_places, run_place
from .rounding import TOLERANCE, judge, rounding_noise

__all__ = ["TOLERANCE", "graph_causal_parity", "output_difference", "parity", "reference_outputs"]

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..graph.mapped_weights import Spilled


def reference_outputs(module: Any, inputs: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """What the PyTorch ``module`` computes for ``inputs``, by output name; in the precision of its parameters."""
    import torch

    floating = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), torch.float32)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        outputs = module(
            **{name: each.to(floating) if each.is_floating_point() else each for name, each in tensors.items()}
        )
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
        elif mask is not None and name.endswith(("start_logits", "end_logits")) and expected.shape == mask.shape:
            difference = difference * mask
        worst = max(worst, float(difference.max(initial=0.0)) / max(1.0, float(np.abs(expected).max(initial=0.0))))
    return worst


def graph_causal_parity(graph: ir.Model, loaded: Loaded, spilled: Spilled | None = None) -> float:
    """max |logit difference| of a causal LM's ``graph`` against PyTorch, prompts and decode steps, ragged and padded.

    ``spilled`` is the graph where its weights lie in a file. Raises :class:`ParityError` where it exceeds ``TOLERANCE``
    and the model's own rounding.
    """
    from ..graph.run import open_graph

    config = loaded.model.config
    parameters = sum(p.numel() for p in loaded.model.parameters())
    batches = causal_batches(
        vocab=int(config.vocab_size),
        pad_id=int(config.pad_token_id or 0),
        max_length=loaded.max_length,
        window=getattr(config, "sliding_window", None),
        config=config.to_dict(),
        parameters=parameters,
        pieces=not sees_calls(loaded.model),
    )
    shapes = {
        value.name or "": [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]
        for value in graph.graph.inputs
    }

    def references(module: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        return [reference_causal(module, batch) for batch in batches]

    def difference(mine: list[tuple[np.ndarray, np.ndarray]], theirs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return max(causal_difference(a, b, batch.mask) for a, b, batch in zip(mine, theirs, batches, strict=True))

    expected = references(loaded.model)
    far = {} if hasattr(loaded.model, "peft_config") else reference_places(loaded, shapes, parameters)
    if spilled is not None:
        spilled.forget(copies=True)  # PyTorch has read them all, and nobody has written yet
    with open_graph(graph if spilled is None else spilled.path) as step:
        worst = difference([run_causal(step, shapes, batch) for batch in batches], expected)
        distant = [(place, place_difference(run_place(step, shapes, place), theirs)) for place, theirs in far.items()]
    judge("logits", worst, lambda: rounding_noise(loaded.model, references, difference, expected))
    for place, found in distant:

        def again(module: Any, place: Place = place) -> np.ndarray:
            logits = reference_place(module, shapes, place)
            return far[place] if logits is None else logits

        judge(
            f"logits of the token at position {place.position}",
            found,
            partial(rounding_noise, loaded.model, again, place_difference, far[place]),
        )
    return max([worst, *(found for _, found in distant)])


def parity(graph: ir.Model, loaded: Loaded) -> float:
    """max |difference| of ``graph`` against the PyTorch model on ragged padded batches.

    Raises :class:`ParityError` where it exceeds ``TOLERANCE`` and the model's own rounding.
    """
    from ..graph.run import run_graph

    outputs = [value.name or "" for value in graph.graph.outputs]
    batches = sample_batches(loaded)
    results = run_graph(graph, batches)

    def references(module: Any) -> list[dict[str, np.ndarray]]:
        return [reference_outputs(module, inputs, outputs) for inputs in batches]

    def difference(mine: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> float:
        masks = [inputs.get("attention_mask") for inputs in batches]
        return max(output_difference(a, b, mask) for a, b, mask in zip(mine, theirs, masks, strict=True))

    expected = references(loaded.model)
    worst = difference(results, expected)
    judge("outputs", worst, lambda: rounding_noise(loaded.model, references, difference, expected))
    return worst
