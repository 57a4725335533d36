"""Bringing files to a machine behind a shell: by content, resumed where a copy broke off, verified there before use."""

from __future__ import annotations

import io
import shlex
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..bundle import MANIFEST_NAME, Bundle, FileEntry, hash_file
from ..errors import DeviceError


class Shell(Protocol):
    """A POSIX shell on another machine."""

    @property
    def where(self) -> str:
        """How messages name the machine."""

    def call(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a script and return its output; :class:`DeviceError` where it fails, or the machine does not answer in time."""

    def append(self, source: Path, offset: int, target: str) -> None:
        """Append the bytes of ``source`` from ``offset`` on to the file ``target``. A broken connection leaves what came."""

    @property
    def resumes(self) -> bool:
        """Whether :meth:`append` can begin in the middle of a file."""


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
    found = _there(shell, list(files), folder)
    sent = kept = 0
    for name, (source, entry) in files.items():
        if found.get(name) == entry.sha256:
            kept += entry.bytes
            continue
        target = f"{folder}/{name}"
        offset = _part_size(shell, target) if shell.resumes else 0
        if offset > entry.bytes:
            offset = 0
        if offset == 0:
            shell.call(f"rm -f {shlex.quote(target)}.part")
        announce(f"{shell.where}: {name}, {(entry.bytes - offset) / 1e6:.1f} MB" + (" (resumed)" if offset else ""))
        shell.append(source, offset, f"{target}.part")
        sent += entry.bytes - offset
        kept += offset
        digest = shell.call(f"sha256sum < {shlex.quote(target)}.part", timeout_s=300).split()[0]
        if digest != entry.sha256:
            shell.call(f"rm -f {shlex.quote(target)}.part")
            raise DeviceError(
                f"{shell.where}: {name} arrived with sha256 {digest[:16]}…, sent was {entry.sha256[:16]}…; again"
            )
        shell.call(f"mv {shlex.quote(target)}.part {shlex.quote(target)}")
    return Shipment(folder=folder, sent=sent, kept=kept)


def _there(shell: Shell, names: list[str], folder: str) -> dict[str, str]:
    """sha256 of those files that are there already; makes their folders."""
    parents = sorted({f"{folder}/{Path(name).parent.as_posix()}" for name in names})
    script = f"mkdir -p {' '.join(map(shlex.quote, parents))}\ncd {shlex.quote(folder)}\n"
    script += "".join(f"[ -f {q} ] && sha256sum {q}\n" for q in map(shlex.quote, names)) + "true\n"
    found = {}
    for line in shell.call(script, timeout_s=300).splitlines():
        digest, _, name = line.partition(" ")
        found[name.lstrip(" *")] = digest
    return found


def _part_size(shell: Shell, target: str) -> int:
    quoted = shlex.quote(target)
    return int(shell.call(f"[ -f {quoted}.part ] && wc -c < {quoted}.part || echo 0").split()[0])


def bundle_files(bundle: Bundle, variant: str) -> dict[str, tuple[Path, FileEntry]]:
    """What a device gets to run ``variant``, the manifest last: a bundle without one is none."""
    names = bundle.manifest.deployed(variant)
    bundle.verify(names)
    files = {name: (bundle.file(name), bundle.manifest.files[name]) for name in names}
    manifest = bundle.file(MANIFEST_NAME)
    return {**files, MANIFEST_NAME: (manifest, hash_file(manifest))}


def package_zip() -> bytes:
    """This edgepeft's Python files as a zip to be put on the path, the same bytes each time."""
    package = Path(__file__).parents[1]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"edgepeft/{path.relative_to(package).as_posix()}"), path.read_bytes())
    return buffer.getvalue()
