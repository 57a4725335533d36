"""Ending in order when the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise :class:`SystemExit` (143), so that what was started is ended and what is temporary is removed.

    As it is, SIGTERM ends Python at once: ``timeout 60 edgepeft validate …`` would leave its browser, emulator or worker running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
