"""``read_adapter``: whatever PEFT saved, in canonical form."""

from __future__ import annotations

from pathlib import Path

from ..bundle.manifest import check_name
from ..errors import InputError, UnsupportedAdapterError
from .checkpoint import read_checkpoint
from .form import Adapter
from .lora import BaseWeights, lower_lora


def read_adapter(source: str | Path, *, name: str, weights: BaseWeights) -> Adapter:
    """Read a PEFT checkpoint and lower it.

    ``source`` is a folder or a Hugging Face id. ``weights`` gives the base's parameters by name, for methods whose
    lowering depends on them (DoRA, PiSSA, ``lora_bias``). Afterwards every tensor of the checkpoint has been consumed.
    Raises :class:`AdapterError` and its subclasses; see their docstrings.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(f"adapter name: {error}") from error
    checkpoint = read_checkpoint(source)
    if checkpoint.peft_type == "LORA":
        return lower_lora(name, checkpoint, weights)
    raise UnsupportedAdapterError(
        f"{checkpoint.source}: method {checkpoint.peft_type or '(none named)'} is not lowered by this version; LORA is "
        "(with DoRA, rsLoRA and its other options). Where PEFT can merge the method, merge it there and export the result "
        "as a base."
    )
