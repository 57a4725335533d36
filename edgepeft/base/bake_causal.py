"""A causal language model for baking, in the shape that a step of decoding has: tokens and a cache in, logits and a cache out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..adapters.checkpoint import Checkpoint
from ..adapters.prefix import fill_prefix
from ..adapters.read import read_adapter
from ..bundle.manifest import Dim
from ..errors import CaptureError
from .load import Loaded, quiet
from .traced_causal import cache_of


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
    adapter = read_adapter(checkpoint.source, name="baked", weights=lambda name: None, module=lambda: loaded.model)
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


def _prefixed(base: Any, states: dict[str, Any], length: int) -> Any:
    import inspect

    import torch
    from transformers import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise CaptureError(
            f"{type(base).__name__} takes no position_ids: states before its sequence cannot be baked in"
        )

    class Prefixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.config = base, base.config
            for name, array in states.items():
                self.register_buffer(name.replace(".", "_"), torch.from_numpy(array))

        def before(self, index: int, kind: str, rows: Any, past: Any) -> Any:
            own = getattr(self, f"prefix_{index}_{kind}").expand(rows, -1, -1, -1)
            return own if past is None else torch.cat([own, getattr(past.layers[index], f"{kind}s")], dim=2)

        def forward(
            self,
            input_ids: Any,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: bool = True,
        ) -> Any:
            rows = input_ids.shape[0]
            cache, present = DynamicCache(), DynamicCache()
            for index in range(len(states) // 2):
                keys, values = (self.before(index, kind, rows, past_key_values) for kind in ("key", "value"))
                cache.update(keys, values, index)
            if attention_mask is not None:
                ones = torch.ones(rows, length, dtype=attention_mask.dtype)
                attention_mask = torch.cat([ones, attention_mask], dim=1)
            out = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=None if position_ids is None else position_ids + length,
                past_key_values=cache,
                use_cache=True,
            )
            for index, layer in enumerate(out.past_key_values.layers):
                present.update(layer.keys[:, :, length:], layer.values[:, :, length:], index)
            return CausalLMOutputWithPast(logits=out.logits, past_key_values=present)

    return Prefixed().eval()


def with_shadow(wrapped: Any) -> Any:
    """PEFT's Shadow model as a step: its second network's cache stands behind the base's, layer by layer."""
    import torch
    from peft.tuners.shadow.layers import ShadowCache
    from transformers import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    tuner = wrapped.base_model

    def caches(layers: Any) -> Any:
        found = DynamicCache()
        for index, layer in enumerate(layers):
            found.update(layer.keys, layer.values, index)
        return found

    class Shadowed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tuner, self.config = tuner, tuner.model.config

        def forward(
            self,
            input_ids: Any,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: bool = True,
        ) -> Any:
            past = None
            if past_key_values is not None:
                own = int(self.config.num_hidden_layers)
                layers = past_key_values.layers
                past = ShadowCache(base=caches(layers[:own]), shadow=caches(layers[own:]))
            out = self.tuner.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past,
                use_cache=True,
            )
            self.tuner._seed_shadow_state = None  # PEFT leaves it until the next call; a trace may leave nothing behind
            found = out.past_key_values
            present = caches([*found.base.layers, *found.shadow.layers])
            return CausalLMOutputWithPast(logits=out.logits, past_key_values=present)

    return Shadowed().eval()
