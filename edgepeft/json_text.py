"""JSON as the standard has it: no bare ``NaN`` or ``Infinity``, which other languages refuse to read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def json_text(
    value: Any,
    *,
    indent: int | None = 1,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """``value`` as JSON that every reader takes.

    Args:
        value: Mappings, sequences, texts and numbers.
        indent: Spaces a level; ``None`` writes one line.
        sort_keys: Whether mappings are written in the order of their keys.
        ensure_ascii: Whether characters beyond ASCII are escaped.
        default: Makes something that JSON can hold of any other type; without it such a type is a ``TypeError``.

    Returns:
        The text, with numbers that are not finite as :func:`finite_json` names them.

    Example:
        >>> json_text({"loss": float("nan")}, indent=None)
        '{"loss": "NaN"}'
    """
    return json.dumps(
        finite_json(value),
        indent=indent,
        sort_keys=sort_keys,
        ensure_ascii=ensure_ascii,
        default=default,
        allow_nan=False,
    )


def config_text(config: Mapping[str, Any]) -> str:
    """A ``config.json`` as transformers writes and reads it: infinities as ``{"__float__": "Infinity"}``."""
    return json.dumps(_tagged(config), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _tagged(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tagged(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tagged(each) for each in value]
    named = finite_json(value)
    return named if named is value else {"__float__": named}


def finite_json(value: Any) -> Any:
    """``value`` with each number that JSON cannot hold as its name: ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.

    pydantic writes and reads the same names, so a number that a worker reports survives its way through a file.
    """
    if isinstance(value, Mapping):
        return {key: finite_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(finite_json, value)) if type(value) in (list, tuple) else [*map(finite_json, value)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
