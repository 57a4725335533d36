"""An aarch64 Python with ONNX Runtime's own aarch64 wheel, unpacked into the cache: nothing is installed, no root is needed.

Debian packages come through apt with a configuration of its own (its signatures and hashes are apt's to check), wheels by
exact pin and sha256 through pip. Both are unpacked, never run by their installers.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ...bundle import hash_file, replace_folder
from ...cache import cache_dir
from ...errors import DeviceError
from ...json_text import json_text
from .debian import call, require_apt, unpack
from .qemu import PACKAGES as EMULATOR
from .qemu import SUITE, build_counter, unpack_emulator, write_cpuinfo

#: Debian 12's Python 3.11 and what it links to; their versions are the mirror's newest, which old ones are removed from.
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6", "zlib1g",
    "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1",
)  # fmt: skip
#: The versions of constraints.txt: what differs from a native run is then the machine.
WHEELS = {
    "onnxruntime==1.32.0": "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
    "numpy==2.4.6": "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
    "jinja2==3.1.6": "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67",
    "markupsafe==3.0.4": "849dd2bb0e5e4ab2b71c7191726a4a8d5aa8a610daa584728cbee0b710ddc4ef",
    "tokenizers==0.23.3": "ec82e80e65a862275b97c3d90b7a523df8d9519ee48aeb4e9625b2cc909274e0",
    "pydantic==2.14.3": "3f7b347782ab7e4cf4c798496ae3a82787d9f21ec12676a9c564355eeef8daa8",
    "pydantic_core==2.50.4": "30d4dc35bc0eea52202a90b3820445ee0072c820241bfa710a623a078c9b267b",
    "annotated-types==0.8.0": "f072f4d804ea359e4eaf198b1af7a8b0943881a87f31bb764f8bf219bb9419e0",
    "typing_extensions==4.16.0": "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
    "typing-inspection==0.4.5": "bc210535442b39e1bf2805e0c7a17dfd6a4ace760c84c7f7d16245d23a6b1c39",
    "flatbuffers==25.12.19": "7634f50c427838bb021c2d66a3d1168e9d199b0607e6329399f04846d42e20b4",
    "protobuf==7.36.2": "e11e1f0180583a2af89db6a2ecd9e8dc40aa6d2988ca175bfd0e6d12ea72d74e",
}
STAMP = "sysroot.json"

Announce = Callable[[str], None]


def _recipe() -> str:
    return hashlib.sha256(
        json_text([SUITE, PACKAGES, EMULATOR, sorted(WHEELS.items())], indent=None).encode()
    ).hexdigest()


def sysroot_folder() -> Path:
    """Where the sysroot lies, or will lie; one folder for each recipe."""
    return cache_dir() / "sysroots" / f"arm64-{_recipe()[:12]}"


def is_ready() -> bool:
    """Whether the sysroot was built to its end from this recipe."""
    try:
        stamp = json.loads((sysroot_folder() / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp.get("recipe") == _recipe())


def build_sysroot(announce: Announce = lambda message: None, *, again: bool = False) -> Path:
    """Fetch, check and unpack everything into the cache (80 MB of downloads, 225 MB there); its folder.

    A complete one is returned as it is, unless ``again``. Raises :class:`DeviceError` where there is no apt, a package or
    wheel cannot be fetched, or one does not have its pinned hash; the cache is then as it was.
    """
    folder = sysroot_folder()
    if is_ready() and not again:
        announce(f"sysroot: built already in {folder}")
        return folder
    require_apt(
        "the aarch64 Python and qemu come from Debian 12's packages. Run this on Debian, or use a board: --on ssh://user@host"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        announce(f"fetching {len(PACKAGES)} Debian packages")
        files = unpack([f"{name}:arm64" for name in PACKAGES], staging / "root", suite=SUITE)
        write_cpuinfo(staging / "root")
        announce(f"fetching qemu, {len(EMULATOR)} Debian packages")
        files |= unpack_emulator(staging / "qemu")
        files |= _wheels(staging, announce)
        stamp = {"recipe": _recipe(), "files": files}
        (staging / STAMP).write_text(json_text(stamp) + "\n", encoding="utf-8")
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    announce(f"sysroot: {folder}")
    if shutil.which("gcc") is not None:
        build_counter()
    else:
        announce("no gcc: instructions cannot be counted (sudo apt-get install gcc)")
    return folder


def _wheels(staging: Path, announce: Announce) -> dict[str, str]:
    """Unpack the pinned wheels into ``site``; file names with sha256."""
    work = staging / ".wheels"
    work.mkdir()
    pins = work / "requirements.txt"
    pins.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()), encoding="utf-8")
    announce(f"fetching {len(WHEELS)} pinned wheels")
    tags = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    call(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
         "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms, "--dest", str(work / "dist"),
         "--requirement", str(pins)],
        "pip download of the aarch64 wheels",
        work,
    )  # fmt: skip
    site = staging / "site"
    site.mkdir()
    files = {}
    for wheel in sorted((work / "dist").glob("*.whl")):
        files[wheel.name] = hash_file(wheel).sha256
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    if sorted(files.values()) != sorted(WHEELS.values()):
        raise DeviceError(f"pip fetched other files than were pinned: {', '.join(files)}")
    shutil.rmtree(work)
    return files


def is_arm_linux() -> bool:
    """Whether this machine runs aarch64 Linux programs itself."""
    return platform.system() == "Linux" and platform.machine().lower() in {"aarch64", "arm64"}


def set_up(announce: Callable[[str], None], *, again: bool = False) -> None:
    """Make :func:`build_sysroot`'s system, where this machine is not an Arm one itself."""
    if is_arm_linux():
        announce("this machine is 64-bit Arm: nothing to set up")
    else:
        build_sysroot(announce, again=again)
