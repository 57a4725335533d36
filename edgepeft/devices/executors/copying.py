"""Bringing files to a machine behind a shell: by content, resumed where a copy broke off, verified there before use."""

from __future__ import annotations

import io
import shlex
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...bundle import MANIFEST_NAME, Bundle, FileEntry, hash_file
from ...errors import DeviceError


class Shell(Protocol):
    """A POSIX shell on another machine."""

    @property
    def where(self) -> str:
        """How messages name the machine."""

    def call(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a script and return its output; :class:`DeviceError` where it fails, or the machine does not answer in time."""

    def put(self, source: Path, offset: int, target: str, then: str) -> str:
        """Write ``source`` from ``offset`` on to the end of ``target`` (anew for 0), then run a script and return its output.

        A broken connection leaves what came.
        """

    @property
    def resumes(self) -> bool:
        """Whether :meth:`put` can begin in the middle of a file."""


@dataclass(frozen=True)
class Shipment:
    """What :func:`ship` did: where the files lie, how many bytes crossed, and how many were there already."""

    folder: str
    sent: int
    kept: int


def ship(
    shell: Shell,
    files: Mapping[str, tuple[Path, FileEntry]],
    folder: str,
    announce: Callable[[str], None] = lambda message: None,
) -> Shipment:
    """Bring ``files`` (by path below ``folder``) to the machine; those whose size and sha256 are right there stay.

    A file is written as ``<name>.part``, verified there and renamed, so whatever stands under its name is whole; a part
    that an earlier try left is continued. Raises :class:`DeviceError` where the machine does not answer, is full, or holds
    other bytes than were sent.
    """
    hashes, parts = _there(shell, list(files), folder)
    sent = kept = 0
    for name, (source, entry) in files.items():
        if hashes.get(name) == entry.sha256:
            kept += entry.bytes
            continue
        part, whole = shlex.quote(f"{folder}/{name}.part"), shlex.quote(f"{folder}/{name}")
        offset = parts.get(name, 0) if shell.resumes and parts.get(name, 0) <= entry.bytes else 0
        announce(f"{shell.where}: {name}, {(entry.bytes - offset) / 1e6:.1f} MB" + (" (resumed)" if offset else ""))
        then = (
            f"d=$(sha256sum < {part}); d=${{d%% *}}\n"
            f"if [ $d = {entry.sha256} ]; then mv {part} {whole}; else rm -f {part}; fi\necho $d"
        )
        digest = shell.put(source, offset, f"{folder}/{name}.part", then).strip()
        sent += entry.bytes - offset
        kept += offset
        if digest != entry.sha256:
            raise DeviceError(
                f"{shell.where}: {name} arrived with sha256 {digest[:16]}…, sent was {entry.sha256[:16]}…; again"
            )
    return Shipment(folder=folder, sent=sent, kept=kept)


def _there(shell: Shell, names: list[str], folder: str) -> tuple[dict[str, str], dict[str, int]]:
    """sha256 of those files that are there already, and sizes of the parts of others; makes their folders."""
    parents = sorted({f"{folder}/{Path(name).parent.as_posix()}" for name in names})
    script = f"mkdir -p {' '.join(map(shlex.quote, parents))}\ncd {shlex.quote(folder)}\n"
    for number, name in enumerate(names):
        whole, part = shlex.quote(name), shlex.quote(f"{name}.part")
        script += f"if [ -f {whole} ]; then echo whole {number} $(sha256sum < {whole})\n"
        script += f"elif [ -f {part} ]; then echo part {number} $(wc -c < {part}); fi\n"
    wholes: dict[str, str] = {}
    parts: dict[str, int] = {}
    for line in shell.call(script, timeout_s=300).splitlines():
        kind, number_, value = line.split()[:3]
        if kind == "whole":
            wholes[names[int(number_)]] = value
        else:
            parts[names[int(number_)]] = int(value)
    return wholes, parts


def bundle_files(bundle: Bundle, variant: str) -> dict[str, tuple[Path, FileEntry]]:
    """What a device gets to run ``variant``, the manifest last: a bundle without one is none."""
    names = bundle.manifest.deployed(variant)
    bundle.verify(names)
    files = {name: (bundle.file(name), bundle.manifest.files[name]) for name in names}
    manifest = bundle.file(MANIFEST_NAME)
    return {**files, MANIFEST_NAME: (manifest, hash_file(manifest))}


def package_zip() -> bytes:
    """This edgepeft's Python files as a zip to be put on the path, the same bytes each time."""
    package = Path(__file__).parents[2]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"edgepeft/{path.relative_to(package).as_posix()}"), path.read_bytes())
    return buffer.getvalue()
