"""``cpp``: the C++ runner of ``targets/cpp``, compiled here, over the libonnxruntime of the installed wheel.

What runs on phones and boards without Python; :mod:`edgepeft.devices.executors.cpp_protocol` is how it is spoken to.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...bench import Job, WorkerResult
from ...bundle import read_bundle, replace_folder
from ...cache import cache_dir
from ...errors import DeviceError
from ...targets import Target, shipped_folder
from ...terminate import run_child
from ...worker.host import fingerprint
from .cpp_protocol import read_answer, write_job
from .debian import call, host_architecture, require_apt, unpack
from .protocol import Missing

_TIMEOUT_S = 900
#: Debian's release with a package of ONNX Runtime's headers; any from 1.20 on fit any newer library.
_HEADERS_SUITE, _HEADERS = "trixie", "libonnxruntime-dev"


def source_folder() -> Path:
    """Where the C++ sources lie: in the wheel, or at the top of a source checkout."""
    return shipped_folder() / "cpp"


def find_library() -> Path | None:
    """The ``libonnxruntime.so`` of the installed wheel."""
    import onnxruntime

    return next(iter(sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))), None)


def runner_folder() -> Path:
    """Where the compiled runner lies, or will lie: one folder for each source and library."""
    library = find_library()
    sources = b"".join(path.read_bytes() for path in sorted(source_folder().glob("*.[ch]pp")))
    key = hashlib.sha256(sources + str(library).encode()).hexdigest()[:12]
    return cache_dir() / "runners" / f"cpp-{key}"


def build_runner(headers: Path | None = None) -> Path:
    """Compile the runner into the cache; the program. See :func:`build_program`."""
    folder = runner_folder()
    if not (folder / "edgepeft_run").is_file():
        build_program(source_folder() / "edgepeft_run.cpp", folder, headers)
    return folder / "edgepeft_run"


def build_program(source: Path, folder: Path, headers: Path | None = None) -> Path:
    """Compile a C++ program over edgepeft's headers into ``folder``, named after its source; the program.

    ``headers`` is a folder that holds ``onnxruntime_cxx_api.h``; without one, Debian's package of them is unpacked. Raises
    :class:`DeviceError` where there is no compiler, no library or no headers.
    """
    library = find_library()
    if library is None:
        raise DeviceError(
            "the installed onnxruntime ships no libonnxruntime.so to link to; install its wheel for Linux"
        )
    if shutil.which("g++") is None:
        raise DeviceError("g++ was not found: sudo apt-get install g++")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if headers is None:
            require_apt("ONNX Runtime's headers come from a Debian package; give a folder with them instead")
            unpack([f"{_HEADERS}:{host_architecture()}"], staging / "headers", suite=_HEADERS_SUITE)
            headers = next((staging / "headers").rglob("onnxruntime_cxx_api.h")).parent
        (staging / "lib").mkdir()
        # The name that the library calls itself by, which the program asks the loader for.
        (staging / "lib" / "libonnxruntime.so.1").symlink_to(library)
        program = staging / source.stem
        call(
            ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", str(source), f"-I{source_folder()}", f"-I{headers}",
             str(staging / "lib" / "libonnxruntime.so.1"), "-Wl,-rpath,$ORIGIN/lib", "-o", str(program)],
            f"compiling {source.name}",
            staging,
        )  # fmt: skip
        shutil.rmtree(staging / "headers", ignore_errors=True)
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / source.stem


class CppExecutor:
    """Runs jobs through the C and C++ API, in a program without Python."""

    name = "cpp"
    emulated = False
    copies = False
    rows = 200

    def __init__(self, target: Target) -> None:
        self._target = target

    def missing(self) -> tuple[Missing, ...]:
        """A machine of the target's kind, a compiler, and Debian's tools for the headers."""
        missing = []
        if (why := self._target.here()) is not None:
            missing.append(Missing(why, "run it on such a machine"))
        if (runner_folder() / "edgepeft_run").is_file():
            return tuple(missing)
        if find_library() is None:
            missing.append(Missing("libonnxruntime.so of onnxruntime's wheel", "pip install onnxruntime on Linux"))
        for tool, package in (("g++", "g++"), ("apt-get", "apt")):
            if shutil.which(tool) is None:
                missing.append(Missing(tool, f"sudo apt-get install {package}"))
        return tuple(missing)

    def run(self, job: Job) -> WorkerResult:
        """Verify the bundle, tokenize, and run the program; :class:`DeviceError` where it fails or takes 15 minutes."""
        bundle = read_bundle(job.bundle)
        bundle.verify(bundle.manifest.deployed(job.variant))
        text = write_job(job, bundle, {name: str(bundle.file(name).resolve()) for name in bundle.manifest.files})
        try:
            done = run_child([str(build_runner())], input=text, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.name}: no result after {_TIMEOUT_S} s") from error
        if done.returncode:
            raise DeviceError(f"{self.name}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return read_answer(done.stdout, job, bundle, fingerprint("", job.threads), self.name)
