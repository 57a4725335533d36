"""How exact a PyTorch model's own fp32 outputs are: no comparison with them can ask for less than that."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ParityError

T = TypeVar("T")

#: max |difference| of any output against PyTorch fp32, relative to max(1, max |output|): the sum over a layer in
#: another order costs about 1e-7 a step, six to twelve layers stay two orders below this.
TOLERANCE = 1e-4
#: Both sides of a comparison compute in fp32, and each may be as far from the exact numbers as the reference is. On 24 random
#: adapters, correct graphs were 0.4 to 1.3 times as far from PyTorch's fp32 as that is from float64.
SIDES = 2
#: A reference whose own rounding is larger than this says nothing, and no difference from it is allowed.
NOISE_LIMIT = 1e-2


@dataclass(frozen=True)
class Noise:
    """How far a reference's fp32 outputs are from the same outputs computed otherwise: ``how`` in words."""

    size: float
    how: str

    @property
    def allowed(self) -> float:
        """The difference that this noise explains, at least ``TOLERANCE``."""
        return max(TOLERANCE, SIDES * self.size) if self.size <= NOISE_LIMIT else TOLERANCE

    def __str__(self) -> str:
        return f"PyTorch's own fp32 is {self.size:.1e} from {self.how}"


def rounding_noise(module: Any, run: Callable[[Any], T], difference: Callable[[T, T], float], fp32: T) -> Noise:
    """How much of what ``run`` gives for ``module`` is rounding.

    Args:
        module: The PyTorch model, in fp32.
        run: Computes the outputs of a model.
        difference: max |difference| of two findings of ``run``.
        fp32: What ``run`` gives for ``module``.

    Returns:
        The difference of ``fp32`` from float64, where a copy fits into memory and the model runs in it; else from the same
        model with every sum of a linear layer in the opposite order.
    """
    if _fits(3 * sum(p.numel() * p.element_size() for p in module.parameters())):
        try:
            exact = run(copy.deepcopy(module).double())
        except (RuntimeError, TypeError, ValueError):
            pass  # some models have operations in fp32 only: the other way serves them too
        else:
            return Noise(difference(exact, fp32), "float64")
    with sums_reversed():
        return Noise(difference(run(module), fp32), "the same sums in the opposite order")


def judge(what: str, difference: float, noise: Callable[[], Noise]) -> None:
    """Raise :class:`ParityError` for a difference that rounding does not explain.

    ``noise`` is asked only where ``difference`` is beyond ``TOLERANCE``: it costs another run of the reference. ``what`` differs,
    for the message.
    """
    if difference <= TOLERANCE:
        return
    if not math.isfinite(difference):
        raise ParityError(f"{what} differ from PyTorch by {difference:.2g}, allowed is {TOLERANCE:.0e}")
    measured = noise()
    if difference > measured.allowed:
        raise ParityError(
            f"{what} differ from PyTorch by {difference:.2g}, allowed is {measured.allowed:.1e} ({measured})"
        )


@contextmanager
def sums_reversed() -> Iterator[None]:
    """Linear layers add up their products from the last to the first while the block runs."""
    import torch

    own = torch.nn.functional.linear

    def reverse(value: Any, weight: Any, bias: Any = None) -> Any:
        return own(value.flip(-1), weight.flip(-1), bias)

    torch.nn.functional.linear = reverse  # type: ignore[assignment] # put back below
    try:
        yield
    finally:
        torch.nn.functional.linear = own


def _fits(size: int) -> bool:
    """Whether so many bytes are free, with as much left over."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        free = 4 * 2**30
    return 2 * size <= free
