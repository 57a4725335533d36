"""The identity of a base: one hash over the weights that its checkpoint holds."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol

import numpy as np


class Pieces(Protocol):
    """A weight that is read piece by piece, along its first axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """The pieces, float32."""


def hash_weights(weights: Iterable[tuple[str, np.ndarray | Pieces]]) -> str:
    """sha256 over ``(name, shape, float32 bytes)`` of each weight, independent of the order given."""
    digests = []
    for name, array in weights:
        digest = hashlib.sha256(f"{name}\0{tuple(array.shape)}\0".encode())
        for piece in (array,) if isinstance(array, np.ndarray) else array:
            digest.update(np.ascontiguousarray(piece).view(np.uint8).reshape(-1).data)
        digests.append((name, digest.hexdigest()))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(digests)).encode()).hexdigest()


def identity_of_model(model: Any, missing_keys: Collection[str] = ()) -> str:
    """The base identity of a Hugging Face model, as sha256 hex digits.

    ``missing_keys`` are the parameters that the checkpoint does not hold (``loading_info["missing_keys"]``); they are
    fresh and stay outside the identity. The encoder's prefix (``bert.``) is dropped, so that the same checkpoint has one
    identity whether it was loaded with or without a head. Weights count as float32, whatever they were stored in.
    """
    prefix = f"{model.base_model_prefix}."
    fresh = set(missing_keys)

    def weights() -> Iterable[tuple[str, np.ndarray]]:
        for name, parameter in model.named_parameters():
            if name not in fresh:
                array = np.ascontiguousarray(parameter.detach().float().cpu().numpy())
                yield name.removeprefix(prefix), array

    return hash_weights(weights())
