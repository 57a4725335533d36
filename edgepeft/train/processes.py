"""Training that a launcher started in several processes (``torchrun``, ``accelerate launch``, ``mpirun``), as if it were one.

All processes read the same rows, hold the same weights and draw the same order of rows. Of every batch each takes its share; the
gradients are added up before the step, which all of them then make alike. So a step is that of one process over the same batch, but
for the order in which floats are added. The first process alone writes and speaks.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: How launchers say how many processes there are, and which one this is: torchrun and accelerate, Intel's MPI, Open MPI, MVAPICH.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PLACES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched() -> tuple[int, int]:
    """Which process this is, from 0, and how many a launcher started: ``(0, 1)`` without one."""
    for size, place in zip(_SIZES, _PLACES, strict=True):
        if os.environ.get(size, "").isdecimal() and os.environ.get(place, "").isdecimal():
            return int(os.environ[place]), max(1, int(os.environ[size]))
    return 0, 1


def is_first() -> bool:
    """Whether this process writes and speaks: it is the first of those that were launched, or the only one."""
    return launched()[0] == 0


def check_alone(what: str) -> None:
    """Refuse ``what`` in several processes.

    Raises:
        InputError: A launcher started more than one.
    """
    count = launched()[1]
    if count > 1:
        raise InputError(
            f"{what} runs in one process, and a launcher started {count}; call it without one. Over several processes edgepeft "
            "trains one adapter (edgepeft train)"
        )


class Group:
    """The processes of a training, seen from one of them; of one process, where each method gives back what it was given.

    Args:
        place: Which one this is, from 0.
        count: How many there are.
    """

    def __init__(self, place: int = 0, count: int = 1) -> None:
        self.place, self.count = place, count

    @property
    def several(self) -> bool:
        """Whether there is another process."""
        return self.count > 1

    def share(self, values: Sequence[T]) -> Sequence[T]:
        """What of ``values`` is this process's: every ``count``-th, so that long and short rows go to all."""
        return values[self.place :: self.count] if self.several else values

    def gathered(self, value: T) -> list[T]:
        """``value`` of each process, in their order. All must call it."""
        if not self.several:
            return [value]
        import torch

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """``value`` of the first process. All must call it."""
        if not self.several:
            return value
        import torch

        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into each of ``tensors``, in place. All must call it."""
        if not self.several:
            return
        import torch

        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        self._put(tensors, flat)

    def same(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put what the first process has into each of ``tensors``, in place. All must call it."""
        if not self.several:
            return
        import torch

        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        torch.distributed.broadcast(flat, src=0)
        self._put(tensors, flat)

    @staticmethod
    def _put(tensors: Sequence[torch.Tensor], flat: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Wait for all processes. All must call it."""
        if self.several:
            import torch

            torch.distributed.barrier()


_group = Group()


def group() -> Group:
    """The processes that train together; this one alone until :func:`join`."""
    return _group


def join() -> Group:
    """Come together with the other processes that the launcher started; they stay together until this one ends.

    Without a launcher nothing is done. Accelerate chooses what they talk over: gloo on processors, NCCL on CUDA's GPUs.
    """
    global _group
    place, count = launched()
    if count > 1 and not _group.several:
        import torch
        from accelerate import PartialState

        from .device import training_device

        begun = torch.distributed.is_initialized()  # by the program that calls us
        state = PartialState(cpu=training_device().type == "cpu")
        if not begun:
            atexit.register(_leave)
        _group = Group(state.process_index, state.num_processes)
        if _group.count != count:
            raise InputError(
                f"a launcher started {count} processes, and {_group.count} came together as number {place}; training needs a "
                "backend of torch.distributed that works here (gloo, nccl)"
            )
    return _group


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
