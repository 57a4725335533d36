"""What generation needs of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...bundle import Bundle, OwnText
from ...executors import Device
from ..active import ActiveAdapter
from .encoder import Prompt
from .loop import Plan
from .options import Options


class Planner(Protocol):
    """From prompts to tokens and to a plan of what follows them; :class:`edgepeft.runtime.generation.Generator` is one."""

    def encode(self, prompt: Prompt, options: Options, before: int = 0) -> list[int]:
        """A prompt's tokens."""

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, before: int = 0) -> Plan:
        """When to stop and how to choose, for a batch of prompts."""


class Graphs(Protocol):
    """A bundle's sessions, and adapters for them; :class:`edgepeft.runtime.engine.Engine` is one."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""

    @property
    def variant(self) -> str:
        """The variant that is open."""

    @property
    def device(self) -> Device:
        """What computes the graphs."""

    @property
    def base(self) -> ActiveAdapter:
        """The base without an adapter."""

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

    def generator_of(self, own: OwnText) -> Planner:
        """What turns prompts into tokens and plans, by an adapter's tokenizer, template and defaults."""

    def mixed(self, adapters: Sequence[str | None]) -> ActiveAdapter:
        """An adapter of its own for each row of a batch, as one."""
