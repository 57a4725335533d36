"""The lengths at which a model begins to compute otherwise: what a comparison on short texts does not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .ragged import SHAPES

#: Keys of a configuration that hold a window of attention, in tokens.
_WINDOWS = ("sliding_window", "local_attention", "attention_chunk_size", "window_size", "attention_window")
#: Kinds of rotary positions that depend on how long the whole text is.
_SWITCHING = {"dynamic", "longrope", "su"}
#: Operations that one more row of a comparison may take: most of a second on a core. A bundle is compared once an adapter.
BUDGET = 3e10
#: The same where a base is captured, once, and tracing it takes longer anyway: BERT and RoBERTa at 512 tokens.
CAPTURE_BUDGET = 2e11


def _texts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration, and those of the parts that read text."""
    yield config
    for name in ("text_config", "decoder", "encoder"):
        if isinstance(config.get(name), Mapping):
            yield from _texts(config[name])


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions, one for each kind of layer where these differ."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = config.get(name)
        if isinstance(settings, Mapping):
            yield settings
            yield from (each for each in settings.values() if isinstance(each, Mapping))


def _whole(value: Any) -> Iterator[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    yield from (each for each in values if type(each) is int and each > 0)


def windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Widths of the windows that layers attend within, in tokens, shortest first. ``config`` is a ``config.json``."""
    found = {width for text in _texts(config) for key in _WINDOWS for width in _whole(text.get(key))}
    return tuple(sorted(found))


def switches(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Lengths beyond which the positions of *all* tokens are computed otherwise (longrope, dynamic NTK), shortest first."""
    found: set[int] = set()
    for text in _texts(config):
        for rope in _ropes(text):
            if str(rope.get("rope_type", rope.get("type"))) in _SWITCHING:
                own = [*_whole(rope.get("original_max_position_embeddings"))] or [
                    *_whole(text.get("original_max_position_embeddings"))
                ]
                found |= {*own} or {*_whole(text.get("max_position_embeddings"))}
    return tuple(sorted(found))


def rope_switch(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that LongRoPE rotates by its short frequencies; ``None`` for a model without it.

    Longer ones are rotated by the long frequencies from their first token on (Ding et al. 2024, arXiv:2402.13753;
    transformers' ``longrope_frequency_update``), so a cache of keys belongs to one side of the switch.

    Example:
        >>> rope_switch({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}})
        4096
    """
    for text in _texts(config):
        for rope in _ropes(text):
            if str(rope.get("rope_type", rope.get("type"))) in {"longrope", "su"}:
                key = "original_max_position_embeddings"
                found = [*_whole(rope.get(key)), *_whole(text.get(key))]
                if found:
                    return found[0]
    return None


def original_contexts(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Contexts that a model had before it was stretched (yarn, llama3, linear), shortest first."""
    key = "original_max_position_embeddings"
    found = {length for text in _texts(config) for part in (text, *_ropes(text)) for length in _whole(part.get(key))}
    return tuple(sorted(found))


def boundaries(config: Mapping[str, Any], max_length: int | None = None) -> tuple[int, ...]:
    """Lengths ``n`` such that a text of ``n`` tokens and one of ``n + 1`` are computed differently, shortest first.

    Those of at least ``max_length`` are left out: no text is longer.
    """
    found = {*windows(config), *switches(config), *original_contexts(config)}
    return tuple(sorted(n for n in found if max_length is None or n < max_length))


def lengths_that_matter(config: Mapping[str, Any], max_length: int | None = None) -> tuple[int, ...]:
    """Lengths on each side of every boundary, and the longest there is, shortest first."""
    found = {length for n in boundaries(config, max_length) for length in (n, n + 1)}
    return tuple(sorted(found | ({max_length} if max_length else set())))


def affordable(length: int, parameters: int, budget: float = BUDGET) -> bool:
    """Whether a model of so many parameters may read ``length`` tokens once more in a comparison."""
    return 2.0 * length * parameters <= budget


def shapes_that_matter(
    config: Mapping[str, Any], max_length: int | None, parameters: int, budget: float = BUDGET
) -> tuple[tuple[int, int], ...]:
    """``SHAPES``, and a row of each length that matters where it is affordable: ``(rows, tokens)``."""
    shortest = max(length for _, length in SHAPES)
    longer = (n for n in lengths_that_matter(config, max_length) if n > shortest)
    return (*SHAPES, *((1, n) for n in longer if affordable(n, parameters, budget)))
