"""Options that say what the outputs of heads mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cloup import option, option_group

from .values import named

if TYPE_CHECKING:
    from ..bundle import Head

head_options: Callable[[Any], Any] = option_group(
    "Heads",
    option(
        "--labels",
        multiple=True,
        metavar="NAME=A,B,…",
        help="Names of an adapter's labels, in order; or NAME=FILE: a name a line, a JSON list, or a config.json. PEFT saves none. "
        "May be repeated.",
    ),
    option(
        "--problem-type",
        "problem_types",
        multiple=True,
        metavar="NAME=TYPE",
        help="What an adapter's outputs mean: single_label, multi_label (any number of labels) or regression (numbers). May be "
        "repeated.",
    ),
    option(
        "--activation",
        "activations",
        multiple=True,
        metavar="NAME=FUNCTION",
        help="What makes scores of an adapter's logits: softmax, sigmoid or identity. May be repeated.",
    ),
)


def parse_heads(
    labels: tuple[str, ...], problem_types: tuple[str, ...], activations: tuple[str, ...]
) -> dict[str, Head]:
    """What the options say, by adapter."""
    from ..adapters.head_files import parse_activation, parse_labels, parse_problem_type
    from ..pipeline._relabel import merged_heads

    return merged_heads(
        {},
        labels={name: parse_labels(v, f"--labels {name}") for name, v in named(labels, "--labels").items()},
        problem_type={
            name: parse_problem_type(v, f"--problem-type {name}")
            for name, v in named(problem_types, "--problem-type").items()
        },
        activation={
            name: parse_activation(v, f"--activation {name}") for name, v in named(activations, "--activation").items()
        },
    )
