"""Names of a graph's key/value cache, as Optimum and transformers.js have them.

Inputs are ``past_key_values.N.key`` and ``.value``, outputs ``present.N.key`` and ``.value``. An encoder-decoder says whose
they are: those of ``past_key_values.N.decoder.key`` grow with what is written, those of ``past_key_values.N.encoder.key`` are
read once and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

PAST, PRESENT = "past_key_values.", "present."
#: A decoder-only model's cache input; the groups are the layer and ``key`` or ``value``.
LAYER_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")

T = TypeVar("T")


def is_past(name: str) -> bool:
    """Whether an input takes keys or values of earlier tokens."""
    return name.startswith(PAST)


def is_present(name: str) -> bool:
    """Whether an output gives the keys or values that the next run takes."""
    return name.startswith(PRESENT)


def past_of(present: str) -> str:
    """The input that takes what the output ``present`` gives."""
    return PAST + present.removeprefix(PRESENT)


def present_of(past: str) -> str:
    """The output that gives what the input ``past`` takes."""
    return PRESENT + past.removeprefix(PAST)


def as_pasts(outputs: Mapping[str, T]) -> dict[str, T]:
    """The caches among a run's outputs, by the names under which the next run takes them."""
    return {past_of(name): value for name, value in outputs.items() if is_present(name)}


def grows(name: str) -> bool:
    """Whether an encoder-decoder's cache input holds keys or values of what is written; those of what was read stay."""
    return is_past(name) and ".decoder." in name
