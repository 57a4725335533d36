"""The kernels of targets/kernels, compiled once into the cache, as the package ``edgepeft_kernels`` in a folder."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgepeft.bundle import replace_folder
from edgepeft.cache import cache_dir
from edgepeft.devices.executors.debian import host_architecture, unpack

SOURCES = Path(__file__).parents[1] / "targets" / "kernels"
_X86 = {
    "low_rank_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "low_rank_avx512": ["-mavx512f", "-mavx512vl", "-mfma", "-mf16c"],
    "block_matmul_avx512": [
        *(
            "-mavx512f",
            "-mavx512bw",
            "-mavx512vl",
            "-mavx512dq",
            "-mavx512vnni",
            "-mfma",
            "-mf16c",
            "-Wno-uninitialized",
        ),
    ],
}


def missing() -> str | None:
    """Why the kernels cannot be compiled here."""
    if platform.system() != "Linux":
        return "the kernels are compiled on Linux"
    return next((f"no {tool}" for tool in ("g++", "cmake", "apt-get") if shutil.which(tool) is None), None)


def package_folder() -> Path:
    """A folder to put on ``sys.path``: the package ``edgepeft_kernels`` and its library, built by CMake."""
    content = b"".join(path.read_bytes() for path in sorted(SOURCES.rglob("*")) if path.is_file())
    folder = cache_dir() / "runners" / f"kernels-{hashlib.sha256(content).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".kernels-", dir=folder.parent))
    try:
        unpack([f"libonnxruntime-dev:{host_architecture()}"], staging / "headers", suite="trixie")
        headers = next((staging / "headers").rglob("onnxruntime_c_api.h")).parent
        build = staging / "build"
        for command in (
            ["cmake", "-S", SOURCES, "-B", build, f"-DONNXRUNTIME_INCLUDE={headers}", "-DCMAKE_CXX_COMPILER=g++"],
            ["cmake", "--build", build],
        ):
            subprocess.run(command, check=True, capture_output=True)
        made = staging / "edgepeft_kernels"
        shutil.copytree(SOURCES / "python" / "edgepeft_kernels", made)
        shutil.copy(build / "libedgepeft_kernels.so", made)
        shutil.rmtree(staging / "headers")
        shutil.rmtree(build)
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


#: What the programs of test/ run, of every instruction set.
_RUNS = {
    "fuzz": ("dispatch", "low_rank_portable", "low_rank_avx2", "low_rank_avx512"),
    "fuzz_blocks": ("block_matmul", "block_matmul_avx512"),
}


def build_fuzz(program: Path, *options: str, test: str = "fuzz") -> None:
    """Compile a program of test/ and the kernels that it runs with these options."""
    flags = [
        "g++",
        "-std=gnu++17",
        "-g",
        "-O1",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
        f"-I{SOURCES / 'src'}",
        *options,
    ]
    sources = [name for name in _RUNS[test] if name not in _X86]
    files = [SOURCES / "test" / f"{test}.cpp", *(SOURCES / "src" / f"{name}.cpp" for name in sources)]
    if platform.machine() == "x86_64":
        flags.append("-DEDGEPEFT_X86")
        for name in _RUNS[test]:
            if name not in _X86:
                continue
            made = program.with_name(f"{name}.o")
            subprocess.run([*flags, *_X86[name], "-c", SOURCES / "src" / f"{name}.cpp", "-o", made], check=True)
            files.append(made)
    subprocess.run([*flags, *files, "-pthread", "-o", program], check=True)


#: Debian's compiler for 64-bit Arm and an emulator, unpacked and not installed.
_ARM64 = (
    "g++-12-aarch64-linux-gnu", "gcc-12-aarch64-linux-gnu", "cpp-12-aarch64-linux-gnu", "binutils-aarch64-linux-gnu",
    "libgcc-12-dev-arm64-cross", "libstdc++-12-dev-arm64-cross", "libc6-dev-arm64-cross", "linux-libc-dev-arm64-cross",
    "libc6-arm64-cross", "libgcc-s1-arm64-cross", "libstdc++6-arm64-cross", "libisl23", "libmpc3", "libmpfr6", "libgmp10",
    "qemu-user-static",
)  # fmt: skip


def run_fuzz_on_arm64(folder: Path, seeds: int) -> str:
    """test/fuzz.cpp compiled for 64-bit Arm, run under the emulator; what it prints."""
    root = folder / "root"
    unpack(
        [f"{name}:{host_architecture()}" if name.startswith(("g", "c", "b", "q")) else name for name in _ARM64], root
    )
    cross, source = root / "usr" / "aarch64-linux-gnu", SOURCES / "src"
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    command = [
        root / "usr" / "bin" / "aarch64-linux-gnu-g++-12", "-std=gnu++17", "-O3", "-static", "-pthread", f"-I{source}",
        f"-B{root}/usr/bin/aarch64-linux-gnu-", f"-B{cross}/lib/", f"-L{cross}/lib", "-isystem", cross / "include",
        SOURCES / "test" / "fuzz.cpp", source / "dispatch.cpp", source / "low_rank_portable.cpp", "-o", folder / "fuzz",
    ]  # fmt: skip
    subprocess.run(command, check=True, env={"LD_LIBRARY_PATH": str(libraries), "PATH": f"{root}/usr/bin:/usr/bin"})
    done = subprocess.run(
        [root / "usr" / "bin" / "qemu-aarch64-static", folder / "fuzz", str(seeds)], capture_output=True, text=True
    )
    return done.stdout + done.stderr
