"""Linear layers in training steps: LoRA's change and its gradients without passes of their own, frozen weights in bfloat16.

PEFT computes ``W x + b``, then ``B (A x)``, scales it and adds it: two more passes over the outputs, and as many in the backward
pass. Here the matrix products add into each other's results, to the same numbers but for rounding. For DoRA PEFT also makes
``B A`` from a unit matrix, and ``W + B A`` for its norms, in each step; here norms come from products with ``A`` and ``B`` alone.

With bfloat16, weights that are not trained are rounded once and not in every step, and only what goes into their products and comes
out of them is rounded. All else, the adapter too, is computed in float32: PyTorch's attention in bfloat16 takes six times as long
backwards on a processor whose matrix products are five times as fast (AMX; MiniLM, 16 x 40 tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class StepFloats:
    """How the steps of a training compute: in float32, or partly in bfloat16.

    On a processor products with frozen weights are in bfloat16, on a GPU, and where nothing is frozen, what autocast says.

    Args:
        model: The network, on its device, with PEFT's adapters on it or not.
        bf16: Whether bfloat16 is wanted.
    """

    def __init__(self, model: nn.Module, *, bf16: bool) -> None:
        from .device import training_device

        on_gpu = training_device().type != "cpu"
        self.linears = FastLinears(model, bf16=bf16 and not on_gpu)
        self._autocast = bf16 and (on_gpu or not len(self.linears))

    def step(self) -> AbstractContextManager[None]:
        """Within: a step, its backward pass too, which may compute layers once more."""
        return nullcontext() if self._autocast else self.linears.used()

    def forward(self) -> AbstractContextManager[Any]:
        """Within: a step's forward pass."""
        from .device import floats

        return floats(self._autocast)


class FastLinears:
    """The linear layers of a network that can be computed so; none where ``len`` is 0.

    Args:
        model: The network, with PEFT's adapters on it or not.
        bf16: Whether products with frozen weights are in bfloat16.
    """

    def __init__(self, model: nn.Module, *, bf16: bool) -> None:
        from torch import nn

        loras = list(_loras(model))
        self._forwards: list[tuple[Any, Callable[..., Any]]] = [
            (
                module,
                (_dora_forward if name in module.lora_variant else _lora_forward)(
                    module, name, _rounded(module.get_base_layer().weight) if bf16 else None
                ),
            )
            for module, name in loras
        ]
        if bf16:
            inside = {id(module.get_base_layer()) for module, _ in loras}
            self._forwards += [
                (module, _frozen_forward(_rounded(module.weight)))
                for module in model.modules()
                if type(module) is nn.Linear
                and id(module) not in inside
                and _plain(module)
                and not module.weight.requires_grad
            ]

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within: the layers are computed so."""
        for module, forward in self._forwards:
            module.forward = MethodType(forward, module)
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.forward  # the class's own is found again


def _loras(model: Any) -> Iterator[tuple[Any, str]]:
    """PEFT's layers of plain LoRA and of DoRA over frozen linear layers, and the name of their one adapter."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.variants import DoraLinearVariant
    from torch import nn

    for module in model.modules():
        if type(module) is not Linear or len(module.active_adapters) != 1 or module.disable_adapters or module.merged:
            continue
        name, base = module.active_adapters[0], module.get_base_layer()
        if (
            name in module.lora_A
            and isinstance(module.lora_variant.get(name), (DoraLinearVariant, type(None)))
            and isinstance(module.lora_dropout[name], nn.Identity)
            and not module.lora_bias[name]
            and type(base) is nn.Linear
            and _plain(base)
            and "forward" not in vars(module)
            and not any(parameter.requires_grad for parameter in base.parameters())
        ):
            yield module, name


def _plain(linear: Any) -> bool:
    """Whether a layer is in float32, and nobody has put a function of theirs in place of its own."""
    import torch

    return linear.weight.dtype == torch.float32 and "forward" not in vars(linear)


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    import torch

    return weight.detach().to(torch.bfloat16)


def _lora_forward(_: Any, name: str, rounded: torch.Tensor | None) -> Callable[..., Any]:
    from .linear_functions import LoraLinear

    apply: Any = LoraLinear.apply

    def forward(self: Any, x: torch.Tensor) -> Any:
        base = self.get_base_layer()
        weight = base.weight if rounded is None else rounded
        factors = self.lora_A[name].weight, self.lora_B[name].weight
        return apply(x, weight, base.bias, *factors, self.scaling[name])

    return forward


def _dora_forward(module: Any, name: str, rounded: torch.Tensor | None) -> Callable[..., Any]:
    import torch

    from .linear_functions import DoraLinear, dora_norm

    apply: Any = DoraLinear.apply
    squares = module.get_base_layer().weight.detach().square().sum(dim=1)

    def forward(self: Any, x: torch.Tensor) -> Any:
        base, scaling = self.get_base_layer(), self.scaling[name]
        weight = base.weight if rounded is None else rounded
        factors = self.lora_A[name].weight, self.lora_B[name].weight
        with torch.no_grad():
            norm = dora_norm(squares, base.weight, *factors, scaling)
        return apply(x, weight, base.bias, *factors, self.lora_magnitude_vector[name].weight, norm, scaling)

    return forward


def _frozen_forward(rounded: torch.Tensor) -> Callable[..., Any]:
    from .linear_functions import FrozenLinear

    apply: Any = FrozenLinear.apply

    def forward(self: Any, x: torch.Tensor) -> Any:
        return apply(x, rounded, self.bias)

    return forward
