"""Parameters of a PyTorch model as linear maps ``[out, in]``, whatever the modules that hold them.

transformers' Conv1D (GPT-2) holds ``[in, out]``. A mixture of experts holds each of its matrices for all experts in one
parameter of three dimensions; every expert counts as a layer of its own here, so that ``mlp.experts.down_proj`` is
``mlp.experts.0.down_proj.weight``, ``mlp.experts.1.down_proj.weight``, …
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def conv1d_weights(base: Any) -> set[str]:
    """Weights that a PyTorch model holds as ``[in, out]``: those of transformers' Conv1D (GPT-2)."""
    from transformers.pytorch_utils import Conv1D

    return {f"{path}.weight" for path, module in base.named_modules() if isinstance(module, Conv1D)}


def expert_stacks(base: Any) -> dict[str, bool]:
    """Parameters that hold one matrix for each expert, and whether those lie as ``[in, out]``.

    ``is_transposed`` is how transformers says so, and what PEFT goes by.
    """
    stacks = {}
    for path, module in base.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and getattr(module, "num_experts", None) == len(parameter):
                stacks[f"{path}.{leaf}"] = bool(getattr(module, "is_transposed", False))
    return stacks


def expert_weight(stack: str, expert: int) -> str:
    """The name of one expert's matrix out of the parameter ``stack``."""
    path, _, leaf = stack.rpartition(".")
    return f"{path}.{expert}.weight" if leaf == "weight" else f"{path}.{expert}.{leaf}.weight"


def as_linear(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``arrays`` by the names and in the layout of linear maps ``[out, in]``, in the same order."""
    turned, stacks = conv1d_weights(model), expert_stacks(model)
    linear = {}
    for name, array in arrays.items():
        if name in stacks:
            for expert, matrix in enumerate(array):
                linear[expert_weight(name, expert)] = np.ascontiguousarray(matrix.T) if stacks[name] else matrix
        else:
            linear[name] = np.ascontiguousarray(array.T) if name in turned else array
    return linear


def as_held(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reverse of :func:`as_linear`. Experts that ``arrays`` lacks keep the ``model``'s numbers."""
    turned, stacks = conv1d_weights(model), expert_stacks(model)
    held = {name: np.ascontiguousarray(array.T) if name in turned else array for name, array in arrays.items()}
    parameters = dict(model.named_parameters())
    for name, transposed in stacks.items():
        experts = {
            expert: held.pop(expert_weight(name, expert))
            for expert in range(len(parameters[name]))
            if expert_weight(name, expert) in held
        }
        if experts:
            whole = parameters[name].detach().float().numpy().copy()
            for expert, matrix in experts.items():
                whole[expert] = matrix.T if transposed else matrix
            held[name] = whole
    return held
