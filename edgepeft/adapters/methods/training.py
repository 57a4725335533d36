"""What training wants to know of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """How a method is trained.

    ``rate`` is the learning rate that a classifier of some hundred rows takes without a search: methods that scale what is
    there already want larger steps than LoRA. ``ranked``: the option ``r`` of its config is a rank. ``modules``: it goes to the
    ``usual`` modules of an architecture, to its ``own`` that PEFT knows, or to ``norms``. ``plans_ranks``: it moves rank between
    modules while it trains, so it must know the number of steps. ``language_only``: PEFT makes it over language models alone.
    """

    rate: float = 1e-3
    ranked: bool = True
    modules: Literal["usual", "own", "norms"] = "usual"
    plans_ranks: bool = False
    language_only: bool = False


USUAL = Training()
