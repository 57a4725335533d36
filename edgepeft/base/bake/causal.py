"""A causal language model for baking, in the shape that a step of decoding has: tokens and a cache in, logits and a cache out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...adapters.base_weights import HeldWeights
from ...adapters.checkpoint import Checkpoint
from ...adapters.methods.tracing import Pairs, Step, Tracing, cache_of_pairs, pairs_of
from ...adapters.prefix import fill_prefix
from ...adapters.read import read_adapter
from ...bundle.slots import Dim
from ...errors import CaptureError
from ..load import Loaded, quiet
from ..routes.traced_causal import cache_of


def with_layers(wrapped: Any, tracing: Tracing, task: int | None) -> Any:
    """The transformers model inside PEFT's ``wrapped``, whose layers are adapted and run for ``task``.

    Where the method keeps a cache of its own it is a step that takes and gives the caches of both.
    """
    from peft.tuners.tuners_utils import BaseTuner

    if tracing.step is not None:
        tuner = wrapped.base_model
        return _as_step(tuner, tuner.model.config, tracing.step(wrapped))
    model = wrapped.get_base_model()
    if isinstance(model, BaseTuner):  # so PEFT answers for tuners of another make
        model = model.model
    if task is not None and tracing.for_task is not None:
        tracing.for_task(model, task)
    return model


def with_states(loaded: Loaded, checkpoint: Checkpoint) -> Loaded:
    """``loaded`` with the adapter's states before every sequence; its context is shorter by as many tokens.

    The states are constants, not a part of the cache: a step's cache holds tokens alone, as without an adapter. Raises what
    :func:`edgepeft.adapters.prefix.fill_prefix` does for bases that they do not fit.
    """
    adapter = read_adapter(checkpoint, name="baked", weights=HeldWeights({}), module=lambda: loaded.model)
    with quiet():
        layers = cache_of(loaded.model)
    tensors: dict[str, tuple[Dim, ...]] = {
        f"prefix.{index}.{kind}": (1, array.shape[1], "prefix_length", array.shape[3])
        for index, layer in enumerate(layers)
        for kind, array in (("key", layer.keys), ("value", layer.values))
    }
    states = fill_prefix(adapter, tensors, loaded.model.config.to_dict(), loaded.max_length)
    length = next(iter(states.values())).shape[2]
    left = None if loaded.max_length is None else loaded.max_length - length
    return replace(loaded, model=_prefixed(loaded.model, states, length), max_length=left, fresh=())


def _as_step(module: Any, config: Any, run: Step) -> Any:
    """``run(ids, mask, positions, past)``, which computes logits and keys and values, with the signature of a language model."""
    import torch
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.config = module, config

        def forward(
            self,
            input_ids: Any,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: bool = True,
        ) -> Any:
            logits, pairs = run(input_ids, attention_mask, position_ids, past_key_values)
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache_of_pairs(pairs))

    return Step().eval()


def _prefixed(base: Any, states: dict[str, Any], length: int) -> Any:
    import inspect

    import torch

    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise CaptureError(
            f"{type(base).__name__} takes no position_ids: states before its sequence cannot be baked in"
        )
    own = [
        (torch.from_numpy(states[f"prefix.{index}.key"]), torch.from_numpy(states[f"prefix.{index}.value"]))
        for index in range(len(states) // 2)
    ]

    def run(ids: Any, mask: Any, positions: Any, past: Any) -> tuple[Any, Pairs]:
        rows = ids.shape[0]
        pairs = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in own]
        if past is not None:
            pairs = [
                (torch.cat([keys, layer.keys], dim=2), torch.cat([values, layer.values], dim=2))
                for (keys, values), layer in zip(pairs, past.layers, strict=True)
            ]
        if mask is not None:
            mask = torch.cat([torch.ones(rows, length, dtype=mask.dtype), mask], dim=1)
        out = base(
            input_ids=ids,
            attention_mask=mask,
            position_ids=None if positions is None else positions + length,
            past_key_values=cache_of_pairs(pairs),
            use_cache=True,
        )
        tokens = [(keys[:, :, length:], values[:, :, length:]) for keys, values in pairs_of(out.past_key_values.layers)]
        return out.logits, tokens

    return _as_step(base, base.config, run)
