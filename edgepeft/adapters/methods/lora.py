"""Lowering LoRA checkpoints, with everything LoRA can carry, to the canonical edits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import AdapterError, AdapterMismatchError, NeedsPeftError, UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, LowRank, OutGain, SiteEdit
from . import lora_targets as parameters
from .lowering import Consumer, pattern_value
from .trained_tokens import take_rows

#: Options that change what the adapter computes and that no edit expresses.
_REFUSED = {
    "alora_invocation_tokens": "activated LoRA depends on the tokens of the request",
    "arrow_config": "Arrow routes between several adapters per token",
    "monteclora_config": "MonteCLoRA samples its factors",
    "megatron_config": "Megatron's parallel layers are stored in shards",
}
#: Options that change what the adapter computes and have no closed form here; through PEFT itself they do.
_THROUGH_PEFT = {
    "use_qalora": "QALoRA pools the input by quantization group",
    "use_bdlora": "BD-LoRA's block-diagonal factors are stored in another layout",
    "kasa_config": "KaSA rewrites the base weights by SVD when it is loaded",
}
#: Options that only steer training, or name what the tensors show anyway.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layer_replication", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_dora",
    "use_rslora", "velora_config",
}  # fmt: skip

_LORA_KEY = re.compile(
    r"(?P<site>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?"
    r"|lora_embedding_A|lora_embedding_B)"
)

_TRAINED_ROWS = ".token_adapter.trainable_tokens_delta"


def _check_options(checkpoint: Checkpoint) -> None:
    for option, value in checkpoint.config.items():
        if not value:
            continue
        if option in _REFUSED:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: LoRA with {option}={value!r} cannot be exported: {_REFUSED[option]}"
            )
        if option in _THROUGH_PEFT:
            raise NeedsPeftError(
                f"{checkpoint.source}: LoRA with {option}={value!r} has no closed form: {_THROUGH_PEFT[option]}. It can be "
                "lowered through PEFT: export it together with its base."
            )
        if option not in _HARMLESS:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: unknown LoRA option {option}={value!r}. It may change what the adapter computes, so "
                "nothing is guessed; an edgepeft release that knows it is needed."
            )


class _Lowering(Consumer):
    """What LoRA adds to taking tensors: its scaling, its initialisations, DoRA's magnitude."""

    def scaling(self, site: str, rank: int) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).

        ``site`` is what PEFT's patterns are matched with: a module's path, or a targeted parameter's.
        """
        expected = pattern_value(self.config.get("rank_pattern"), site, self.config.get("r"))
        if expected != rank:
            raise self.fail(site, f"its tensors have rank {rank}, adapter_config.json says {expected}")
        alpha = float(pattern_value(self.config.get("alpha_pattern"), site, self.config.get("lora_alpha")))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def initial(self, site: str, scaling: float, rank: int, shape: tuple[int, int]) -> LowRank | None:
        """What PEFT takes out of the base weight when it loads a checkpoint with this initialisation.

        PiSSA (Meng et al. 2024, arXiv:2404.02948) moves the principal components of W into A and B; OLoRA (Büyükakyüz
        2024, arXiv:2406.01775) the leading columns of its QR decomposition. Both are repeated at load, so the base that
        the saved A and B belong to is ``W - scaling * B0 A0``.
        """
        init = self.config.get("init_lora_weights", True)
        if not isinstance(init, str):
            return None
        kind = init.lower()
        if kind in {"gaussian", "eva", "orthogonal", "mica"}:
            return None
        if kind == "lora_ga":
            self.notes.append("lora_ga: PEFT does not repeat its change of the base at load; nor does edgepeft")
            return None
        if kind == "pissa":
            u, s, vh = np.linalg.svd(self.base_weight(site, shape).astype(np.float64), full_matrices=False)
            root = np.sqrt(s[:rank])
            return LowRank(a=(root[:, None] * vh[:rank]).T, b=(u[:, :rank] * root).T)
        if kind == "olora":
            q, r = np.linalg.qr(self.base_weight(site, shape).astype(np.float64))
            return LowRank(a=r[:rank].T, b=scaling * q[:, :rank].T)
        raise UnsupportedAdapterError(
            f"{self.checkpoint.source}: init_lora_weights={init!r} changes the base weights when PEFT loads the checkpoint, "
            "in a way that cannot be repeated here. Save it with "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL_ADAPTER), which makes it plain LoRA."
        )

    def low_rank(self, site: str, parts: dict[str, np.ndarray], key: str | None = None) -> SiteEdit:
        embedding = "lora_embedding_A" in parts
        a_name, b_name = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        a, b = parts.pop(a_name, None), parts.pop(b_name, None)
        if a is None or b is None:
            raise self.fail(site, f"{b_name if b is None else a_name} is missing from the checkpoint")
        rank = a.shape[0]
        kernel = a.shape[2:]
        if kernel:
            b = ungrouped(b.reshape(b.shape[:2]), rank)
            a = a.reshape(rank, -1)
        if a.ndim != 2 or b.ndim != 2 or b.shape[1] != rank:
            raise self.fail(site, f"A {a.shape} and B {b.shape} differ in rank")
        shape = (b.shape[0], a.shape[1])
        if embedding and self.config.get("use_dora"):
            raise self.needs_peft(f"DoRA at the embedding {site} scales its rows")
        scaling = self.scaling(key or site, rank)
        low_rank = LowRank(a=a.T, b=scaling * b.T)
        initial = self.initial(site, scaling, rank, shape) if not embedding and not kernel else None
        gain = self.magnitude(site, parts, low_rank, initial, shape, kernel)
        if initial is not None:
            low_rank = LowRank(
                a=np.concatenate([low_rank.a, initial.a], 1), b=np.concatenate([low_rank.b, -initial.b], 0)
            )
        bias = parts.pop("lora_B.bias", None)
        if bias is not None:
            self.shift_bias(site, scaling * bias)
        return SiteEdit(low_rank=low_rank, out_gain=gain)

    def take_trained_tokens(self) -> None:
        """Lower ``trainable_token_indices``: rows of embeddings beside LoRA (one list of them, or one for each module)."""
        asked = self.config.get("trainable_token_indices")
        if asked and not any(key.endswith(_TRAINED_ROWS) for key in self.left):
            raise UnsupportedAdapterError(
                f"{self.checkpoint.source}: trainable_token_indices={asked!r} says that rows of an embedding were trained, and the "
                "checkpoint holds none. Save it again with PEFT."
            )
        for key in [key for key in self.left if key.endswith(_TRAINED_ROWS)]:
            site = key.removesuffix(_TRAINED_ROWS)
            indices = pattern_value(asked, site, None) if isinstance(asked, Mapping) else asked
            if not indices:
                raise self.fail(
                    site, "its trained rows are saved, and trainable_token_indices does not say which they are"
                )
            take_rows(self, site, [int(index) for index in indices], self.left.pop(key))

    def take_parameters(self, by_site: dict[str, dict[str, np.ndarray]]) -> None:
        """Lower what is on raw parameters (``target_parameters``), and take it out of ``by_site``."""
        for module, levels in parameters.by_module(by_site).items():
            leaves = parameters.targeted(module, self.config, self.base_shape)
            if not leaves:
                continue
            for site in [site for site in by_site if parameters.module_of(site) == module]:
                del by_site[site]
            found = list(parameters.assignments(module, levels, leaves, self.base_shape))
            if len(found) != 1:
                raise self.not_told(module, levels, leaves, ambiguous=bool(found))
            for target in found[0]:
                self.take_parameter(target)

    def not_told(
        self, module: str, levels: list[dict[str, np.ndarray]], leaves: list[str], *, ambiguous: bool
    ) -> AdapterError:
        """The error for tensors on parameters of ``module`` that fit none of ``leaves``, or several."""
        sizes = ", ".join(f"{level['lora_B.weight'].shape[0]}×{level['lora_A.weight'].shape[1]}" for level in levels)
        what = f"{self.checkpoint.source} edits parameters of {module} ({', '.join(leaves)}) with sizes out×in {sizes}"
        if ambiguous:
            return UnsupportedAdapterError(
                f"{what}, which fit in several ways, and the checkpoint does not say which tensors are whose. Target one "
                "parameter of that module in each adapter."
            )
        return AdapterMismatchError(
            f"{what}; the base has no such linear maps there, or this bundle no slots for them (export the base again with "
            "this adapter, or with --slots all-linear)"
        )

    def take_parameter(self, target: parameters.Target) -> None:
        """Lower the tensors of one targeted parameter: a linear map's weight, or a stack of experts."""
        extra = sorted(set(target.parts) - {"lora_A.weight", "lora_B.weight"})
        if extra:
            raise self.fail(target.site, f"PEFT puts no {', '.join(extra)} on a raw parameter")
        if target.experts is None:
            if parameters.may_be_turned(target.site):
                raise self.needs_peft(f"LoRA on the raw parameter {target.key}, which may not be held as [out, in],")
            if self.base_shape(target.site) is None:
                raise self.not_told(target.site, [target.parts], ["weight"], ambiguous=False)
            self.sites[target.site] = self.low_rank(target.site, target.parts, target.key)
            return
        module, _, leaf = target.key.rpartition(".")
        if isinstance(self.config.get("init_lora_weights"), str):
            kind = self.config["init_lora_weights"].lower()
            if kind not in {"gaussian", "eva", "orthogonal", "mica"}:
                raise self.fail(target.site, f"PEFT has no init_lora_weights={kind!r} for experts")
        for expert in range(target.experts):
            site = parameters.expert_site(module, leaf, expert)
            self.sites[site] = self.low_rank(site, parameters.of_expert(target, expert), target.key)

    def magnitude(
        self,
        site: str,
        parts: dict[str, np.ndarray],
        low_rank: LowRank,
        initial: LowRank | None,
        shape: tuple[int, int],
        kernel: tuple[int, ...],
    ) -> OutGain | None:
        """DoRA's ``m / ||W + BA||`` by row (Liu et al. 2024, arXiv:2402.09353), a constant once training is over."""
        magnitude = parts.pop("lora_magnitude_vector.weight", parts.pop("lora_magnitude_vector", None))
        if (magnitude is None) == bool(self.config.get("use_dora")):
            raise self.fail(
                site,
                f"use_dora={self.config.get('use_dora')} but the magnitude is {'missing' if magnitude is None else 'present'}",
            )
        if magnitude is None:
            return None
        weight = self.base_weight(site, None if kernel else shape)
        weight = weight.reshape(len(weight), -1).T.astype(np.float64)
        if weight.shape != shape[::-1]:
            raise self.fail(
                site, f"DoRA over a grouped convolution, or for another base: {shape[::-1]}, here {weight.shape}"
            )
        if initial is not None:
            weight = weight - initial.delta()
        norm = np.linalg.norm(weight + low_rank.delta(), axis=0)
        if not norm.all():
            raise self.fail(site, "DoRA divides by the norm of a weight column that is zero")
        return OutGain(magnitude.reshape(-1) / norm)


