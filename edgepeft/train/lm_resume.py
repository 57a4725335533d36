"""How a language model's training goes on after it was broken off: Trainer's checkpoints, and what they lack.

Beside each of Trainer's checkpoints stands ``edgepeft.pt``: the trained weights themselves (PEFT's files hold what a prompt
encoder gives, not the encoder), the order of rows of the epoch, what was measured, and how many tokens were learnt. It is written
last, so a checkpoint that has it is whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .processes import group, is_first
from .resume import Keeper

if TYPE_CHECKING:
    import torch

_FILE = "edgepeft.pt"
_PREFIX = "checkpoint-"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``."""
    whole = [file.parent for file in folder.glob(f"{_PREFIX}*/{_FILE}")]
    return max(whole, key=lambda each: int(each.name.removeprefix(_PREFIX)), default=None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What :func:`keeping` wrote beside a checkpoint."""
    import torch

    found: dict[str, Any] = torch.load(checkpoint / _FILE, weights_only=True, map_location="cpu")
    return found


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of what is trained, by name."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


def put_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put :func:`trained_weights` back."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


class SameOrder:
    """A sampler whose order of an epoch can be drawn again: it remembers torch's generator as it stood before.

    In several processes the first one's order is that of all: dropout moves their generators apart.

    Args:
        sampler: Draws from torch's own generator.
        replayed: The state from which the first epoch is drawn, in place of the generator's.
    """

    def __init__(self, sampler: Any, replayed: torch.Tensor | None = None) -> None:
        self._sampler, self._replayed = sampler, replayed
        self.before: torch.Tensor | None = replayed

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        import torch

        if self._replayed is None:
            self.before = torch.get_rng_state()
            return iter(group().from_first(list(self._sampler)))
        with torch.random.fork_rng(devices=[]):  # the order is drawn on the processor
            torch.set_rng_state(self._replayed)
            self._replayed = None
            return iter(list(self._sampler))


def keeping(keeper: Keeper, steps_per_epoch: int, extra: Any) -> Any:
    """A ``TrainerCallback`` that asks for checkpoints in time, and completes each.

    Args:
        keeper: Says when, and where.
        steps_per_epoch: Steps after which Trainer measures, and keeps what it measured.
        extra: Called with nothing; gives what is kept beside the weights.
    """
    import torch
    from transformers import TrainerCallback

    class Keeping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The last step of an epoch is kept once the epoch is measured.
            if group().from_first(keeper.due) and state.global_step % steps_per_epoch:
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            whole = io.BytesIO()
            if is_first():
                torch.save({"weights": trained_weights(model), **extra()}, whole)
            keeper.write(f"{_PREFIX}{state.global_step}/{_FILE}", whole.getvalue())

    return Keeping()
