"""A classifier's head fitted outright: logistic regression on the features that enter it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, MissingExtraError
from .batches import Row, sorted_batches
from .mixing import mixture_of

if TYPE_CHECKING:
    import torch

    from .steps import Run

_EVALUATION_BATCH = 32


def head_of(model: Any, labels: int) -> Any:
    """The trained linear layer that gives the logits of ``labels`` labels.

    Raises:
        InputError: There is none: the head ends otherwise.
    """
    from torch import nn

    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == labels and module.weight.requires_grad
    ]
    if not found:
        raise InputError(
            "the model's head does not end with a linear layer that is trained, so none can be fitted to features"
        )
    return found[-1]


def features(run: Run, rows: Sequence[Row], head: Any) -> npt.NDArray[np.float32]:
    """What enters ``head`` ``[rows, hidden]``, in the order of ``rows``."""
    import torch

    found: list[Any] = [None] * len(rows)
    run.model.eval()
    with torch.no_grad():
        for places, part in sorted_batches(rows, _EVALUATION_BATCH):
            states = entering(run, part, head)
            for place, state in zip(places, states.float().cpu().numpy(), strict=True):
                found[place] = state
    return np.stack(found)


def entering(run: Run, rows: Sequence[Row], head: Any) -> torch.Tensor:
    """What enters ``head`` for one batch of ``rows`` ``[rows, hidden]``, with its graph where gradients are on.

    Raises:
        InputError: It is computed at every token (decoders that classify).
    """
    states: list[Any] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    try:
        run.forward(rows)
    finally:
        handle.remove()
    if states[-1].dim() != 2:
        raise InputError(
            "this model's head is computed at every token; a head on frozen features needs one vector a text"
        )
    return states[-1]


def fit_head(
    run: Run, rows: Sequence[Row], labels: int, inverse_strength: float, seed: int, temperature: float = 1.0
) -> None:
    """Put the solution of logistic regression on the frozen features of ``rows`` into the head.

    Args:
        run: The model; its head is changed in place.
        rows: Training rows; targets are label ids.
        labels: How many labels there are.
        inverse_strength: scikit-learn's ``C``: the larger, the weaker the L2 penalty. Features are standardized for the fit.
        seed: Of the solver.
        temperature: How rows of several sources are mixed: each counts as often as it would be drawn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    import torch

    head = head_of(run.model, labels)
    weight, bias = solve_head(features(run, rows, head), rows, labels, inverse_strength, seed, temperature)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))


def solve_head(
    found: npt.NDArray[np.floating],
    rows: Sequence[Row],
    labels: int,
    inverse_strength: float,
    seed: int,
    temperature: float = 1.0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight ``[labels, hidden]`` and bias ``[labels]`` of logistic regression on features ``[rows, hidden]``, standardized for it.

    Labels that do not occur get a bias of -20. Rows of several sources count as often as ``temperature`` would have them drawn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError(
            "a head on frozen features needs scikit-learn: pip install 'edgepeft[metrics]'"
        ) from error
    found = np.asarray(found, np.float64)
    centre, spread = found.mean(axis=0), found.std(axis=0) + 1e-6
    solver = LogisticRegression(C=inverse_strength, max_iter=1000, random_state=seed)
    mixture = mixture_of([row.source for row in rows], temperature, seed)
    weights = None if mixture is None else mixture.weights
    solver.fit((found - centre) / spread, [row.target for row in rows], sample_weight=weights)
    weight, bias = solver.coef_, solver.intercept_
    if len(weight) == 1:  # two labels: one row of coefficients, for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full = np.zeros((labels, found.shape[1])), np.full(labels, -20.0)
    full[0][solver.classes_], full[1][solver.classes_] = weight / spread, bias - (weight / spread) @ centre
    return full
