"""Adapters of experts that were linear layers each (transformers 4), over experts that are one parameter (transformers 5).

``experts.3.gate_proj`` and ``experts.3.up_proj`` are rows of expert 3 in ``experts.gate_up_proj``: their two low-rank changes are
one of the sum of their ranks, ``A = [A_gate; A_up]`` and ``B`` block-diagonal. What comes out is laid out as PEFT lays out LoRA on
``target_parameters``, so all that reads these reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import UnsupportedAdapterError
from ..checkpoint import Checkpoint
from .lora_targets import expert_site
from .lowering import pattern_value

_NAME = re.compile(
    r"(?P<module>.+\.experts)\.(?P<expert>[0-9]+)\.(?P<leaf>gate_proj|up_proj|down_proj|w1|w2|w3)\.(?P<part>.+)"
)
#: Mixtral's names of the same three maps.
_LEAVES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_RENAMED = (".block_sparse_moe.", ".mlp.")

#: ``(A [rank, in], B [out, rank])`` with the scale in B, by expert and leaf.
_Pairs = dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]


def with_fused_experts(checkpoint: Checkpoint, known: Callable[[str], bool]) -> Checkpoint:
    """The checkpoint with its experts' tensors by the parameters that hold all experts of a layer.

    Args:
        checkpoint: What was read.
        known: Whether the base has a linear map at a site; an expert's is ``….experts.3.gate_up_proj``.

    Returns:
        The checkpoint as it is where it adapts no experts as modules, or the base has them as modules.

    Raises:
        UnsupportedAdapterError: Experts are adapted in a way that has no form over one parameter.
    """
    if checkpoint.peft_type != "LORA":
        return checkpoint
    modules: dict[str, _Pairs] = {}
    taken: set[str] = set()
    for name in checkpoint.tensors:
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        module = found["module"].replace(*_RENAMED)
        if not known(expert_site(module, "gate_up_proj", 0)):
            continue
        taken.add(name)
        if found["part"] != "lora_A.weight":
            if found["part"] != "lora_B.weight":
                raise UnsupportedAdapterError(
                    f"{checkpoint.source}: {name} is on an expert that is a part of one parameter in this transformers, which "
                    "takes LoRA's A and B alone. Merge the adapter with the transformers that it was trained with"
                )
            continue
        leaf = _LEAVES.get(found["leaf"], found["leaf"])
        modules.setdefault(module, {}).setdefault(int(found["expert"]), {})[leaf] = _pair(checkpoint, name)
    if not taken:
        return checkpoint
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in taken}
    ranks: dict[str, int] = {}
    for module, experts in modules.items():
        leaves = {leaf: _stacked(checkpoint, module, experts, leaf) for leaf in _FUSED}
        present = [leaf for leaf, stacked in leaves.items() if stacked is not None]
        for depth, leaf in enumerate(reversed(present)):
            stacked = leaves[leaf]
            assert stacked is not None
            a, b, rank = stacked
            site = module + ".base_layer" * depth
            tensors |= {f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}
            ranks[f"{module}.{leaf}"] = rank
    return replace(
        checkpoint,
        tensors=tensors,
        stored={f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        config=_config(checkpoint.config, ranks),
    )


def _pair(checkpoint: Checkpoint, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A and B of one expert's layer, with its scale in B."""
    site = name.removesuffix(".lora_A.weight")
    a, b = checkpoint.tensors[name], checkpoint.tensors.get(f"{site}.lora_B.weight")
    if b is None:
        raise UnsupportedAdapterError(f"{checkpoint.source}, site {site}: lora_B.weight is missing from the checkpoint")
    config = checkpoint.config
    alpha = float(pattern_value(config.get("alpha_pattern"), site, config.get("lora_alpha")))
    return a, b * np.float32(alpha / (math.sqrt(len(a)) if config.get("use_rslora") else len(a)))


def _stacked(
    checkpoint: Checkpoint, module: str, experts: _Pairs, leaf: str
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """A ``[experts * rank, in]`` and B ``[out, rank * experts]`` of a parameter of all experts, and the rank."""
    parts = _FUSED[leaf]
    if not any(part in pairs for pairs in experts.values() for part in parts):
        return None
    count = max(experts) + 1
    lacking = next((e for e in range(count) if any(part not in experts.get(e, {}) for part in parts)), None)
    if lacking is not None:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {module} holds {' and '.join(parts)} of some experts and not of expert {lacking}; over one "
            "parameter all experts are adapted, or none"
        )
    a = [np.concatenate([experts[e][part][0] for part in parts]) for e in range(count)]
    b = [_diagonal([experts[e][part][1] for part in parts]) for e in range(count)]
    rank = max(map(len, a))
    a = [np.pad(each, ((0, rank - len(each)), (0, 0))) for each in a]
    b = [np.pad(each, ((0, 0), (0, rank - each.shape[1]))) for each in b]
    return np.concatenate(a), np.ascontiguousarray(np.stack(b, axis=2).reshape(len(b[0]), -1)), rank


def _diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


def _config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config of the same adapter on parameters; their scale is in B, so alpha makes it one."""
    found = dict(config)
    rank_pattern, alpha_pattern = dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
    for parameter, rank in ranks.items():
        key = f"^{re.escape(parameter)}"
        rank_pattern[key] = rank
        alpha_pattern[key] = math.sqrt(rank) if config.get("use_rslora") else rank
    # The first pattern that fits counts.
    found["rank_pattern"] = {**{k: v for k, v in rank_pattern.items() if k.startswith("^")}, **rank_pattern}
    found["alpha_pattern"] = {**{k: v for k, v in alpha_pattern.items() if k.startswith("^")}, **alpha_pattern}
    found["target_parameters"] = sorted({*(config.get("target_parameters") or ()), *ranks})
    targets = config.get("target_modules")
    if isinstance(targets, (list, tuple)):
        experts = {*_LEAVES, "gate_proj", "up_proj", "down_proj"}
        found["target_modules"] = [each for each in targets if each.rpartition(".")[2] not in experts]
    return found