def ungrouped(b: np.ndarray, rank: int) -> np.ndarray:
    """B of a grouped convolution (``[out, rank / groups]``) as the dense ``[out, rank]`` that it stands for."""
    outputs, part = b.shape
    groups = rank // max(1, part)
    if groups <= 1 or groups * part != rank or outputs % groups:
        return b
    dense = np.zeros((outputs, rank), b.dtype)
    size = outputs // groups
    for group in range(groups):
        dense[group * size : (group + 1) * size, group * part : (group + 1) * part] = b[
            group * size : (group + 1) * size
        ]
    return dense


def edits_at(checkpoint: Checkpoint, site: str) -> tuple[str, int] | None:
    """What a site becomes and its rank, by its tensors alone; ``None`` where they lie otherwise than in a linear layer."""
    factor = checkpoint.tensors.get(f"{site}.lora_A.weight")
    if factor is None:
        return None
    return "LowRank + OutGain" if checkpoint.config.get("use_dora") else "LowRank", int(factor.shape[0])


def leaves_base_alone(config: Mapping[str, Any]) -> bool:
    """Whether PEFT adds an adapter of this config beside the base's numbers and changes none of them when it loads it."""
    inits = config.get("init_lora_weights", True)
    return (
        (isinstance(inits, bool) or inits == "gaussian")
        and config.get("bias", "none") == "none"
        and not any(
            config.get(key)
            for key in ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
        )
    )


