"""Whether an adapter was made for a base."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..errors import AdapterMismatchError
from .edits import Adapter

#: Endings of names of repositories that hold a model in few bits.
_QUANTIZED = re.compile(r"(-unsloth)?-bnb-(4|8)bit$|-(GPTQ|AWQ|FP8|4bit|8bit)(-[A-Za-z0-9-]+)?$", re.IGNORECASE)


def check_belongs(
    adapter: Adapter,
    *,
    identity: str,
    source: str,
    force: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> None:
    """Raise :class:`AdapterMismatchError` where ``adapter`` was made for another base than ``identity`` / ``source``.

    Adapters that edgepeft trained or exported carry a base identity, which must match whatever ``force`` says: the
    numbers would be wrong. A foreign checkpoint only names its base; where that name differs, ``force`` accepts it.
    """
    if adapter.base_identity is not None:
        if adapter.base_identity != identity:
            raise AdapterMismatchError(
                f"adapter {adapter.name!r} ({adapter.source}) was trained on a base with identity "
                f"{adapter.base_identity[:16]}…, this base ({source}) has {identity[:16]}…. The weights differ even where the "
                "sizes agree; export it over the base it was trained on."
            )
        return
    name = adapter.base_name
    if not name or same_source(name, source):
        return
    if not force:
        raise AdapterMismatchError(
            f"adapter {adapter.name!r} ({adapter.source}) says that its base is {name!r}, this base is {source!r}. "
            + (
                f"That is a quantized copy of {original!r}: over the model it was made from, the adapter runs with weights that "
                "are not rounded. Where this base is that model, repeat the command with --force."
                if (original := original_of(name))
                else "If they are the same weights, repeat the command with --force."
            )
        )
    announce(f"adapter {adapter.name!r} names base {name!r}; accepted for {source!r} because of --force")


def original_of(name: str) -> str | None:
    """The model that a quantized copy on the hub was made from, by the endings that its makers give; ``None`` for any other.

    Example:
        >>> original_of("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit")
        'unsloth/Llama-3.2-1B-Instruct'
    """
    stripped = _QUANTIZED.sub("", name)
    return stripped if stripped != name else None


def same_source(first: str, second: str) -> bool:
    """Whether two names are of one model: the same text, or the same place on this machine."""
    if first == second:
        return True
    paths = Path(first), Path(second)
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()
