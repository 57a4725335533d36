"""Activations of a layer computed again in the backward pass, in place of keeping them: less memory for more time."""

from __future__ import annotations

from typing import Any

from ..adapters.methods.registry import METHODS
from ..errors import InputError


def recompute_activations(model: Any) -> None:
    """Let each layer of ``model`` keep its input alone in training, and compute the rest again where gradients need it.

    The same numbers are computed, in the same order and with the same dropout, so what is learnt stays the same.

    Args:
        model: A transformers model, or PEFT's wrapper of one; it is changed in place.

    Raises:
        InputError: The architecture, or the method of PEFT, cannot.
    """
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(network).__name__
    peft = getattr(model, "active_peft_config", None)
    method = METHODS.get(peft.peft_type.value) if peft is not None else None
    if peft is not None and method is not None and method.virtual == "states":
        raise InputError(
            f"{peft.peft_type.value} gives layers their states through a cache, which is left out where layers are computed "
            "twice; leave --gradient-checkpointing out, or train another method"
        )
    try:
        network.activation_checkpointing_enable({"use_reentrant": False})
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{name} cannot compute activations again ({error}); leave --gradient-checkpointing out and lower --batch-size"
        ) from error
    # Only PyTorch's older way needs gradients at the embeddings; here they would make frozen lower layers compute some too.
    network.disable_input_require_grads()
