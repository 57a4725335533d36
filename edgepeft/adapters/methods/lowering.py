"""What every lowering shares: taking tensors out of a checkpoint until none is left."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ...errors import AdapterError, AdapterMismatchError, NeedsPeftError, UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, Exactness, Override, SiteEdit
from ..layout import expert_weight
from ..patterns import keyed

#: Options of every PEFT config that name things or steer training only.
COMMON_OPTIONS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "layers_pattern",
        "layers_to_transform", "modules_to_save", "peft_type", "peft_version", "revision", "target_modules", "task_type",
    }
)  # fmt: skip


def pattern_value(patterns: Mapping[str, Any] | None, site: str, default: Any) -> Any:
    """What PEFT takes from ``rank_pattern`` / ``alpha_pattern`` for a site: the first key that ends its path."""
    return next((value for key, value in (patterns or {}).items() if keyed(key).match(site)), default)


#: What transformers calls embeddings of tokens and language models' heads: their rows are tokens, not labels.
_VOCABULARIES = {"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"}


class Consumer:
    """Consumes the tensors of one checkpoint; what is left at :meth:`finish` is an error."""

    def __init__(self, checkpoint: Checkpoint, weights: BaseWeights) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.weights = weights
        self.left = dict(checkpoint.tensors)
        self.notes: list[str] = []
        self.sites: dict[str, SiteEdit] = {}
        self.overrides: dict[str, Override] = {}
        #: What a lowering adds to a bias, by parameter; added to a bias that was trained as well.
        self.bias_shifts: dict[str, np.ndarray] = {}

    # ── refusing ──
    def fail(self, site: str, message: str) -> AdapterError:
        """An error at a site."""
        return AdapterError(f"{self.checkpoint.source}, site {site}: {message}")

    def needs_peft(self, message: str) -> NeedsPeftError:
        """The error that says why there is no closed form here."""
        return NeedsPeftError(
            f"{self.checkpoint.source}: {message}. It can be lowered through PEFT: export it together with its base."
        )

    def allow_options(self, options: Collection[str]) -> None:
        """Raise :class:`NeedsPeftError` for an option in use that is neither common nor among ``options``."""
        for option, value in self.config.items():
            if value and option not in COMMON_OPTIONS and option not in options:
                raise self.needs_peft(
                    f"option {option}={value!r} of {self.checkpoint.peft_type} has no closed form here"
                )

    # ── tensors ──
    def by_site(self, *parts: str) -> dict[str, dict[str, np.ndarray]]:
        """Take every tensor whose name ends in one of ``parts``; by site, then by part."""
        pattern = re.compile(rf"(?P<site>.+)\.(?P<part>{'|'.join(re.escape(part) for part in parts)})")
        tensors: dict[str, dict[str, np.ndarray]] = {}
        for key in list(self.left):
            match = pattern.fullmatch(key)
            if match:
                tensors.setdefault(match["site"], {})[match["part"]] = self.left.pop(key)
        if not tensors:
            raise AdapterError(
                f"{self.checkpoint.source}: no tensor of {self.checkpoint.peft_type} ({', '.join(parts)}) in the checkpoint"
            )
        return tensors

    def matrices(self, *parts: str, ndim: int = 2) -> dict[str, tuple[np.ndarray, ...]]:
        """Take ``parts`` of every site, all of which must be there, as float64 arrays of ``ndim`` dimensions."""
        taken = {}
        for site, tensors in self.by_site(*parts).items():
            missing = [part for part in parts if part not in tensors]
            if missing:
                raise self.fail(site, f"{missing[0]} is missing from the checkpoint")
            arrays = tuple(tensors[part].astype(np.float64) for part in parts)
            if any(array.ndim > ndim for array in arrays):
                raise self.needs_peft(
                    f"site {site} has tensors of shape {arrays[0].shape} (a convolution?), not lowered in closed form"
                )
            taken[site] = arrays
        return taken

    def shared(self, name: str) -> np.ndarray | None:
        """Take a tensor that all sites share (``base_model.<name>``), if it was saved."""
        tensor = self.left.pop(f"base_model.{name}", None)
        return None if tensor is None else tensor.astype(np.float64)

    # ── the base ──
    def base_weight(self, site: str, shape: tuple[int, int] | None = None) -> np.ndarray:
        """The base's weight at ``site`` as ``[out, in]`` float32; ``shape`` is what the adapter's tensors say it is."""
        weight = self.weights(f"{site}.weight")
        if weight is None:
            raise AdapterMismatchError(
                f"{self.checkpoint.source} edits {site}, but the base's weight there cannot be read; "
                "the adapter is for another base, or this bundle has no slot at that site"
            )
        if shape is not None and weight.ndim > 2:
            weight = weight.reshape(len(weight), -1)  # a convolution counts as [out, in · kernel]
        if shape is not None and weight.shape != shape:
            raise AdapterMismatchError(
                f"{self.checkpoint.source} edits {site} with sizes out×in {shape}; the base has {weight.shape}. "
                "The adapter was made for another base."
            )
        return np.asarray(weight, dtype=np.float32)

    def base_shape(self, site: str) -> tuple[int, ...] | None:
        """``(out, in)`` of the base's weight at ``site``, read from a manifest where that says it; ``None`` without one."""
        return self.weights.shape(f"{site}.weight")

    def base_bias(self, site: str) -> np.ndarray | None:
        """The base's bias at ``site``, ``None`` where it has none; an error where that cannot be known."""
        bias = self.weights(f"{site}.bias")
        if bias is None and not self.weights.complete:
            raise self.needs_peft(f"the adapter changes the bias at {site}, and this bundle has no slot for it")
        return None if bias is None else np.asarray(bias, dtype=np.float64)

    def shift_bias(self, site: str, shift: np.ndarray) -> None:
        """Override the bias at ``site`` by base + ``shift``."""
        base = self.base_bias(site)
        if base is None:
            raise UnsupportedAdapterError(
                f"{self.checkpoint.source}, site {site}: {self.checkpoint.peft_type} adds a bias where the base has none "
                "that can be replaced"
            )
        self.bias_shifts[f"{site}.bias"] = shift
        self.overrides[f"{site}.bias"] = Override(base + shift)

    # ── whole parameters ──
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
                base = self.weights(name)
                if base is None and self.override_experts(name, self.left[key]):
                    del self.left[key]
                    continue
                if base is None:
                    raise AdapterMismatchError(
                        f"{self.checkpoint.source} brings {name}, which the base does not have or has no slot for. Export the base "
                        "again with this adapter (--slots all-linear reserves slots for heads, not for biases); --mode merge needs "
                        "no slots."
                    )
                if name.split(".")[-2] in _VOCABULARIES and self.left[key].shape != base.shape:
                    raise self.resized(name, self.left[key], base)
                self.override(name, self.left.pop(key))

    def override_experts(self, name: str, tensor: Array) -> bool:
        """Replace every expert's matrix by its own in the stack ``tensor``; false where ``name`` is no stack of experts."""
        site = expert_weight(name, 0).removesuffix(".weight")
        shape = self.base_shape(site) if tensor.ndim == 3 else None
        if shape is None or sorted(tensor.shape[1:]) != sorted(shape):
            return False
        if shape[0] == shape[1]:
            raise UnsupportedAdapterError(
                f"{self.checkpoint.source} brings {name} whole: its experts are square, so nothing says whether they lie as "
                "[out, in]. Train them with target_parameters."
            )
        for expert, matrix in enumerate(tensor):
            self.override(expert_weight(name, expert), matrix if matrix.shape == shape else matrix.T)
        return True

    def resized(self, name: str, tensor: np.ndarray, base: np.ndarray) -> AdapterMismatchError:
        """The error for an embedding or a language model's head of another vocabulary."""
        return AdapterMismatchError(
            f"{self.checkpoint.source} brings {name} with shape {tensor.shape}, the base has {base.shape}: it was trained "
            f"on a vocabulary resized from {base.shape[0]} to {tensor.shape[0]} tokens. Resize the base in the same way "
            f"(model.resize_token_embeddings({tensor.shape[0]}); model.save_pretrained(FOLDER), its tokenizer too) and "
            "export that folder."
        )

    def take_saved_layers(self) -> None:
        """Whole embedding layers that PEFT saves beside an adapter on them (``save_embedding_layers``).

        They are the base's own unless the vocabulary was resized or they were trained; PEFT puts them into the base at load.
        """
        for key in sorted(self.left):
            name = key.replace(".base_layer.", ".")
            base = self.weights(name) if name.endswith(".weight") else None
            if base is None or base.ndim != 2:
                continue
            tensor = self.left[key]
            if tensor.shape != base.shape:
                raise self.resized(name, tensor, base)
            if np.array_equal(tensor.astype(np.float32), np.asarray(base, np.float32)):
                del self.left[key]
            elif name.removesuffix(".weight") in self.sites:
                raise self.fail(
                    name.removesuffix(".weight"),
                    "the checkpoint brings other base weights than this base has and edits them as well. It was trained on "
                    "another base: export with that one.",
                )
            else:
                self.override(name, self.left.pop(key))

    def is_saved(self, name: str) -> bool:
        """Whether a parameter or module lies in one of ``modules_to_save``, which PEFT takes as ends of module paths."""
        parts = name.split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(path.endswith(saved) for path in paths for saved in self.config.get("modules_to_save") or ())

    def override(self, name: str, tensor: Array) -> None:
        """Replace the base's parameter of that name."""
        if name in self.bias_shifts:  # a shift on top of a trained bias: both add up
            tensor = tensor + self.bias_shifts[name]
        elif name in self.overrides and not np.array_equal(self.overrides[name].tensor, tensor):
            raise AdapterError(f"{self.checkpoint.source}: {name} is in the checkpoint twice, with different numbers")
        self.overrides[name] = Override(tensor)

    # ── the result ──
    def finish(self, name: str, method: str, *, exactness: Exactness | None = None, merge_only: str = "") -> Adapter:
        """The adapter; raises :class:`AdapterError` where a tensor was not consumed."""
        self.take_overrides()
        self.take_saved_layers()
        if self.left:
            shown = ", ".join(sorted(self.left)[:5])
            raise AdapterError(
                f"{self.checkpoint.source}: {len(self.left)} tensor(s) that nothing consumes: {shown}. They are not "
                f"{method}'s, not in modules_to_save and not biases that the config says were trained, or the base has no such "
                "parameter."
            )
        record = self.checkpoint.record
        return Adapter(
            name=name,
            method=method,
            sites=self.sites,
            overrides=self.overrides,
            labels=self.checkpoint.labels,
            base_identity=record.get("base_identity"),
            base_name=self.config.get("base_model_name_or_path"),
            source=self.checkpoint.source,
            checkpoint_sha256=self.checkpoint.sha256,
            notes=tuple(dict.fromkeys(self.notes)),
            exactness=exactness or Exactness(),
            merge_only=merge_only,
        )
