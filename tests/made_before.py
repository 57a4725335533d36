"""Folders that many tests begin with: made once a process, and copied to where a test wants its own.

Making a bundle takes seconds, copying a tiny one milliseconds.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


@functools.cache
def _root() -> Path:
    """A folder that lives as long as the process."""
    root = Path(tempfile.mkdtemp(prefix="edgepeft-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@functools.cache
def _made(make: Callable[..., Path], arguments: tuple[str, ...]) -> tuple[Path, Path]:
    """What ``make`` gives below a folder of its own, and that folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"{make.__name__}-", dir=_root()))
    return make(folder, *arguments), folder


def copy_of(make: Callable[..., Path], folder: Path, *arguments: str) -> Path:
    """What ``make(folder, *arguments)`` would leave in ``folder``, and the path that it would give.

    ``make`` runs once a process, so it must not depend on anything that tests replace.
    """
    made, original = _made(make, arguments)
    shutil.copytree(original, folder, dirs_exist_ok=True)
    for name in ("adapter_config.json", "edgepeft.json"):  # they say where the base is
        for file in folder.rglob(name):
            file.write_text(file.read_text(encoding="utf-8").replace(str(original), str(folder)), encoding="utf-8")
    return folder / made.relative_to(original)
