"""What the numbers of a head mean: its labels, and what makes scores of its logits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

#: As Hugging Face's configs name them. ``regression`` is every head whose outputs are numbers of their own, a score among them.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
#: What turns logits into scores.
Activation = Literal["softmax", "sigmoid", "identity"]

PROBLEM_TYPES: tuple[ProblemType, ...] = ("single_label_classification", "multi_label_classification", "regression")
ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid", "identity")
_USUAL: dict[ProblemType, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}
_NUMBERED = re.compile(r"LABEL_[0-9]+")


@dataclass(frozen=True)
class Head:
    """A head of a base or of an adapter. ``None`` stands for what nobody said."""

    labels: tuple[str, ...] | None = None
    problem_type: ProblemType | None = None
    activation: Activation | None = None
    task: str | None = None

    def kind(self, width: int) -> ProblemType:
        """The problem type of ``width`` logits: what is known of it, else one label of several, or one number."""
        if self.problem_type is None or (self.problem_type == "single_label_classification" and width == 1):
            return "single_label_classification" if width > 1 else "regression"
        return self.problem_type

    def function(self, width: int) -> Activation:
        """What turns ``width`` logits into scores."""
        return self.activation or _USUAL[self.kind(width)]

    def names(self, width: int) -> tuple[str, ...]:
        """A name for each of ``width`` outputs, numbered as Hugging Face does where there are none."""
        return self.labels or numbered(width)


def numbered(width: int) -> tuple[str, ...]:
    """``LABEL_0``, ``LABEL_1`` …, as Hugging Face names what has no names."""
    return tuple(f"LABEL_{i}" for i in range(width))


def is_numbered(labels: Iterable[str] | None) -> bool:
    """Whether labels are nobody's names."""
    return labels is None or all(_NUMBERED.fullmatch(label) for label in labels)


def scores_one_number(parameters: Iterable[str]) -> Activation:
    """What makes a score of a head of one output where neither config nor user says so.

    sentence-transformers' ``CrossEncoder`` and transformers' pipeline take a sigmoid of an encoder's one logit. A decoder with
    a ``score`` head is a reward model, whose number is taken as it is.

    Args:
        parameters: Names of the base's parameters, or of those that have a slot.
    """
    return "identity" if any(re.search(r"(^|\.)score\.weight$", name) for name in parameters) else "sigmoid"


def inherited(own: Head, base: Head, width: int | None, parameters: Iterable[str] = ()) -> Head:
    """An adapter's head, with what its folder does not say taken from the base.

    As transformers' pipeline would: PEFT's model has the base's config. Names are taken where there are as many outputs, the
    problem type where it suits ``width``.

    Args:
        own: What the adapter's folder or the user says.
        base: The base's head.
        width: Outputs of the head that the adapter brings; ``None`` where it runs with the base's.
        parameters: Names of parameters, for :func:`scores_one_number`.
    """
    wide = len(base.labels or ())
    count = width or wide
    if not count:
        return own
    labels = own.labels
    if labels is None:
        labels = base.labels if base.labels is not None and count == wide else numbered(count)
    problem, activation = own.problem_type, own.activation
    if problem is None:
        suits = base.problem_type is not None and ((count > 1) == (wide > 1) or count == wide)
        problem = base.problem_type if suits else None
        if activation is None and suits and count == wide:
            activation = base.activation
    if count == 1 and problem is None and activation is None:
        same = count == wide
        activation = (base.activation if same else None) or scores_one_number(parameters)
    return replace(own, labels=labels, problem_type=problem, activation=activation)


def is_label_axis(dim: int | str) -> bool:
    """Whether a dimension of a slot is its head's labels: ``labels``, or ``token-classification.labels``."""
    return isinstance(dim, str) and (dim == "labels" or dim.endswith(".labels"))


def check_count(labels: Sequence[str], width: int, what: str) -> str:
    """What is wrong with as many labels for a head of ``width`` outputs; empty where nothing is."""
    if len(labels) == width and len(set(labels)) == width:
        return ""
    if len(labels) != width:
        return f"{what} names {len(labels)} labels ({', '.join(labels)[:120]}), its head has {width}"
    twice = next(label for place, label in enumerate(labels) if label in labels[:place])
    return f"{what} names the label {twice!r} twice"