def lower_lora(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """The canonical form of a LoRA checkpoint.

    Honours rank and alpha patterns, rsLoRA, DoRA, ``lora_bias``, ``bias="all"|"lora_only"``, ``modules_to_save``,
    ``fan_in_fan_out`` and initialisations that change the base. Raises :class:`UnsupportedAdapterError` by name for an
    option without a lowering, and :class:`AdapterError` for a tensor that nothing consumed.
    """
    _check_options(checkpoint)
    lowering = _Lowering(checkpoint, weights)
    by_site: dict[str, dict[str, np.ndarray]] = {}
    for key in list(lowering.left):
        match = _LORA_KEY.fullmatch(key)
        if match:
            by_site.setdefault(match["site"], {})[match["part"]] = lowering.left.pop(key)
    if checkpoint.config.get("target_parameters"):
        lowering.take_parameters(by_site)
    for site, parts in by_site.items():
        lowering.sites[site] = lowering.low_rank(site, parts)
        if parts:
            raise AdapterError(f"{checkpoint.source}, site {site}: tensors that nothing consumes: {', '.join(parts)}")
    lowering.take_trained_tokens()
    method = (
        "DoRA" if checkpoint.config.get("use_dora") else "rsLoRA" if checkpoint.config.get("use_rslora") else "LoRA"
    )
    return lowering.finish(name, method)
