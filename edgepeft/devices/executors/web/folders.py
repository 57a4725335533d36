"""Folders of a site: only files that are listed are served."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ....bundle import MANIFEST_NAME, read_bundle
from ....errors import EdgepeftError
from .packages import web_folder


class Folder:
    """Files below ``root`` whose names are listed.

    Args:
        root: The folder.
        names: Paths relative to it, with ``/``; or a function that gives them, which is called for every request.
    """

    def __init__(self, root: Path, names: Collection[str] | Callable[[], Collection[str]]) -> None:
        self.root = root.resolve()
        self._names = names if callable(names) else lambda fixed=frozenset(names): fixed

    def open(self, name: str) -> tuple[BinaryIO, int] | None:
        """A listed file and its size in bytes; ``None`` where there is none, or what is there is not a file in the folder."""
        if name not in self._names():
            return None
        try:
            # What is opened is what was resolved: a link that is put there in between is not followed.
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root) or not path.is_file():
                return None
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError, RuntimeError):  # ValueError: a null character; RuntimeError: a circle of links
            return None
        stream = os.fdopen(descriptor, "rb")
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            return stream, found.st_size
        stream.close()
        return None


def all_files(root: Path, patterns: Iterable[str] = ("**/*",)) -> Folder:
    """The files that are below ``root`` now and fit one of ``patterns``; links are left out."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file() and not path.is_symlink()}
    return Folder(root, {path.relative_to(root).as_posix() for path in found})


#: What pages import of the packages, by `targets/web`'s import maps.
_PACKAGED = (
    "onnxruntime-web/dist/*.mjs",
    "onnxruntime-web/dist/*.wasm",
    "@cfworker/json-schema/dist/esm/*.js",
    "@huggingface/jinja/dist/*.js",
    "@huggingface/tokenizers/dist/*.mjs",
    "flatbuffers/mjs/**/*.js",
)
_SOURCES = ("*.js", "*.css", "*.html")


def module_folders(packages: Path, *parts: str) -> dict[str, Folder]:
    """The ``edgepeft-web`` module with what it imports, by prefix.

    Args:
        packages: Where :func:`.packages.install` put the npm packages.
        parts: Folders of ``targets/web`` that are served beside the module's own sources: ``page``, ``harness``.
    """
    patterns = [f"{part}/{pattern}" for part in ("src", *parts) for pattern in _SOURCES]
    return {
        "/node_modules/": all_files(packages / "node_modules", _PACKAGED),
        "/web/": all_files(web_folder(), patterns),
    }


class _Listed:
    """Names that a bundle's manifest lists, read again when the manifest changes."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._seen: tuple[int, ...] | None = None
        self._names: frozenset[str] = frozenset({MANIFEST_NAME})

    def __call__(self) -> frozenset[str]:
        # A manifest that cannot be read changes nothing: the page reads it too, and says what is wrong with it.
        with suppress(OSError, EdgepeftError):
            now = (self._bundle / MANIFEST_NAME).stat()
            seen = (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
            if seen != self._seen:
                self._seen = seen
                self._names = frozenset({MANIFEST_NAME, *read_bundle(self._bundle).manifest.files})
        return self._names


def bundle_folder(bundle: Path) -> Folder:
    """A bundle's manifest and the files that it lists. What is added while the site runs is served too."""
    return Folder(bundle, _Listed(bundle))
