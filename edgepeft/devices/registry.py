"""Which executor runs a target."""

from __future__ import annotations

import importlib
from typing import cast

from ..errors import InputError
from ..targets import Target
from .protocol import Executor

#: Executor by the word before ``://`` in a target's ``executor`` key, as ``module:class``; made with ``(target, address)``
#: where it has an address and ``(target)`` otherwise. Imported when one is asked for.
_HOME = {
    "local": ".local:LocalExecutor",
    "web": ".web:WebExecutor",
    "node": ".web:NodeExecutor",
}


def executor_for(target: Target, on: str | None = None) -> Executor | None:
    """The executor of ``target``, or the one that ``on`` names; ``None`` where the target is static only.

    ``on`` is a word or address as the target file's ``executor`` key takes: ``local``, ``ssh://pi@board``. Raises
    :class:`InputError` for another one. Nothing is started: see :meth:`Executor.missing`.
    """
    if on is None:
        address = target.executor
    else:
        from pydantic import ValidationError

        try:
            address = Target.model_validate({**target.model_dump(), "executor": on}).executor
        except ValidationError as error:
            raise InputError(f"--on {on!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    if address == "static":
        return None
    scheme = address.partition("://")[0]
    home = _HOME.get(scheme)
    if home is None:
        return None
    module, name = home.split(":")
    make = getattr(importlib.import_module(module, __package__), name)
    return cast(Executor, make(target, address) if scheme in {"ssh", "adb"} else make(target))
