"""qemu's user-mode emulator for aarch64 with libraries of its own, and the plugin that counts what it executes.

Debian 12's ``qemu-user`` and not ``qemu-user-static``: a static program cannot load plugins, and newer releases have static
ones only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ...cache import cache_dir
from ...errors import DeviceError
from ...targets import shipped_folder
from .debian import call, host_architecture, unpack

#: The release that the emulator and the aarch64 Python come from, also on a newer Debian.
SUITE = "bookworm"
#: The core of a Raspberry Pi 5: it has dot products and fp16, and neither i8mm nor SVE.
CPU = "cortex-a76"
#: The emulator and what it links to, so that it runs beside any C library.
PACKAGES = (
    "qemu-user", "libc6", "libgcc-s1", "zlib1g", "libcapstone4", "libnuma1", "liburing2", "libglib2.0-0", "libpcre2-8-0",
    "libgnutls30", "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libgmp10", "libffi8",
)  # fmt: skip
_PROGRAM = "usr/bin/qemu-aarch64"
#: What Linux says of such a core. qemu 7.2 hands out the host's own file, on which onnxruntime 1.28 and later fall over; a file
#: below the folder given as ``-L`` goes before it.
_CPUINFO = """processor\t: {number}
BogoMIPS\t: 100.00
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


def unpack_emulator(folder: Path) -> dict[str, str]:
    """Unpack the emulator into ``folder``; file names with sha256. Raises :class:`DeviceError` as :func:`.debian.unpack`."""
    files = unpack([f"{name}:{host_architecture()}" for name in PACKAGES], folder, suite=SUITE)
    for other in (folder / "usr" / "bin").iterdir():
        if other.name != Path(_PROGRAM).name:
            other.unlink()  # emulators of other machines, 120 MB
    shutil.rmtree(folder / "usr" / "share", ignore_errors=True)
    return files


def write_cpuinfo(root: Path) -> None:
    """Make ``/proc/cpuinfo`` under the guest's ``root`` that of the emulated core."""
    (root / "proc").mkdir(exist_ok=True)
    text = "".join(_CPUINFO.format(number=number) for number in range(os.cpu_count() or 1))
    (root / "proc" / "cpuinfo").write_text(text, encoding="ascii")


def emulator_command(folder: Path, root: Path, counter: Path | None = None) -> list[str]:
    """The words before an aarch64 program of ``root``; with ``counter``, a file of 8 bytes, its instructions are counted there.

    Raises :class:`DeviceError` where the plugin cannot be compiled.
    """
    loader = next(iter(sorted(folder.glob("lib64/ld-*.so.*"))), None)
    if loader is None:
        raise DeviceError(f"{folder} holds no emulator: edgepeft targets setup linux-arm64-cpu --again")
    libraries = [str(path) for part in ("lib", "usr/lib") for path in sorted((folder / part).glob("*-linux-gnu*"))]
    # Its own loader and not LD_LIBRARY_PATH, which the emulated program would inherit.
    command = [
        str(loader),
        "--library-path",
        os.pathsep.join(libraries),
        str(folder / _PROGRAM),
        "-cpu",
        CPU,
        "-L",
        str(root),
    ]
    if counter is not None:
        command += ["-plugin", f"{build_counter()},counter={counter}"]
    return command


def counter_path() -> Path:
    """Where the compiled plugin lies, or will lie; one for each source."""
    source = (shipped_folder() / "arm64" / "count_instructions.c").read_bytes()
    return cache_dir() / "runners" / f"count-{hashlib.sha256(source).hexdigest()[:12]}.so"


def build_counter() -> Path:
    """Compile the plugin into the cache; its path. Raises :class:`DeviceError` where there is no compiler."""
    path = counter_path()
    if path.is_file():
        return path
    if shutil.which("gcc") is None:
        raise DeviceError(
            "gcc was not found, which compiles the plugin that counts instructions: sudo apt-get install gcc"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".count-", dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        source = shipped_folder() / "arm64" / "count_instructions.c"
        call(
            ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", str(source), "-o", str(built)],
            f"compiling {source.name}",
            Path(scratch),
        )
        built.replace(path)
    return path
