"""What the outputs of a base's own head mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..adapters.head_files import head_in_config
from ..bundle import Head
from ..bundle.heads import scores_one_number


def own_head(config: Any, task: str, parameters: Iterable[str]) -> Head:
    """The head that a model's configuration describes; one without labels where the task has none.

    Args:
        config: The model's configuration.
        task: The task that the model was loaded for.
        parameters: Names of its parameters, which tell a reward model from a cross-encoder.
    """
    if not task.endswith("-classification") or task.startswith("zero-shot"):
        return Head(task=task)
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if task == "token-classification":  # always one label a token, whatever the config says of whole sequences
        return Head(labels, task=task)
    said = head_in_config(config.to_dict())
    activation = said.activation
    if len(labels) == 1 and said.problem_type is None and activation is None:
        activation = scores_one_number(parameters)
    return Head(labels, said.problem_type, activation, task)
