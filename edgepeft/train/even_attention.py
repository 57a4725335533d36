"""A start at which the token that a classifier reads holds the mean over all tokens, where the base was made for that mean.

Sentence encoders are trained for the mean over their tokens; a classifier over them reads the first token, in which little of it
stands. Where the keys of the last layer are all the same, that layer attends to all tokens alike, and what it writes into the first
one is a linear map of the mean over its inputs. Keys are made the same by a gain of zero on their projection, which is DoRA's
magnitude at that one site: some hundred numbers, which ship as any DoRA does, and which training may change again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .cached import blocks_of

if TYPE_CHECKING:
    from .workbench import Workbench

#: What architectures call the projection of keys.
_KEYS = frozenset({"key", "k_proj", "k_lin", "key_proj", "k"})


def key_site(bench: Workbench) -> str | None:
    """The name of the last layer's projection of keys; ``None`` where it is not a linear layer of its own."""
    from torch import nn

    name, blocks = blocks_of(bench.base.model)
    if not len(blocks):
        return None
    found = [
        f"{name}.{len(blocks) - 1}.{inner}"
        for inner, module in blocks[-1].named_modules()
        if isinstance(module, nn.Linear) and inner.rpartition(".")[2] in _KEYS
    ]
    return found[0] if len(found) == 1 else None


def attend_evenly(model: Any, site: str) -> None:
    """Set the gain of ``site`` to zero in a network that carries DoRA there.

    Raises:
        InputError: It does not.
    """
    import torch

    magnitudes = [
        parameter
        for name, parameter in model.named_parameters()
        if f".{site}.lora_magnitude_vector." in f".{name}" and parameter.requires_grad
    ]
    if not magnitudes:
        raise InputError(f"{site} has no magnitude that is trained: even attention is a start for DoRA at that site")
    with torch.no_grad():
        for parameter in magnitudes:
            parameter.zero_()
