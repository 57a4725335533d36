"""Models that come with Python code of their own: run where the user agrees, refused by name otherwise.

transformers asks on the terminal where nobody told it. Here it is always told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import InputError

_trusted: ContextVar[bool] = ContextVar("edgepeft_trust_remote_code", default=False)


@contextmanager
def trusting(agreed: bool) -> Iterator[None]:
    """Whether code that comes with models is run while the block runs."""
    before = _trusted.set(agreed)
    try:
        yield
    finally:
        _trusted.reset(before)


def trusted() -> bool:
    """What ``from_pretrained(trust_remote_code=…)`` is told."""
    return _trusted.get()


def refuse_remote_code(source: str, error: Exception) -> None:
    """Raise :class:`InputError` where ``error`` is transformers' refusal of code that comes with a model."""
    if "trust_remote_code" not in str(error):
        return
    raise InputError(
        f"base model {source!r} comes with Python code of its own (auto_map in its config.json), which is not run without your "
        "consent. Read the code; to run it, export with --trust-remote-code (in Python export(…, trust_remote_code=True)). "
        "Where transformers has the architecture itself, a folder without auto_map needs no code."
    ) from error
