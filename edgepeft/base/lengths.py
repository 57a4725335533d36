"""Lengths at which a model computes otherwise than below them: switches of rotary frequencies, windows, original contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Rotary embeddings whose frequencies depend on how long the sequence is.
_SWITCHED = {"longrope", "su"}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that says how texts are read; models with several parts keep it under ``text_config``."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _rotary(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotary settings, one for each type of layer where a model has several."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return
    nested = [each for each in found.values() if isinstance(each, Mapping)]
    yield from nested or [found]


def rope_switch(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that is rotated by the short frequencies of LongRoPE.

    Longer ones are rotated by the long frequencies from their first token on (Ding et al. 2024, arXiv:2402.13753;
    transformers' ``longrope_frequency_update``), so a cache of keys belongs to one side of the switch.

    Args:
        config: A model's ``config.json``, or ``config.to_dict()``.

    Returns:
        The length in tokens; ``None`` for a model without such a switch.

    Example:
        >>> rope_switch({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}})
        4096
    """
    text = _text(config)
    for rotary in _rotary(text):
        if rotary.get("rope_type", rotary.get("type")) in _SWITCHED:
            found = rotary.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
            if isinstance(found, int) and found > 0:
                return found
    return None


def lengths_that_matter(config: Mapping[str, Any], max_length: int | None = None) -> tuple[int, ...]:
    """The lengths in tokens behind which a model computes otherwise, shortest first.

    A probe that shows all that a model does has a sequence of each of these lengths, and one that is a token longer.

    Args:
        config: A model's ``config.json``, or ``config.to_dict()``.
        max_length: Longer ones are left out.

    Returns:
        Switches of rotary frequencies, sliding windows, chunks of attention, and original contexts.

    Example:
        >>> lengths_that_matter({"sliding_window": 512, "max_position_embeddings": 8192}, 4096)
        (512,)
    """
    text = _text(config)
    found = {
        text.get("sliding_window"),
        text.get("attention_chunk_size"),
        text.get("attention_window"),
        rope_switch(config),
    }
    found |= {rotary.get("original_max_position_embeddings") for rotary in _rotary(text)}
    found.add(text.get("original_max_position_embeddings"))
    known = {length for length in found if type(length) is int and length > 0}
    return tuple(sorted(length for length in known if max_length is None or length < max_length))
