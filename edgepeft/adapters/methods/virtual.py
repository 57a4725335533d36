"""Methods that put trained states before the sequence of a causal language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import AdapterError, NeedsPeftError, UnsupportedAdapterError
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, Prefix
from ..prefix import check_layers

_KEY = "prompt_embeddings"


def _saved(checkpoint: Checkpoint, width: int | None) -> Array:
    """The one tensor of the checkpoint, ``[virtual tokens, width]``."""
    others = sorted(set(checkpoint.tensors) - {_KEY})
    if others:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} also saved {others[0]} (of {len(others)} such tensors), which has no "
            "place before the sequence of a language model"
        )
    prompts = checkpoint.tensors.get(_KEY)
    length = checkpoint.config.get("num_virtual_tokens")
    if prompts is None or prompts.ndim != 2 or prompts.shape[0] != length or width not in (None, prompts.shape[1]):
        shape = "none" if prompts is None else f"of shape {prompts.shape}"
        raise AdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} should hold {_KEY} of shape ({length}, {width or 'hidden size'}), found "
            f"{shape}; the file is damaged or its config was changed"
        )
    return prompts


def _adapter(name: str, method: str, checkpoint: Checkpoint, states: Array) -> Adapter:
    record = checkpoint.record
    return Adapter(
        name=name,
        method=method,
        sites={},
        prefix=Prefix(states),
        base_identity=record.get("base_identity"),
        base_name=checkpoint.config.get("base_model_name_or_path"),
        source=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        notes=(f"{states.shape[3]} states stand before every sequence, and take as many places of the context",),
    )


def lower_states(name: str, method: str, checkpoint: Checkpoint) -> Adapter:
    """Prefix tuning and cartridges: keys and values as they were saved.

    A row of the checkpoint is a virtual token: for each layer its key, then its value, heads one after the other.
    """
    config = checkpoint.config
    try:
        layers, heads, width = (int(config[key]) for key in ("num_layers", "num_attention_heads", "token_dim"))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{checkpoint.source}: the config of {checkpoint.peft_type} must give num_layers, num_attention_heads and token_dim, "
            f"as PEFT writes them: {error}"
        ) from error
    if min(layers, heads, width) < 1 or width % heads:
        raise AdapterError(
            f"{checkpoint.source}: token_dim {width} is not {heads} heads (num_attention_heads) of one size in {layers} layers"
        )
    saved = _saved(checkpoint, layers * 2 * width)
    states = saved.reshape(len(saved), layers, 2, heads, width // heads).transpose(1, 2, 3, 0, 4)
    return _adapter(name, method, checkpoint, states)


def _of_task(checkpoint: Checkpoint, task: int) -> Checkpoint:
    """The checkpoint of one task of multitask prompt tuning: prompts times ``columns @ rows`` of the task.

    Wang et al. 2023, arXiv:2303.02861: ``prefix_task_cols`` ``[tasks, virtual tokens, r]``, ``prefix_task_rows`` ``[tasks, r,
    hidden]``.
    """
    tensors = dict(checkpoint.tensors)
    columns, rows = tensors.pop("prefix_task_cols", None), tensors.pop("prefix_task_rows", None)
    prompts = tensors.get(_KEY)
    if (
        prompts is None or columns is None or rows is None or prompts.ndim != 2 or columns.ndim != 3 or rows.ndim != 3
        or min(len(columns), len(rows)) <= task
        or (columns.shape[1], rows.shape[2], columns.shape[2]) != (*prompts.shape, rows.shape[1])
    ):  # fmt: skip
        shapes = {name: array.shape for name, array in checkpoint.tensors.items()}
        raise AdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} should hold {_KEY}, prefix_task_cols and prefix_task_rows that fit each "
            f"other and task {task}, found {shapes}; the file is damaged or its config was changed"
        )
    tensors[_KEY] = prompts * (columns[task] @ rows[task])
    return replace(checkpoint, tensors=tensors)


def lower_tokens(
    name: str, method: str, checkpoint: Checkpoint, module: Callable[[], Any] | None, task: int | None = None
) -> Adapter:
    """Prompt tuning, p-tuning and CPT: the keys and values that the base computes of their virtual tokens.

    No token before them and none after changes these in a causal model, so the base is run over them once. ``task`` is
    that of multitask prompt tuning.
    """
    saved = _saved(checkpoint if task is None else _of_task(checkpoint, task), None)
    if module is None:
        raise NeedsPeftError(
            f"{checkpoint.source}: {checkpoint.peft_type} is lowered by running its base over the virtual tokens once: export it "
            "together with the base."
        )
    import torch

    base = module()
    check_layers(f"{checkpoint.source}: {method}", base.config.to_dict())
    hidden = base.get_input_embeddings().weight.shape[1]
    if saved.shape[1] != hidden:
        raise AdapterError(
            f"{checkpoint.source}: its virtual tokens have {saved.shape[1]} numbers, tokens of this base {hidden}. It was made for "
            "another base."
        )
    with torch.no_grad():
        tokens = torch.from_numpy(np.array(saved, np.float32))[None].to(base.dtype)
        cache = base(inputs_embeds=tokens, use_cache=True).past_key_values
    pairs = [[layer.keys[0].float().numpy(), layer.values[0].float().numpy()] for layer in cache.layers]
    if len({part.shape for pair in pairs for part in pair}) != 1 or pairs[0][0].shape[1] != len(saved):
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} needs a cache of one shape in every layer that keeps all of its "
            f"{len(saved)} virtual tokens; this base has another"
        )
    return _adapter(name, method, checkpoint, np.array(pairs))
