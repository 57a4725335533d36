"""Lowering LoRA checkpoints, with everything LoRA can carry, to the canonical edits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import AdapterError, AdapterMismatchError, UnsupportedAdapterError
from .checkpoint import Checkpoint
from .form import Adapter, LowRank, OutGain, Override, SiteEdit

#: Gives the base's parameter of a name (``…query.weight``) as PyTorch holds it, or ``None`` where there is none.
BaseWeights = Callable[[str], np.ndarray | None]

#: Options that change what the adapter computes and have no lowering here.
_REFUSED = {
    "use_qalora": "QALoRA pools the input by quantization group",
    "alora_invocation_tokens": "activated LoRA depends on the tokens of the request",
    "layer_replication": "the base itself is rebuilt with repeated layers",
    "target_parameters": "it edits raw parameters (MoE experts), not modules",
    "use_bdlora": "BD-LoRA's block-diagonal factors are stored in another layout",
    "arrow_config": "Arrow routes between several adapters per token",
    "kasa_config": "KaSA rewrites the base weights by SVD when it is loaded",
    "monteclora_config": "MonteCLoRA samples its factors",
    "trainable_token_indices": "trained token embeddings are not lowered yet",
    "megatron_config": "Megatron's parallel layers are stored in shards",
}
#: Options that only steer training, or name what the tensors show anyway.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora", "velora_config",
}  # fmt: skip

_LORA_KEY = re.compile(
    r"(?P<site>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?"
    r"|lora_embedding_A|lora_embedding_B)"
)


def _check_options(checkpoint: Checkpoint) -> None:
    for option, value in checkpoint.config.items():
        if not value:
            continue
        if option in _REFUSED:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: LoRA with {option}={value!r} cannot be exported: {_REFUSED[option]}"
            )
        if option not in _HARMLESS:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: unknown LoRA option {option}={value!r}. It may change what the adapter computes, so "
                "nothing is guessed; an edgepeft release that knows it is needed."
            )


def _pattern_value(patterns: Mapping[str, Any], site: str, default: Any) -> Any:
    """What PEFT takes from ``rank_pattern`` / ``alpha_pattern`` for a site: the first key that ends its path."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", site)), default)


