"""A causal language model for baking, in the shape that a step of decoding has: tokens and a cache in, logits and a cache out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...adapters.base_weights import HeldWeights
from ...adapters.checkpoint import Checkpoint
from ...adapters.prefix import fill_prefix
from ...adapters.read import read_adapter
from ...bundle.slots import Dim
from ...errors import CaptureError
from ..load import Loaded, quiet
from ..routes.traced_causal import cache_of


def with_layers(wrapped: Any, task: int | None) -> Any:
    """The transformers model inside PEFT's ``wrapped``, whose layers are adapted; those of Poly run for ``task``.

    With Shadow it is a step that takes and gives the caches of both networks.
    """
    import torch
    from peft.tuners.poly.layer import PolyLayer
    from peft.tuners.shadow.model import ShadowModel
    from peft.tuners.tuners_utils import BaseTuner

    def hook(module: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, {**options, "task_ids": torch.full((args[0].shape[0],), task, dtype=torch.int64)}

    model = wrapped.get_base_model()
    if isinstance(model, BaseTuner):  # so PEFT answers for Poly
        model = model.model
    if isinstance(wrapped.base_model, ShadowModel):
        return with_shadow(wrapped)
    for module in model.modules() if task is not None else ():
        if isinstance(module, PolyLayer):
            module.register_forward_pre_hook(hook, with_kwargs=True)
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


def _cache(pairs: Iterable[tuple[Any, Any]]) -> Any:
    """A cache of keys and values, layer by layer."""
    from transformers import DynamicCache

    found = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        found.update(keys, values, index)
    return found


def _pairs(layers: Any) -> list[tuple[Any, Any]]:
    return [(layer.keys, layer.values) for layer in layers]


def _as_step(module: Any, config: Any, run: Callable[..., tuple[Any, list[tuple[Any, Any]]]]) -> Any:
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
            return CausalLMOutputWithPast(logits=logits, past_key_values=_cache(pairs))

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

    def run(ids: Any, mask: Any, positions: Any, past: Any) -> tuple[Any, list[tuple[Any, Any]]]:
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
            past_key_values=_cache(pairs),
            use_cache=True,
        )
        tokens = [(keys[:, :, length:], values[:, :, length:]) for keys, values in _pairs(out.past_key_values.layers)]
        return out.logits, tokens

    return _as_step(base, base.config, run)


def with_shadow(wrapped: Any) -> Any:
    """PEFT's Shadow model as a step: its second network's cache stands behind the base's, layer by layer."""
    from peft.tuners.shadow.layers import ShadowCache

    tuner = wrapped.base_model
    config = tuner.model.config

    def run(ids: Any, mask: Any, positions: Any, past: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        both = None
        if past is not None:
            pairs, own = _pairs(past.layers), int(config.num_hidden_layers)
            both = ShadowCache(base=_cache(pairs[:own]), shadow=_cache(pairs[own:]))
        out = tuner.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=both, use_cache=True
        )
        tuner._seed_shadow_state = None  # PEFT leaves it until the next call; a trace may leave nothing behind
        found = out.past_key_values
        return out.logits, [*_pairs(found.base.layers), *_pairs(found.shadow.layers)]

    return _as_step(tuner, config, run)
