"""A base with the very weights that one variant of a bundle ships, to train against (``--deploy-variant``).

The rounded weights are read from the bundle's graph and found in the network by content: a row of a rounded matrix points where
the row points that it was made of. So packed projections, transposed layers and tied heads need no names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..spelling import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .base import BaseModel
    from .loop import Scores
    from .workbench import Workbench

#: Least cosine between a row and what rounding leaves of it: 4 bits leave .99, and rows of one layer have some .1 between them.
_LEAST_COSINE = 0.9
#: Rows of a layer by which its place in a rounded matrix is looked for.
_PROBES = 3


@dataclass(frozen=True)
class Deployed:
    """What an adapter does that was trained against rounded weights.

    The run's own scores are those on ``variant``, whose rounded weights ``layers`` layers have; ``fp32_before`` and ``fp32_after``
    are the same on the base's own weights, where the adapter serves too: perplexities, or a classifier's scores.
    """

    variant: str
    layers: int
    fp32_before: Any
    fp32_after: Any

    def __str__(self) -> str:
        """As it is printed."""
        names = ("perplexity", "accuracy", "mean_error")
        name = next(each for each in names if getattr(self.fp32_after, each, None) is not None)
        before, after = getattr(self.fp32_before, name), getattr(self.fp32_after, name)
        return (
            f"trained and measured on {self.variant} ({self.layers} rounded layers); on fp32 {name.replace('_', ' ')} "
            f"{before:.3f} -> {after:.3f}"
        )


@dataclass
class _Place:
    """A parameter, its own numbers and the rounded ones."""

    parameter: torch.Tensor
    own: torch.Tensor
    rounded: torch.Tensor


class DeployedWeights:
    """The rounded weights of ``variant``, in the network that is trained; ``layers`` modules have them.

    Args:
        base: The network; its weights are replaced in place.
        bundle: The bundle that the adapter is to be added to.
        variant: Its variant with rounded weights.

    Raises:
        InputError: There is no such variant, it rounds no weights, the bundle is of another base, or a rounded matrix is not
            found in the network.
    """

    def __init__(self, base: BaseModel, bundle: str | Path, variant: str) -> None:
        from ..adapters.bundle_graph import load_graph
        from ..bundle import read_bundle, variant_graphs
        from ..quantize.read_back import read_back

        opened = read_bundle(Path(bundle))
        manifest = opened.manifest
        if manifest.base.identity != base.identity:
            raise InputError(
                f"{bundle} is of another base than {base.source}: identity {manifest.base.identity[:12]}… and "
                f"{base.identity[:12]}…. Give the bundle that the adapter will be added to"
            )
        if variant not in manifest.variants:
            raise InputError(
                f"{bundle} has no variant {variant!r}{did_you_mean(variant, manifest.variants)}; it has "
                f"{', '.join(manifest.variants)}. Make it with: edgepeft quantize {bundle} --variant {variant}"
            )
        self.variant, self._places = variant, list[_Place]()
        self.layers = 0
        layers = _Layers(base.model)
        for file in variant_graphs(manifest, variant):
            for found in read_back(load_graph(opened, file)):
                hits = layers.take(found.numbers)
                if not hits:
                    raise InputError(
                        f"{bundle}: the weight {found.name} of variant {variant} is in no layer of {base.source}, so "
                        "training would not see what ships"
                    )
                for module, rows in hits:
                    self.layers += 1
                    self._put(module, "weight", layers.oriented(module, found.numbers[rows]))
                    if found.bias is not None and module in layers.linear:
                        self._put_bias(module, found.bias[rows], whole=found.whole_bias)
        if not self.layers:
            raise InputError(
                f"variant {variant} of {bundle} rounds no weights that edgepeft can read back; train without --deploy-variant"
            )

    def _put(self, module: Any, name: str, numbers: np.ndarray) -> None:
        import torch

        parameter = getattr(module, name)
        rounded = torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).to(parameter.device)
        self._places.append(_Place(parameter, parameter.detach().clone(), rounded))
        with torch.no_grad():
            parameter.copy_(rounded)

    def _put_bias(self, module: Any, bias: np.ndarray, *, whole: bool) -> None:
        import torch

        if module.bias is None:
            module.bias = torch.nn.Parameter(torch.zeros(len(bias), device=module.weight.device), requires_grad=False)
        own = module.bias.detach().cpu().numpy()
        self._put(module, "bias", bias if whole else own + bias)

    @contextmanager
    def floats(self) -> Iterator[None]:
        """Within: the network has its own weights again."""
        import torch

        with torch.no_grad():
            for place in self._places:
                place.parameter.copy_(place.own)
        try:
            yield
        finally:
            with torch.no_grad():
                for place in self._places:
                    place.parameter.copy_(place.rounded)


class _Layers:
    """The layers of a network whose weights are not found yet, as matrices ``[out, in]``."""

    def __init__(self, model: nn.Module) -> None:
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        self.linear: set[Any] = set()
        self._turned: set[Any] = set()
        #: One entry a weight: tied layers share theirs.
        self._left: dict[int, list[Any]] = {}
        self._probes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for module in model.modules():
            if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                continue
            if not isinstance(module, nn.Embedding):
                self.linear.add(module)
            if isinstance(module, Conv1D):
                self._turned.add(module)
            self._left.setdefault(id(module.weight), []).append(module)

    def oriented(self, module: Any, numbers: np.ndarray) -> np.ndarray:
        """``numbers`` ``[out, in]`` as ``module`` stores them."""
        return numbers.T if module in self._turned else numbers

    def _matrix(self, module: Any) -> np.ndarray:
        numbers: np.ndarray = module.weight.detach().cpu().numpy()
        return numbers.T if module in self._turned else numbers

    def take(self, rounded: np.ndarray) -> list[tuple[Any, np.ndarray]]:
        """The layers that ``rounded`` ``[rows, in]`` was made of, each with its rows in it; they are then found."""
        lengths = np.linalg.norm(rounded, axis=1, keepdims=True)
        unit = rounded / np.where(lengths == 0, 1, lengths)
        hits = []
        for key, modules in list(self._left.items()):
            matrix = self._matrix(modules[0])
            if matrix.shape[1] != rounded.shape[1] or matrix.shape[0] > rounded.shape[0]:
                continue
            if key not in self._probes:
                self._probes[key] = _probes_of(matrix)
            rows = _rows_in(matrix, unit, *self._probes[key])
            if rows is None:
                continue
            del self._left[key]
            # A tied weight is one parameter; the linear layer comes first, since it may get a bias.
            modules = sorted(modules, key=lambda module: module not in self.linear)
            hits.append((modules[0], rows))
        return hits


def _probes_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The longest rows of ``matrix``: their places, and the rows at length 1."""
    lengths = np.linalg.norm(matrix, axis=1)
    places = np.argsort(lengths)[-_PROBES:]
    return places, matrix[places] / np.maximum(lengths[places], 1e-30)[:, None]


