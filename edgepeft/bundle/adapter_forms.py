"""Forms in which an adapter's tensors lie in its files: float32, float16, or 8-bit factors with a scale for each rank.

Slots take float32. Tensors of the other forms are expanded when the file is read: float16 exactly, 8 bits by one product in
float32, so that every runtime gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np

from .slots import SlotTable

AdapterForm = Literal["fp32", "fp16", "int8"]
#: The forms, the largest first.
FORMS: tuple[AdapterForm, ...] = get_args(AdapterForm)

#: How the name of the scales of an 8-bit tensor ends.
SCALE = "/scale"
#: The largest number of 8 bits that is used: as many steps above zero as below.
TOP = 127

_TYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "int8": np.dtype(np.int8)}


def rank_axes(slots: SlotTable) -> dict[str, int]:
    """The axis of each factor that is its rank, by the tensor's name."""
    return {name: axis for slot in slots.factored for name, axis in zip((slot.a, slot.b), slot.rank_axes, strict=True)}


def stored(tensors: Mapping[str, np.ndarray], form: AdapterForm, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors as a form stores them.

    Args:
        tensors: float32 arrays by slot tensor.
        form: ``"fp16"`` stores all of them in float16. ``"int8"`` stores factors in 8 bits, with a float32 scale for each rank
            under ``<name>/scale``, and all else (heads, norms, biases, gains, states) in float16.
        axes: The rank's axis of each factor (:func:`rank_axes`).

    Raises:
        ValueError: A number is not finite in float16; the message names its tensor.
    """
    if form == "fp32":
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if form == "int8" and name in axes:
            found[name], found[f"{name}{SCALE}"] = _in_8_bits(array, axes[name])
        else:
            found[name] = _half(name, array)
    return found


def _half(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{name} holds {np.abs(array).max():.3g}, which float16 cannot (65,504 at most)")
    return half


def _in_8_bits(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127 … 127, and a scale for each rank, of a shape that multiplies them."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    peak = np.abs(array).max(axis=others, keepdims=True).astype(np.float32)
    scale = np.where(peak > 0, peak / np.float32(TOP), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(array / scale), -TOP, TOP).astype(np.int8), scale


def is_scale(name: str, held: Mapping[str, np.ndarray]) -> bool:
    """Whether a tensor of a file holds the scales of another one."""
    of = held.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
    return of is not None and of.dtype == np.int8


def expanded(held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slot tensors in float32 of what a file holds, in the file's order.

    Raises:
        ValueError: A scale is missing, or does not fit its tensor; the message names it.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in held.items():
        if is_scale(name, held):
            continue
        if array.dtype != np.int8:
            found[name] = array.astype(np.float32, copy=False)
            continue
        scale = held.get(f"{name}{SCALE}")
        if scale is None or scale.dtype != np.float32 or not _multiplies(scale.shape, array.shape):
            what = "none" if scale is None else f"{scale.dtype} {list(scale.shape)}"
            raise ValueError(f"{name} is in 8 bits, and its scales are {what}")
        found[name] = array.astype(np.float32) * scale
    return found


def _multiplies(scale: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether scales have one size of the tensor's, and are 1 along all other axes."""
    wide = [axis for axis, size in enumerate(scale) if size != 1]
    return len(scale) == len(shape) and len(wide) <= 1 and all(scale[axis] == shape[axis] for axis in wide)


def wrong_type(held: Mapping[str, np.ndarray], form: AdapterForm, factors: Collection[str]) -> str | None:
    """The first slot tensor of a file that is not stored as ``form`` stores it; ``None`` where all are.

    Args:
        held: What the file holds.
        form: What the manifest says.
        factors: Names of tensors that are factors.
    """
    for name, array in held.items():
        own = form if form != "int8" else "int8" if name in factors else "fp16"
        if not is_scale(name, held) and array.dtype != _TYPES[own]:
            return name
    return None
