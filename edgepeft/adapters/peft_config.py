"""``adapter_config.json``: the types of the options that are read, checked before anything is computed with them.

The other options are passed on as they are: PEFT has more than two hundred, and a lowering refuses by name those it does
not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..bundle.manifest import explain
from ..errors import AdapterError
from ..strict_json import read_object

_Text = Annotated[str, Field(strict=True, max_length=4096)]
_Names = Annotated[list[_Text], Field(max_length=100_000)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=-1e9, lt=1e9)]
#: A rank, or a number of things.
_Natural = Annotated[int, Field(strict=True, ge=0, lt=2**20)]
_Index = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="allow")

    peft_type: _Text | None = None
    task_type: _Text | None = None
    base_model_name_or_path: _Text | None = None
    revision: _Text | None = None
    bias: _Text | None = None
    r: _Natural | dict[_Text, Any] | None = None
    init_r: _Natural | None = None
    hybrid_r: _Natural | None = None
    topk: _Natural | None = None
    num_virtual_tokens: _Natural | None = None
    num_layers: _Natural | None = None
    num_attention_heads: _Natural | None = None
    token_dim: _Natural | None = None
    lora_alpha: _Number | None = None
    alpha: _Number | None = None
    rank_pattern: dict[_Text, Any] | None = None
    alpha_pattern: dict[_Text, Any] | None = None
    lambda_pattern: dict[_Text, Any] | None = None
    target_modules: _Text | _Names | None = None
    exclude_modules: _Text | _Names | None = None
    feedforward_modules: _Text | _Names | None = None
    modules_to_save: _Names | None = None
    layers_pattern: _Text | _Names | None = None
    layers_to_transform: _Index | list[_Index] | None = None
    target_parameters: _Names | None = None
    token_indices: list[_Index] | None = None


class _Record(BaseModel):
    """What edgepeft wrote beside an adapter that it trained."""

    model_config = ConfigDict(extra="allow")

    labels: Annotated[list[_Text], Field(max_length=2**20)] | None = None
    base_identity: _Text | None = None


def _read(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    value = read_object(path, error=AdapterError)
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise AdapterError(
            f"{path} cannot be used: {explain(error)}. Save the adapter again with PEFT, or take it from its source again."
        ) from error
    return value


def read_config(path: Path) -> dict[str, Any]:
    """``adapter_config.json`` with checked options; :class:`AdapterError` names the file and each wrong option."""
    return _read(path, _Options)


def read_record(path: Path) -> dict[str, Any]:
    """``edgepeft_adapter.json`` with checked keys; :class:`AdapterError` names the file and each wrong key."""
    return _read(path, _Record)
