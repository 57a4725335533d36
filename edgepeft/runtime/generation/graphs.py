"""What generation needs of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...bundle import Bundle
from ..active import ActiveAdapter


class Graphs(Protocol):
    """A bundle's sessions, and adapters for them; :class:`edgepeft.runtime.engine.Engine` is one."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""

    @property
    def session(self) -> Any:
        """The session of a decoder-only model, or of an encoder; :class:`InputError` once closed."""

    @property
    def decoder_session(self) -> Any:
        """The session of an encoder-decoder's decoder."""

    def run(self, inputs: Mapping[str, np.ndarray], active: ActiveAdapter) -> dict[str, np.ndarray]:
        """Run arrays through :attr:`session`'s graph with an adapter."""

    def slot_values(self, active: ActiveAdapter) -> Mapping[str, Any]:
        """An adapter's slot tensors as OrtValues by name."""

    def mixed(self, adapters: Sequence[str | None]) -> ActiveAdapter:
        """An adapter of its own for each row of a batch, as one."""
