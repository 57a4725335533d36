"""Packages of Debian unpacked into a folder: fetched by apt with a configuration of its own, so nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...bundle import hash_file
from ...errors import DeviceError

_TIMEOUT_S = 600


def call(command: Sequence[str], what: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end in ``folder``; its output. :class:`DeviceError` with the end of what it said otherwise."""
    try:
        done = subprocess.run(
            list(command), cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT_S,
            env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{what}: not done after {_TIMEOUT_S} s; check the network and run it again") from error
    except OSError as error:
        raise DeviceError(f"{what}: cannot start {command[0]}: {error.strerror or error}") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise DeviceError(f"{what} failed (exit code {done.returncode}):\n{tail}")
    return done.stdout


def require_apt(why: str) -> None:
    """:class:`DeviceError` where Debian's tools are not there."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DeviceError(f"{tool} was not found: {why}")


def host_architecture() -> str:
    """Debian's name of this machine's architecture: ``amd64``."""
    return call(["dpkg", "--print-architecture"], "dpkg", Path.cwd()).strip()


def unpack(packages: Sequence[str], target: Path, *, suite: str | None = None) -> dict[str, str]:
    """Unpack ``name:architecture`` packages into ``target``; file names with sha256.

    apt checks each file against the mirror's signed lists. ``suite`` is another release than this machine's, from the
    same mirror. Raises :class:`DeviceError` where a package cannot be fetched.
    """
    target = target.resolve()  # the commands below run elsewhere
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgepeft-apt-") as scratch:
        work = Path(scratch)
        for name in ("state", "lists/partial", "archives/partial", "debs", "parts"):
            (work / name).mkdir(parents=True)
        (work / "status").touch()
        host = host_architecture()
        wanted = sorted({host, *(package.rpartition(":")[2] for package in packages)})
        configuration = (
            f'APT::Architecture "{host}";\nAPT::Architectures {{ {" ".join(f"{chr(34)}{a}{chr(34)};" for a in wanted)} }};\n'
            f'Dir::State "{work}/state";\nDir::State::Lists "{work}/lists";\nDir::State::status "{work}/status";\n'
            f'Dir::Cache "{work}";\nDir::Cache::archives "{work}/archives";\n'
            'APT::Sandbox::User "";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
        )
        if suite is not None:
            (work / "parts" / "other.sources").write_text(_sources(suite, work), encoding="utf-8")
            configuration += f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{work}/parts";\n'
        (work / "apt.conf").write_text(configuration, encoding="utf-8")
        apt = {"APT_CONFIG": str(work / "apt.conf"), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        call(["apt-get", "-q", "update"], "apt-get update", work, apt)
        call(["apt-get", "-q", "download", *packages], f"apt-get download {' '.join(packages)}", work / "debs", apt)
        files = {}
        for deb in sorted((work / "debs").glob("*.deb")):
            call(["dpkg", "-x", str(deb), str(target)], f"unpacking {deb.name}", work)
            files[deb.name] = hash_file(deb).sha256
    return files


def _sources(suite: str, work: Path) -> str:
    """The ``main`` component of another release, from the mirror that this machine's Debian sources name."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    listed = call(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], "apt-get indextargets", work)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"Signed-By: {keyring}\n" if keyring.is_file() else ""
    for line in listed.splitlines():
        uri, release, component = (*line.split("|"), "", "", "")[:3]
        if component == "main" and "security" not in release and "debian" in uri:
            return f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{signed}"
    raise DeviceError("no Debian mirror among this machine's package sources (/etc/apt)")
