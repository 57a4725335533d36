"""A page in headless Chromium, for as long as it takes to answer."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ....errors import DeviceError
from ....terminate import ended_by_sigterm, start_child
from ....units import MB
from .site import Site

_POLL_S = 0.2
_TAIL = 800


def answer_of(
    browser: str, site: Site, page: str, timeout_s: float, flags: Sequence[str] = ("--disable-gpu",)
) -> tuple[str, float | None]:
    """Open ``page`` of ``site`` in a fresh profile; what it posts, and its renderer's peak resident set in MB.

    ``flags`` are further ones for Chromium.

    Raises :class:`DeviceError` where the browser ends by itself or does not answer in ``timeout_s`` seconds. Nothing is
    left running or on the disk in either case.
    """
    with tempfile.TemporaryDirectory(prefix="edgepeft-web-", ignore_cleanup_errors=True) as folder:
        profile = Path(folder)
        with _running(browser, f"{site.url}/{page}", profile, flags) as process:
            end = time.monotonic() + timeout_s
            while True:
                with suppress(queue.Empty):
                    return site.answers.get(timeout=_POLL_S), _peak_mb(str(profile))
                if process.poll() is not None:
                    raise DeviceError(f"{browser} ended with exit code {process.returncode}: {_said(profile)}")
                if time.monotonic() > end:
                    raise DeviceError(
                        f"{browser} gave no answer in {timeout_s:g} s and was stopped; measure fewer rows or cases. "
                        f"It said: {_said(profile)}"
                    )


@contextmanager
def _running(browser: str, url: str, profile: Path, flags: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        browser, "--headless=new", f"--user-data-dir={profile / 'profile'}", "--no-first-run", "--no-default-browser-check",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-breakpad", "--disable-crash-reporter", "--disable-dev-shm-usage", "--mute-audio",
        # A page that nobody looks at is slowed down otherwise.
        "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
        *flags, url,
    ]  # fmt: skip
    if sys.platform != "win32" and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # Chromium has no sandbox for root, and does not start without this
    with (profile / "log").open("wb") as log:
        try:
            process = start_child(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=sys.platform != "win32"
            )
        except OSError as error:
            raise DeviceError(f"cannot start {browser}: {error.strerror or error}") from error
        try:
            with ended_by_sigterm():
                yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the browser and all that it started: they are one process group."""
    if sys.platform == "win32":
        process.kill()
        process.wait()
        return
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # helpers that outlived it


def _said(profile: Path) -> str:
    log = profile / "log"
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    return text[-_TAIL:] or "(nothing)"


def _peak_mb(profile: str) -> float | None:
    """The highest resident set of the page's own process; ``None`` where there is no /proc."""
    peaks = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if profile.encode() in command and b"--type=renderer" in command:
                status = (folder / "status").read_text(encoding="ascii", errors="replace")
                peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return max(peaks) * 1024 / MB if peaks else None
