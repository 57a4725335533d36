"""What a decoder graph takes and returns, read from its session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bundle.cache_names import LAYER_PAST, present_of
from ...errors import BundleError
from ..sessions import run_values

#: ONNX Runtime's names of the types a cache or logits come in.
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}
#: What the loop feeds itself, beside the cache.
_FED = {"input_ids", "attention_mask", "position_ids", "logits_from"}


@dataclass(frozen=True)
class CacheTensor:
    """One layer's keys or values: ``[batch, heads, sequence, head_dim]``."""

    past: str
    present: str
    heads: int
    head_dim: int
    dtype: type[np.generic]

    def zeros(self, batch: int, length: int) -> np.ndarray:
        """An array of this tensor's type; the system maps its pages when they are first written."""
        return np.zeros((batch, self.heads, length, self.head_dim), self.dtype)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a causal LM with a key/value cache.

    ``positions``: the graph takes ``position_ids``. ``logits_from``: it can leave out the logits of a step's first
    tokens. ``shared``: it takes a cache longer than what is filled and writes new keys and values into it, so one
    buffer serves as past and present (GroupQueryAttention); other graphs return a cache that is one step longer.
    ``vocabulary`` is ``None`` where the graph does not fix the logits' last dimension.
    """

    cache: tuple[CacheTensor, ...]
    positions: bool
    logits_from: bool
    shared: bool
    vocabulary: int | None
    logits_dtype: type[np.generic]


def read_signature(session: Any, slots: Mapping[str, Any] | None = None) -> Signature:
    """The signature of a session's graph; one step over one token is run to see how it treats its cache.

    ``slots`` are OrtValues for the slots, where the graph's own numbers for them cannot be run.

    Raises :class:`BundleError` for a graph without a cache, or with an input that generation does not know.
    """
    required = {value.name: value for value in session.get_inputs()}
    names = {*required, *(value.name for value in session.get_overridable_initializers())}
    outputs = {value.name: value for value in session.get_outputs()}
    cache = tuple(_cache_tensor(value, outputs) for name, value in required.items() if LAYER_PAST.fullmatch(name))
    unknown = [name for name in required if name not in _FED and not LAYER_PAST.fullmatch(name)]
    missing = [name for name in ("input_ids", "attention_mask") if name not in required]
    if not cache or "logits" not in outputs or missing or unknown:
        raise BundleError(
            "generation needs a graph with input_ids, attention_mask, past_key_values.N.key/.value and logits; this one "
            f"takes {', '.join(required)} and returns {', '.join(outputs)}"
        )
    logits = outputs["logits"]
    last = logits.shape[-1]
    vocabulary = last if isinstance(last, int) else None
    shared = vocabulary is not None and _shares(session, cache, "position_ids" in required, slots or {})
    return Signature(
        cache=cache,
        positions="position_ids" in required,
        logits_from="logits_from" in names,
        shared=shared,
        vocabulary=vocabulary,
        logits_dtype=_dtype(logits),
    )


def _cache_tensor(value: Any, outputs: dict[str, Any]) -> CacheTensor:
    present = present_of(value.name)
    shape = value.shape
    if present not in outputs or len(shape) != 4 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
        raise BundleError(
            f"cache input {value.name} of shape {shape} needs an output {present}, and the shape [batch, heads, sequence, "
            "head_dim] with heads and head_dim fixed"
        )
    return CacheTensor(past=value.name, present=present, heads=shape[1], head_dim=shape[3], dtype=_dtype(value))


def _dtype(value: Any) -> type[np.generic]:
    if value.type not in _DTYPES:
        raise BundleError(f"{value.name} is {value.type}; generation knows {', '.join(_DTYPES)}")
    return _DTYPES[value.type]


def _shares(session: Any, cache: tuple[CacheTensor, ...], positions: bool, slots: Mapping[str, Any]) -> bool:
    """Whether a cache of four places with none filled comes back with four places."""
    room = 4
    feeds: dict[str, np.ndarray] = {tensor.past: tensor.zeros(1, room) for tensor in cache}
    feeds |= {"input_ids": np.zeros((1, 1), np.int64), "attention_mask": np.ones((1, 1), np.int64)}
    if positions:
        feeds["position_ids"] = np.zeros((1, 1), np.int64)
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4  # a failure is an answer here, not something for standard error
    try:
        found = run_values(session, [tensor.present for tensor in cache], feeds, slots, options)
    except Exception:  # ONNX Runtime's exception types are not public; a graph that concatenates may refuse the mask
        return False
    return all(array.shape[2] == room for array in found.values())
