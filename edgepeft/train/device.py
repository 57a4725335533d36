"""Where training runs, on a GPU where PyTorch has one, and what differs there: random generators, memory, bfloat16."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from ..errors import InputError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: The floats that training steps compute with. By autocast bfloat16 pays where matrices are large: steps of SmolLM2-135M were no
#: faster with it on an H200, since weights are cast in each. On a processor frozen weights are rounded once (:mod:`.fast_linear`).
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: What accelerate and Trainer read too: train on the processor although there is a GPU.
_USE_CPU = "ACCELERATE_USE_CPU"
#: How PyTorch says on a processor that memory ran out; on a GPU it has an error of its own.
_NO_MEMORY = ("can't allocate memory", "not enough memory")


def training_device() -> torch.device:
    """The GPU that PyTorch finds (CUDA, ROCm, Apple's, …), else the processor.

    The processor too where the environment variable ``ACCELERATE_USE_CPU`` is ``true`` or ``1``.
    """
    import torch

    unwanted = os.environ.get(_USE_CPU, "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}
    if unwanted or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@contextmanager
def forked_random() -> Iterator[None]:
    """Within: torch's random generators go on from where they are, the GPU's among them; they are restored after."""
    import torch

    device = training_device()
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.random.fork_rng(devices=[torch.accelerator.current_device_index()], device_type=device.type):
        yield


def device_random_state() -> Any:
    """The state of the GPU's random generator, as a tensor on the processor; ``None`` where there is no GPU."""
    import torch

    device = training_device()
    return None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def restore_device_random(state: Any) -> None:
    """Put :func:`device_random_state` back; without a GPU, or without a state, nothing is done."""
    import torch

    device = training_device()
    if state is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state)


def takes_bf16(precision: Precision) -> bool:
    """Whether training steps are asked to compute in bfloat16.

    Raises:
        InputError: bfloat16 was asked for and the GPU has none, or there is no such precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
    if precision == "fp32":
        return False
    device = training_device()
    if device.type != "cpu" and not torch.get_device_module(device).is_bf16_supported():
        raise InputError(f"this GPU ({device.type}) has no bfloat16; train with --precision fp32")
    return True


def floats(bf16: bool) -> AbstractContextManager[Any]:
    """Within: what the network computes is in bfloat16 where that is safe, while its weights stay in float32 (autocast)."""
    import torch

    return torch.autocast(training_device().type, dtype=torch.bfloat16) if bf16 else nullcontext()


def as_doubles(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float64, on the processor where its device has none (Apple's GPUs)."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Within: memory that runs out becomes an :class:`InputError` that says what to lower.

    Args:
        what: What takes memory and can be lowered, such as ``"--batch-size (16)"``.
    """
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_memory(what, error) from error
    except RuntimeError as error:
        if any(told in str(error) for told in _NO_MEMORY):
            raise _no_memory(what, error) from error
        raise


def _no_memory(what: str, error: Exception) -> InputError:
    told = str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"memory ran out in training ({told}). Lower {what}")


def with_device_growth(work: Callable[[], T]) -> tuple[T, int] | None:
    """What ``work`` gives, and by how many bytes the memory that tensors take on the GPU was higher at its peak than before it.

    ``None``, and ``work`` is not called, where there is no GPU that tells.
    """
    import torch

    device = training_device()
    if device.type == "cpu":
        return None
    try:
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    result = work()
    return result, max(0, torch.accelerator.max_memory_allocated() - before)
