"""States before the sequence: which bases take them, and the tensors they become in an adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle.slots import Dim
from ..errors import AdapterMismatchError, UnsupportedAdapterError
from .edits import Adapter, Array

#: Models whose caches PEFT lays out in ways of their own.
_OTHER_LAYOUTS = frozenset({"bloom", "gpt_bigcode"})


def fill_prefix(
    adapter: Adapter, tensors: Mapping[str, tuple[Dim, ...]], config: Mapping[str, Any], max_length: int | None
) -> dict[str, Array]:
    """``prefix.N.key`` and ``prefix.N.value``, float32 ``[1, heads, length, head_dim]`` each; none without a prefix.

    ``tensors`` are those that the base takes, with their shapes; ``config`` is the base's ``config.json``. Raises
    :class:`UnsupportedAdapterError` for bases whose layers do not all see the whole cache, and
    :class:`AdapterMismatchError` for another number of layers or heads and for a prefix that fills the context.
    """
    if adapter.prefix is None:
        return {}
    who = f"adapter {adapter.name!r} ({adapter.method})"
    if not tensors:
        raise UnsupportedAdapterError(
            f"{who} puts states before the sequence; this base has no key/value cache to hold them. It must be a causal "
            "language model."
        )
    check_layers(who, config)
    layers, _, heads, length, head_dim = adapter.prefix.states.shape
    shapes = {
        f"prefix.{layer}.{kind}": (1, heads, "prefix_length", head_dim)
        for layer in range(layers)
        for kind in ("key", "value")
    }
    if shapes != dict(tensors):
        odd = sorted(set(shapes.items()) ^ set(tensors.items()))[0][0]
        raise AdapterMismatchError(
            f"{who} holds {layers} layers of {heads} heads of {head_dim} numbers; at {odd} it has {shapes.get(odd, 'nothing')}, "
            f"the base takes {tensors.get(odd, 'nothing')}. It was made for another base."
        )
    if max_length is not None and length >= max_length:
        raise AdapterMismatchError(
            f"{who} puts {length} states before the sequence; the context of this base is {max_length} tokens, which leaves "
            "no place for a prompt"
        )
    return {
        f"prefix.{layer}.{kind}": np.ascontiguousarray(adapter.prefix.states[layer, side])[None]
        for layer in range(layers)
        for side, kind in enumerate(("key", "value"))
    }


def check_layers(who: str, config: Mapping[str, Any]) -> None:
    """Raise :class:`UnsupportedAdapterError` for a model with layers that do not see the whole cache."""
    text = config.get("text_config") or config
    kinds = text.get("layer_types")
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    partial = sorted({kind for kind in kinds if kind != "full_attention"}) if kinds else []
    if not kinds and window is not None:
        partial = ["sliding_attention"]
    if partial:
        raise UnsupportedAdapterError(
            f"{who} puts states before the sequence; this base has layers of {', '.join(partial)}, which forget its beginning, so "
            "they are not shipped over it. Adapters that change weights (LoRA and others) are."
        )
    kind = str(config.get("model_type", ""))
    if kind in _OTHER_LAYOUTS:
        raise UnsupportedAdapterError(
            f"{who} puts states before the sequence; {kind} lays its cache out in another way, which is not supported"
        )
