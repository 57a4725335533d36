"""Which linear layers of a network matter for these data: from the gradients and inputs of a few batches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .batches import Collator, epoch_batches
from .device import as_doubles
from .methods import Settings
from .mixing import mixture_of

if TYPE_CHECKING:
    from torch import nn

    from .workbench import Workbench

#: How a layer's worth is measured.
Measure = Literal["gradient", "fisher", "taylor", "eva"]
MEASURES: tuple[Measure, ...] = ("gradient", "fisher", "taylor", "eva")
#: Adapters ship in float32.
_BYTES = 4
#: The new head is trained alone for so many steps first: through a random head gradients say nothing about the task.
_HEAD_STEPS = 60
_HEAD_RATE = 1e-2
#: So many ranks of a layer make its shade in the map.
_DRAWN_RANKS = 8


@dataclass(frozen=True)
class SiteScore:
    """What a few batches say of one linear layer.

    ``gradient`` is the squared norm of the mean gradient of its weight: how fast the loss falls when it is changed.
    ``fisher`` is the mean squared gradient of single batches (the diagonal of the empirical Fisher information, summed),
    ``taylor`` the sum of |weight x gradient| (Molchanov et al. 2017), ``eva`` the variance of its inputs. ``spectrum`` has the
    squared singular values of the mean gradient, ``inputs`` the shares of its inputs' variance by principal component (EVA,
    Paischer et al. 2024); both falling.
    """

    name: str
    inputs_width: int
    outputs_width: int
    gradient: float
    fisher: float
    taylor: float
    eva: float
    spectrum: npt.NDArray[np.float64]
    inputs: npt.NDArray[np.float64]

    @property
    def rank_bytes(self) -> int:
        """What one more rank here takes on disk."""
        return _BYTES * (self.inputs_width + self.outputs_width)

    @property
    def place(self) -> tuple[str, int]:
        """Its kind (the name without layer numbers) and the number of its layer (-1: none)."""
        number = re.search(r"\.(\d+)\.", self.name)
        return re.sub(r"^.*\.\d+\.", "", self.name), int(number.group(1)) if number else -1

    def gains(self, measure: Measure, most: int) -> npt.NDArray[np.float64]:
        """The worth of the first, second, … rank here.

        By ``gradient`` the squared singular values of the gradient: a step along the best k directions lowers the loss by
        their sum (to first order). By ``eva`` the shares of explained variance. ``fisher`` and ``taylor`` give a worth to the
        whole layer, which is spread over the gradient's directions.
        """
        if measure == "eva":
            return self.inputs[:most]
        shares = self.spectrum[:most]
        if measure == "gradient":
            return shares
        total = float(self.spectrum.sum())
        return shares / total * getattr(self, measure) if total > 0 else shares

    def worth(self, measure: Measure) -> float:
        """What its first ranks together are worth; for what one costs, the shade of the map."""
        return float(self.gains(measure, _DRAWN_RANKS).sum())


def measure_sites(
    bench: Workbench, *, batches: int = 8, batch_size: int = 16, seed: int = 0, threads: int | None = None
) -> tuple[SiteScore, ...]:
    """Score every linear layer of the base below its head, after its head alone has been trained a little.

    Args:
        bench: Base and rows.
        batches: How many batches of training rows are looked at.
        batch_size: Rows of a batch.
        seed: Of the head and of which rows.
        threads: PyTorch's threads.

    Returns:
        A score a layer, in the order of the network.

    Raises:
        InputError: The network has no linear layers below its head.
    """
    import torch

    from .steps import Run

    model: Any = bench.fresh(Settings("head-only"), seed)
    names = linear_names(bench)
    with Run(
        model,
        bench.base.tokenizer,
        bench.rows,
        batch_size=batch_size,
        learning_rate=_HEAD_RATE,
        total_steps=_HEAD_STEPS,
        seed=seed,
        threads=threads,
        temperature=bench.split.temperature,
    ) as run:
        run.keep_states()
        run.advance(_HEAD_STEPS)
        device = run.device
    network = model.get_base_model()
    modules = {name: network.get_submodule(name) for name in names}
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    sums = {name: torch.zeros_like(module.weight) for name, module in modules.items()}
    squares = dict.fromkeys(names, 0.0)
    moments: dict[str, Any] = {}
    tokens = 0
    mask: list[Any] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            states = inputs[0].detach()
            if states.dim() == 3 and states.shape[:2] == mask[0].shape:
                states = states[mask[0]]
            states = states.reshape(-1, states.shape[-1])
            moments[name] = moments.get(name, 0) + states.T @ states

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in modules.items()]
    collate = Collator(bench.base.tokenizer, device)
    mixture = mixture_of([row.source for row in bench.rows], bench.split.temperature, seed)
    rows_of_epoch = bench.rows if mixture is None else [bench.rows[place] for place in mixture.epoch(0)]
    drawn = epoch_batches(rows_of_epoch, batch_size, np.random.default_rng(seed))[:batches]
    model.eval()
    try:
        for rows in drawn:
            batch = collate(rows)
            mask[:] = [batch["attention_mask"].bool()]
            tokens += int(mask[0].sum())
            model(**batch).loss.backward()
            for name, module in modules.items():
                gradient = module.weight.grad
                if gradient is not None:
                    sums[name] += gradient
                    squares[name] += float(gradient.square().sum())
                module.weight.grad = None
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        _site(name, modules[name], sums[name] / len(drawn), squares[name] / len(drawn), moments.get(name))
        for name in names
    )


def _site(name: str, module: Any, gradient: Any, fisher: float, moment: Any) -> SiteScore:
    import torch

    doubles = as_doubles(gradient)
    square = doubles if gradient.shape[0] <= gradient.shape[1] else doubles.T
    # Squared singular values, from the smaller of the two products: a tenth of the time of an SVD.
    spectrum = torch.linalg.eigvalsh(square @ square.T).flip(0).clamp(min=0).cpu().numpy()
    variance = np.zeros(1) if moment is None else np.linalg.eigvalsh(moment.cpu().double().numpy())[::-1].clip(min=0)
    total = float(variance.sum())
    return SiteScore(
        name=name,
        inputs_width=int(module.weight.shape[1]),
        outputs_width=int(module.weight.shape[0]),
        gradient=float(spectrum.sum()),
        fisher=fisher,
        taylor=float((module.weight.detach() * gradient).abs().sum()),
        eva=total,
        spectrum=spectrum,
        inputs=variance / total if total > 0 else variance,
    )


def linear_names(bench: Workbench) -> list[str]:
    """The names of the base's linear layers below its head; :class:`InputError` where there are none."""
    from torch import nn

    head = [child for child, _ in bench.base.model.named_children() if child != bench.base.model.base_model_prefix]
    skipped = (*head, *bench.base.fresh)
    names = [
        name
        for name, module in bench.base.model.named_modules()
        if isinstance(module, nn.Linear) and not any(name == part or name.startswith(f"{part}.") for part in skipped)
    ]
    if not names:
        raise InputError(f"{bench.base.source} has no linear layers below its head to choose from")
    return names
