"""Which executor runs a target."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from ...errors import InputError, TargetError
from ...targets import Target
from .protocol import Executor

#: Executor by the word before ``://`` in a target's ``executor`` key, as ``module:class``; made with ``(target, address)``
#: where it has an address and ``(target)`` otherwise. Imported when one is asked for.
_HOME = {
    "local": ".local:LocalExecutor",
    "arm64": ".arm64:Arm64Executor",
    "ssh": ".ssh:SshExecutor",
    "adb": ".adb:AdbExecutor",
    "cpp": ".cpp:CppExecutor",
    "qnn": ".qnn:QnnExecutor",
    "web": ".web:WebExecutor",
    "webgpu": ".web:WebGpuExecutor",
    "node": ".web:NodeExecutor",
}


def setup_target(
    target: Target, announce: Callable[[str], None] = lambda message: None, *, again: bool = False
) -> None:
    """Fetch what the target's executor needs that edgepeft can fetch itself; :class:`TargetError` where there is nothing.

    Raises :class:`DeviceError` where something cannot be fetched; see :func:`edgepeft.devices.executors.sysroot.build_sysroot`.
    """
    if target.executor == "arm64":
        from .sysroot import build_sysroot, is_arm_linux

        if is_arm_linux():
            announce("this machine is 64-bit Arm: nothing to set up")
        else:
            build_sysroot(announce, again=again)
        return
    raise TargetError(
        f"nothing to set up for {target.name} (executor {target.executor}); `edgepeft targets doctor {target.name}` says "
        "what it needs"
    )


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
