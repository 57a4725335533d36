"""Ending in order when the system asks for it."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class _Request:
    """A SIGTERM that came while a child process was being started, to be obeyed once the child is known."""

    def __init__(self) -> None:
        self.starting = False
        self.number: int | None = None

    def leave(self, number: int, frame: object) -> None:
        """The handler: :class:`SystemExit`, at once or when the child has started."""
        if self.starting:
            self.number = number
            return
        raise SystemExit(128 + number)

    def obey(self) -> None:
        """Do what was put off, if anything was."""
        number, self.number = self.number, None
        if number is not None:
            raise SystemExit(128 + number)


#: Signal handlers are the process's, and so is this.
_request = _Request()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise :class:`SystemExit` (143), so that what was started is ended and what is temporary is removed.

    As it is, SIGTERM ends Python at once: ``timeout 60 edgepeft validate …`` would leave its browser, emulator or worker running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, _request.leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen`` that a SIGTERM does not interrupt half-way.

    An exception that a handler raises inside ``Popen`` leaves a child that nobody holds. Here SIGTERM waits until the child
    has started, which then is ended.

    Args:
        command: The program and its arguments.
        options: Those of :class:`subprocess.Popen`.

    Returns:
        The running child; the caller ends it.

    Raises:
        OSError: The program cannot be started.
        SystemExit: SIGTERM came inside :func:`ended_by_sigterm`; the child is gone.
    """
    _request.starting = threading.current_thread() is threading.main_thread()
    try:
        process = subprocess.Popen(list(command), **options)
    finally:
        _request.starting = False
    try:
        _request.obey()
    except SystemExit:
        process.kill()
        process.wait()
        raise
    return process


def run_child(
    command: Sequence[str], *, input: str | None = None, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of a text-mode child whose output is captured, that leaves no child behind on SIGTERM.

    Args:
        command: The program and its arguments.
        input: What the child reads on its standard input.
        timeout: Seconds after which the child is killed.
        options: Further options of :class:`subprocess.Popen` (``env``, ``cwd``, …).

    Returns:
        The exit status with standard output and standard error.

    Raises:
        subprocess.TimeoutExpired: The child took longer; it is gone.
        OSError: The program cannot be started.
        SystemExit: SIGTERM came; the child is gone.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ended_by_sigterm(), start_child(command, **pipes, encoding="utf-8", errors="replace", **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