def _rows_in(matrix: np.ndarray, unit: np.ndarray, probes: np.ndarray, directions: np.ndarray) -> np.ndarray | None:
    """The rows of ``unit`` (of length 1) that point where the rows of ``matrix`` do; ``None`` where they do not."""
    cosines = directions @ unit.T
    if cosines.max(axis=1).min() < _LEAST_COSINE:
        return None
    places = cosines.argmax(axis=1)
    offset = int(places[0] - probes[0])
    if offset >= 0 and (places - probes == offset).all() and offset + len(matrix) <= len(unit):
        return np.arange(offset, offset + len(matrix))
    found: np.ndarray = (matrix @ unit.T).argmax(axis=1)  # interleaved projections
    return found


def check_deployment(variant: str | None, bundle: str | Path | None) -> None:
    """Refuse a variant without the bundle that has it, and a bundle for nothing.

    Raises:
        InputError: One is given without the other.
    """
    if variant is not None and bundle is None:
        raise InputError(
            f"--deploy-variant {variant} needs --bundle: the bundle that the adapter will be added to, whose rounded weights are "
            f"trained against. Make one with: edgepeft export --model MODEL --slots all-linear --out BUNDLE, and edgepeft quantize "
            f"BUNDLE --variant {variant}"
        )
    if variant is None and bundle is not None:
        raise InputError("--bundle is where the weights of --deploy-variant are; name the variant too")


def scores_now(bench: Workbench, model: nn.Module, threads: int | None) -> Scores:
    """A classifier's scores on the validation rows, every layer run, with the weights that it has now."""
    from .loop import measure_rows
    from .steps import Run

    run = Run(
        model,
        bench.base.tokenizer,
        bench.rows,
        batch_size=1,
        learning_rate=0.0,
        total_steps=1,
        seed=0,
        threads=threads,
    )
    with run:
        return measure_rows(run, bench.held, bench.problem).scores