class _Lowering:
    """Consumes the tensors of one checkpoint; what is left at the end is an error."""

    def __init__(self, checkpoint: Checkpoint, weights: BaseWeights) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.weights = weights
        self.left = dict(checkpoint.tensors)
        self.notes: list[str] = []
        self.overrides: dict[str, Override] = {}
        self.lora_biases: dict[str, np.ndarray] = {}

    def fail(self, site: str, message: str) -> AdapterError:
        return AdapterError(f"{self.checkpoint.source}, site {site}: {message}")

    def scaling(self, site: str, rank: int) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
        expected = _pattern_value(self.config.get("rank_pattern") or {}, site, self.config.get("r"))
        if expected != rank:
            raise self.fail(site, f"its tensors have rank {rank}, adapter_config.json says {expected}")
        alpha = float(_pattern_value(self.config.get("alpha_pattern") or {}, site, self.config.get("lora_alpha")))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def base_weight(self, site: str, shape: tuple[int, int]) -> np.ndarray:
        """The base's weight at ``site`` as ``[out, in]`` float32."""
        weight = self.weights(f"{site}.weight")
        if weight is None:
            raise AdapterMismatchError(
                f"{self.checkpoint.source} edits {site}, but the base's weight there cannot be read; "
                "the adapter is for another base, or this bundle has no slot at that site"
            )
        oriented = weight.T if self.config.get("fan_in_fan_out") else weight
        if oriented.shape != shape:
            raise AdapterMismatchError(
                f"{self.checkpoint.source} edits {site} with sizes out×in {shape}; the base has {oriented.shape}. "
                "The adapter was made for another base."
            )
        return np.asarray(oriented, dtype=np.float32)

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

    def low_rank(self, site: str, parts: dict[str, np.ndarray]) -> SiteEdit:
        embedding = "lora_embedding_A" in parts
        a_name, b_name = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        a, b = parts.pop(a_name, None), parts.pop(b_name, None)
        if a is None or b is None:
            raise self.fail(site, f"{b_name if b is None else a_name} is missing from the checkpoint")
        if a.ndim != 2 or b.ndim != 2:
            raise UnsupportedAdapterError(
                f"{self.checkpoint.source}, site {site}: LoRA tensors of shape {a.shape} and {b.shape} (a convolution) are "
                "not lowered yet; merge the adapter with PEFT before export"
            )
        rank = a.shape[0]
        if b.shape[1] != rank:
            raise self.fail(site, f"A {a.shape} and B {b.shape} differ in rank")
        shape = (b.shape[0], a.shape[1])
        scaling = self.scaling(site, rank)
        low_rank = LowRank(a=a.T, b=scaling * b.T)
        initial = self.initial(site, scaling, rank, shape) if not embedding else None
        gain = self.magnitude(site, parts, low_rank, initial, shape)
        if initial is not None:
            low_rank = LowRank(
                a=np.concatenate([low_rank.a, initial.a], 1), b=np.concatenate([low_rank.b, -initial.b], 0)
            )
        bias = parts.pop("lora_B.bias", None)
        if bias is not None:
            base = self.weights(f"{site}.bias")
            if base is None:
                raise UnsupportedAdapterError(
                    f"{self.checkpoint.source}, site {site}: lora_bias adds a bias where the base has none that can be "
                    "replaced; merge the adapter with PEFT before export"
                )
            self.lora_biases[f"{site}.bias"] = scaling * bias
            self.overrides[f"{site}.bias"] = Override(base + scaling * bias)
        return SiteEdit(low_rank=low_rank, out_gain=gain)

    def magnitude(
        self,
        site: str,
        parts: dict[str, np.ndarray],
        low_rank: LowRank,
        initial: LowRank | None,
        shape: tuple[int, int],
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
        weight = self.base_weight(site, shape).T.astype(np.float64)
        if initial is not None:
            weight = weight - initial.delta()
        norm = np.linalg.norm(weight + low_rank.delta(), axis=0)
        if not norm.all():
            raise self.fail(site, "DoRA divides by the norm of a weight column that is zero")
        return OutGain(magnitude.reshape(-1) / norm)

    def take_overrides(self) -> None:
        """Whole parameters in the checkpoint: ``modules_to_save`` and trained biases.

        With ``bias="all"`` PEFT also saves the biases inside its wrapper of a saved module: the trained copy once more
        (``X.modules_to_save.bias``), and the original that its forward never reads (``X.original_module.bias``).
        """
        for key in sorted(self.left):
            if ".original_module." in key and self.is_saved(key.partition(".original_module.")[0]):
                del self.left[key]
                continue
            name = re.sub(r"\.modules_to_save\.(default\.)?", ".", key).replace(".base_layer.", ".")
            trained_bias = self.config.get("bias", "none") != "none" and name.endswith(".bias")
            if self.is_saved(name) or trained_bias:
                if self.weights(name) is None:
                    raise AdapterMismatchError(
                        f"{self.checkpoint.source} brings {name}, which the base does not have or has no slot for. Export the base "
                        "again with this adapter (--slots all-linear reserves slots for heads, not for biases); --mode merge needs "
                        "no slots."
                    )
                self.override(name, self.left.pop(key))

    def is_saved(self, name: str) -> bool:
        """Whether a parameter or module lies in one of ``modules_to_save``, which PEFT takes as ends of module paths."""
        parts = name.split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(path.endswith(saved) for path in paths for saved in self.config.get("modules_to_save") or ())

    def override(self, name: str, tensor: np.ndarray) -> None:
        if name in self.lora_biases:  # lora_bias on top of a trained bias: both add up
            tensor = tensor + self.lora_biases[name]
        elif name in self.overrides and not np.array_equal(self.overrides[name].tensor, tensor):
            raise AdapterError(f"{self.checkpoint.source}: {name} is in the checkpoint twice, with different numbers")
        self.overrides[name] = Override(tensor)


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
    sites: dict[str, SiteEdit] = {}
    for site, parts in by_site.items():
        sites[site] = lowering.low_rank(site, parts)
        if parts:
            raise AdapterError(f"{checkpoint.source}, site {site}: tensors that nothing consumes: {', '.join(parts)}")
    lowering.take_overrides()
    if lowering.left:
        shown = ", ".join(sorted(lowering.left)[:5])
        raise AdapterError(
            f"{checkpoint.source}: {len(lowering.left)} tensor(s) that nothing consumes: {shown}. They are not LoRA's, not "
            "in modules_to_save and not biases that the config says were trained, or the base has no such parameter."
        )
    record = checkpoint.record
    method = (
        "DoRA" if checkpoint.config.get("use_dora") else "rsLoRA" if checkpoint.config.get("use_rslora") else "LoRA"
    )
    return Adapter(
        name=name,
        method=method,
        sites=sites,
        overrides=lowering.overrides,
        labels=tuple(record["labels"]) if record.get("labels") else None,
        base_identity=record.get("base_identity"),
        base_name=checkpoint.config.get("base_model_name_or_path"),
        source=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        notes=tuple(dict.fromkeys(lowering.notes)),
    )
