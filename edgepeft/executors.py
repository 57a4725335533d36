"""The executors there are: one entry adds one.

It stands below the rooms that name executors (target files, the command line) and imports none: a target is read on
machines that can execute nothing. :mod:`edgepeft.devices.executors.registry` makes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: What computes a base that is opened on this machine: ONNX Runtime's CPU provider, or its WebGPU plugin on the machine's GPU.
Device = Literal["cpu", "webgpu"]

#: A target that nothing executes.
STATIC = "static"


@dataclass(frozen=True)
class ExecutorEntry:
    """One executor.

    ``name`` is the word in a target's ``executor`` key and in ``--on``, ``summary`` what it runs on, and ``home`` its class as
    ``module:class`` below ``edgepeft.devices.executors``, imported when one is asked for. It is made with ``(target)``, or with
    ``(target, address)`` where it takes an address ``name://…``: ``address`` is then the pattern of the whole, ``example``
    shows one, and ``needs_address`` says that the bare name is not enough. ``setup`` is a function ``(announce, again)``,
    written as ``home``, that fetches what the executor needs; empty where edgepeft can fetch nothing.

    What an executor can do (copy, emulate, count, refuse a task) its class says: see ``Executor``.
    """

    name: str
    summary: str
    home: str
    address: str = ""
    example: str = ""
    needs_address: bool = False
    setup: str = ""

    def accepts(self, text: str) -> bool:
        """Whether ``text`` names this executor, with an address or without."""
        if text == self.name:
            return not self.needs_address
        return bool(self.address) and re.fullmatch(self.address, text) is not None


#: In the order in which help and messages list them.
EXECUTORS: dict[str, ExecutorEntry] = {
    entry.name: entry
    for entry in (
        ExecutorEntry("local", "this machine", ".local:LocalExecutor"),
        ExecutorEntry("cpp", "this machine, through the C++ runner", ".cpp:CppExecutor"),
        ExecutorEntry(
            "arm64",
            "an Arm host, or its emulation",
            ".arm64:Arm64Executor",
            setup=".sysroot:set_up",
        ),
        ExecutorEntry("web", "a browser's WebAssembly", ".web:WebExecutor"),
        ExecutorEntry("webgpu", "a browser's WebGPU", ".web:WebGpuExecutor"),
        ExecutorEntry("local-webgpu", "this machine's GPU", ".local_webgpu:LocalWebGpuExecutor"),
        ExecutorEntry("node", "WebAssembly in Node", ".web:NodeExecutor"),
        ExecutorEntry("qnn", "Qualcomm's HTP, simulated", ".qnn:QnnExecutor"),
        ExecutorEntry(
            "adb",
            "an Android device",
            ".adb:AdbExecutor",
            address=r"adb://[A-Za-z0-9][A-Za-z0-9.:_-]*",
            example="adb://SERIAL",
        ),
        ExecutorEntry(
            "ssh",
            "another machine",
            ".ssh:SshExecutor",
            address=r"ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?(/.*)?",
            example="ssh://user@host",
            needs_address=True,
        ),
    )
}


def executor_entry(text: str) -> ExecutorEntry | None:
    """The executor that ``text`` names (``local``, ``ssh://pi@board``); ``None`` for :data:`STATIC`.

    Raises:
        ValueError: For a text that names none; it lists those there are.
    """
    if text == STATIC:
        return None
    for entry in EXECUTORS.values():
        if entry.accepts(text):
            return entry
    raise ValueError(f"no such executor; use {executor_names()}")


def executor_names(static: bool = True) -> str:
    """How executors are written, for messages and help: ``local, cpp, …, static, adb://SERIAL or ssh://user@host``."""
    words = [entry.name for entry in EXECUTORS.values() if not entry.needs_address]
    examples = [entry.example for entry in EXECUTORS.values() if entry.example]
    *first, last = [*words, *([STATIC] if static else []), *examples]
    return f"{', '.join(first)} or {last}"
