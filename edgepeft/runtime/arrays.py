"""Arrays that are fed to a base, checked before they reach the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..bundle import Manifest, Variant
from ..bundle.cache_names import is_past
from ..errors import InputError

Inputs = Mapping[str, np.ndarray]
#: The adapter of each row of a batch; ``None`` is the base.
Adapters = Sequence[str | None]


def in_cache_type(inputs: Inputs, variant: Variant) -> Inputs:
    """``inputs`` with a float32 cache in the variant's own type, so that callers need not know which variant is open.

    Raises:
        InputError: A cache in 8 bits is fed floats of earlier tokens: what scale rounds them only the graph knows.
    """
    own = variant.cache_dtype
    if own is None:
        return inputs
    for name, array in inputs.items():
        if own == "int8" and is_past(name) and array.size and array.dtype != np.int8:
            raise InputError(
                f"{name} holds {array.shape[2]} tokens in {array.dtype.name}, and this variant keeps its cache in int8: feed what "
                "one of its own runs returned, or open a variant with a cache in floats"
            )
    return {name: array.astype(own) if is_past(name) else array for name, array in inputs.items()}


def check_arrays(inputs: Inputs, manifest: Manifest, variant: Variant) -> None:
    """Refuse arrays that ONNX Runtime would fail on deep inside the graph, or read past a table with.

    A cache may be float32 or of the variant's own type.

    Raises:
        InputError: A name is missing or unknown, a type or shape is not the base's, or shapes do not agree.
    """
    known = {value.name for value in manifest.inputs}
    required = {value.name for value in manifest.inputs if not value.optional}
    if not required <= set(inputs) <= known:
        raise InputError(f"inputs are {sorted(inputs)}, the base takes exactly {sorted(required)}")
    sizes: dict[str, tuple[int, str]] = {}
    for value in manifest.inputs:
        array = inputs.get(value.name)
        if array is None:
            continue
        dtype = "float32" if value.dtype == "float" else value.dtype
        own = variant.cache_dtype if is_past(value.name) else None
        fits = array.dtype.name in {dtype, own} and array.ndim == len(value.shape)
        if fits:
            pairs = list(zip(value.shape, array.shape, strict=True))
            fits = all(want == found for want, found in pairs if isinstance(want, int))
            # A cache of no tokens is how every prompt begins.
            fits &= all(found > 0 or str(want).startswith("past_") for want, found in pairs)
        if not fits:
            raise InputError(
                f"input {value.name} is {array.dtype.name} of shape {array.shape}, the base takes {dtype} of shape "
                f"[{', '.join(map(str, value.shape))}] with at least one row and one token"
            )
        for want, found in pairs:
            if isinstance(want, str):
                size, first = sizes.setdefault(want, (found, value.name))
                if size != found:
                    raise InputError(f"inputs differ in shape: {want} is {size} in {first} and {found} in {value.name}")


def check_rows(inputs: Inputs, adapters: int, manifest: Manifest) -> None:
    """Raise :class:`InputError` where inputs that have a row each are not ``adapters`` rows."""
    batched = {value.name for value in manifest.inputs if value.shape and isinstance(value.shape[0], str)}
    rows = {array.shape[0] for name, array in inputs.items() if name in batched and array.ndim}
    if rows != {adapters}:
        raise InputError(f"{adapters} adapters for inputs with {sorted(rows)} rows; give one for each row")
