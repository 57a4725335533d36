"""Which executor runs a target: made as its entry in :data:`edgepeft.executors.EXECUTORS` says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from ...errors import InputError, TargetError
from ...executors import executor_entry
from ...targets import Target
from .protocol import Executor


def setup_target(
    target: Target, announce: Callable[[str], None] = lambda message: None, *, again: bool = False
) -> None:
    """Fetch what the target's executor needs that edgepeft can fetch itself; :class:`TargetError` where there is nothing.

    Raises :class:`DeviceError` where something cannot be fetched; see :func:`edgepeft.devices.executors.sysroot.set_up`.
    """
    entry = executor_entry(target.executor)
    if entry is None or not entry.setup:
        raise TargetError(
            f"nothing to set up for {target.name} (executor {target.executor}); `edgepeft targets doctor {target.name}` says "
            "what it needs"
        )
    _load(entry.setup)(announce, again=again)


def _load(home: str) -> Any:
    module, name = home.split(":")
    return getattr(importlib.import_module(module, __package__), name)


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
    entry = executor_entry(address)
    if entry is None:
        return None
    make = _load(entry.home)
    return cast(Executor, make(target, address) if entry.address else make(target))
