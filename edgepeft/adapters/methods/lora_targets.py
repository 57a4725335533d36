"""LoRA on raw parameters (``target_parameters``): which tensors of a checkpoint belong to which, and what they hold.

PEFT wraps a module once for each of its parameters that is targeted, one wrapper in the other: the parameter that the
module registers first is innermost, and only the depth is in the tensors' names (``mlp.experts.base_layer.lora_A.weight``).
A parameter of three dimensions holds a matrix for each expert. Its A is ``[experts * rank, in]``, expert by expert; its B
is ``[out, rank * experts]``, in which a rank's experts stand side by side (``ParamWrapper`` in peft 0.21).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..patterns import compiled

_INNER = ".base_layer"
Parts = dict[str, np.ndarray]
#: ``(out, in)`` of the linear map at a site, or ``None``.
Shape = Callable[[str], "tuple[int, ...] | None"]


@dataclass(frozen=True)
class Target:
    """Tensors of one targeted parameter: ``key`` is its name, ``site`` the linear map that it is or, with ``experts``, its
    first one."""

    key: str
    site: str
    parts: Parts
    experts: int | None


def targeted(module: str, config: Mapping[str, Any], shape: Shape) -> list[str]:
    """The parameters of ``module`` that ``target_parameters`` in an adapter's ``config`` names, as ends of their paths.

    A name without a path may be any module's: it counts where the base has it, and where no target module is meant.
    """
    found = set()
    for target in config.get("target_parameters") or ():
        leaf = target.rpartition(".")[2]
        if f".{module}.{leaf}".endswith(f".{target}"):
            named = "." in target or shape(expert_site(module, leaf, 0)) is not None
            if named or not _is_target_module(module, config.get("target_modules")):
                found.add(leaf)
    return sorted(found)


def _is_target_module(module: str, targets: str | Sequence[str] | None) -> bool:
    if isinstance(targets, str):
        return compiled(targets).fullmatch(module) is not None
    return any(f".{module}".endswith(f".{target}") for target in targets or ())


def module_of(site: str) -> str:
    """The module behind PEFT's wrappers."""
    while site.endswith(_INNER):
        site = site.removesuffix(_INNER)
    return site


def may_be_turned(site: str) -> bool:
    """Whether a targeted 2-D weight may lie otherwise than a linear layer's ``[out, in]``, which PEFT takes it for.

    transformers' Conv1D (modules of GPT-2's names) holds ``[in, out]``, an embedding is looked up by rows.
    """
    name = site.rpartition(".")[2]
    return name in {"c_attn", "c_proj", "c_fc", "q_attn", "wte", "wpe"} or "embed" in name


def by_module(sites: dict[str, Parts]) -> dict[str, list[Parts]]:
    """Tensors by the module that holds the parameters, the innermost wrapper's first."""
    found: dict[str, dict[int, Parts]] = {}
    for site, parts in sites.items():
        module = module_of(site)
        found.setdefault(module, {})[(len(site) - len(module)) // len(_INNER)] = parts
    return {module: [levels[depth] for depth in sorted(levels, reverse=True)] for module, levels in found.items()}


def expert_site(module: str, leaf: str, expert: int) -> str:
    """The site of one expert's matrix in the parameter ``leaf`` of ``module``."""
    return f"{module}.{expert}" if leaf == "weight" else f"{module}.{expert}.{leaf}"


def named_parameters(sites: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Sites as a checkpoint names them, without a base: those of PEFT's wrappers by the parameters they are on."""
    if not config.get("target_parameters"):
        return list(sites)
    depths: dict[str, int] = {}
    for site in sites:
        depths[module_of(site)] = depths.get(module_of(site), 0) + 1
    found: list[str] = []
    for module, depth in depths.items():
        leaves = targeted(module, config, lambda site: None)
        named = [module if leaf == "weight" else f"{module}.{leaf}" for leaf in leaves]
        found += named if len(named) == depth else [module] * depth
    return found


def _fits(parts: Parts, shape: tuple[int, ...] | None) -> bool:
    a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    return a is not None and b is not None and shape is not None and (b.shape[0], a.shape[1]) == tuple(shape[:2])


def assignments(module: str, levels: list[Parts], leaves: list[str], shape: Shape) -> Iterator[list[Target]]:
    """Every way in which the tensors of ``module``'s wrappers fit its parameters ``leaves`` by their sizes."""
    shapes = {leaf: shape(expert_site(module, leaf, 0)) for leaf in leaves}
    counts = {leaf: _experts(module, leaf, shape) for leaf in leaves if shapes[leaf] is not None}
    for order in itertools.permutations(leaves, len(levels)):
        found = []
        for leaf, parts in zip(order, levels, strict=True):
            if leaf == "weight" and leaf not in counts:
                found.append(Target(f"{module}.weight", module, parts, None))
            elif _fits(parts, shapes[leaf]) and len(parts["lora_A.weight"]) % counts[leaf] == 0:
                found.append(Target(f"{module}.{leaf}", expert_site(module, leaf, 0), parts, counts[leaf]))
        if len(found) == len(levels):
            yield found


def _experts(module: str, leaf: str, shape: Shape) -> int:
    return next(e for e in itertools.count(1) if shape(expert_site(module, leaf, e)) is None)


def of_expert(target: Target, expert: int) -> Parts:
    """``expert``'s own A ``[rank, in]`` and B ``[out, rank]`` out of what its stack has."""
    assert target.experts is not None
    a, b = target.parts["lora_A.weight"], target.parts["lora_B.weight"]
    stacked = a.reshape(target.experts, -1, a.shape[1])
    return {
        "lora_A.weight": stacked[expert],
        "lora_B.weight": np.ascontiguousarray(b.reshape(len(b), -1, target.experts)[:, :, expert]),
    }
