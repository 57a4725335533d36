"""What this machine and this environment have: what a bug report needs, and what is missing for more."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .cache import cache_dir
from .errors import EdgepeftError
from .executors import EXECUTORS
from .runtime.kernels import installed_kernels
from .units import MB
from .worker.host import fingerprint

#: What kernels choose by, of what /proc/cpuinfo lists (x86 "flags", Arm "Features").
_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
#: Settings of the environment that change what edgepeft does.
_VARIABLES = (
    "EDGEPEFT_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TQDM_DISABLE",
    "CHROME", "ANDROID_NDK",
)  # fmt: skip
#: One module of each extra that nothing else brings.
_EXTRAS = {
    "tools": ("onnx", "onnx_ir", "onnxscript", "safetensors", "ml_dtypes"),
    "export": ("torch", "transformers", "peft", "optimum", "mobius"),
    "train": ("datasets", "accelerate"),
    "report": ("matplotlib",),
    "metrics": ("sklearn", "scipy", "seqeval", "sacrebleu", "jiwer"),
    "audio": ("soundfile", "soxr"),
    "search": ("optuna",),
    "ray": ("ray",),
    "kernels": ("edgepeft_kernels",),
    "qnn": ("onnxruntime_qnn",),
    "webgpu": ("onnxruntime_ep_webgpu",),
    "demo": ("gguf", "rdata", "yaml"),
}
_PACKAGES = (
    "numpy", "onnxruntime", "tokenizers", "pydantic", "protobuf", "jinja2", "onnx", "onnx-ir", "onnxscript",
    "safetensors", "ml_dtypes", "huggingface_hub", "torch", "transformers", "peft", "optimum",
    "mobius-onnx", "datasets", "accelerate", "matplotlib", "onnxruntime-genai", "onnxruntime-qnn", "onnxruntime-ep-webgpu",
    "edgepeft-kernels",
)  # fmt: skip


@dataclass(frozen=True)
class ExecutorState:
    """An executor, whether this machine can run it, and what it lacks with the remedy."""

    name: str
    summary: str
    ready: bool
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Environment:
    """What `edgepeft doctor` says. Sizes are in MB (10^6 bytes); paths below the home folder begin with ``~``."""

    edgepeft: str
    python: str
    python_path: str
    system: str
    machine: str
    cpu: str
    cores: int
    memory_mb: float | None
    cpu_features: tuple[str, ...]
    onnxruntime_providers: tuple[str, ...]
    packages: dict[str, str]
    #: By extra, the modules that are not installed; empty for a whole one.
    extras: dict[str, tuple[str, ...]]
    executors: tuple[ExecutorState, ...]
    #: What edgepeft's operators run slots and quantized matrices with; or why they do not run. Empty where they are not installed.
    kernels: str
    variables: dict[str, str]
    cache: str
    free_mb: float | None
    problems: tuple[str, ...]


def environment() -> Environment:
    """Look at this machine and environment. Nothing is started, fetched or written; it takes about a second.

    Example:
        >>> environment().extras["tools"]
        ()
    """
    import onnxruntime

    host = fingerprint(onnxruntime.__version__, threads=1)
    packages = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    problems = [*_problems(packages)]
    cache, free = "", None
    try:
        folder = cache_dir()
        cache, free = _private(str(folder)), _free(folder)
    except EdgepeftError as error:
        problems.append(str(error))
    return Environment(
        edgepeft=__version__,
        python=host.python,
        python_path=_private(sys.executable),
        system=_system(),
        machine=host.machine,
        cpu=host.cpu,
        cores=host.cores,
        memory_mb=_memory(),
        cpu_features=_features(),
        onnxruntime_providers=tuple(onnxruntime.get_available_providers()),
        packages=packages,
        extras={extra: tuple(m for m in modules if find_spec(m) is None) for extra, modules in _EXTRAS.items()},
        executors=_executors(),
        kernels=_private(installed_kernels()),
        variables={name: _private(os.environ[name]) for name in _VARIABLES if name in os.environ},
        cache=cache,
        free_mb=free,
        problems=tuple(problems),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problems(packages: dict[str, str]) -> list[str]:
    """What is installed and does not fit what edgepeft's own metadata ask for."""
    found = []
    for requirement in _requirements():
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9.]*)", requirement)
        if match is None:
            continue
        name, least = match.groups()
        installed = next((v for n, v in packages.items() if _plain(n) == _plain(name)), None)
        if installed is not None and _numbers(installed) < _numbers(least):
            found.append(f"{name} {installed} is older than {least}: pip install --upgrade '{name}>={least}'")
    if _version("edgepeft") not in {None, __version__}:
        found.append(
            f"edgepeft {_version('edgepeft')} is installed, and the code that runs is {__version__}: install it again"
        )
    return list(dict.fromkeys(found))


def _requirements() -> list[str]:
    """What edgepeft's metadata ask for; nothing where its files are on the path and it is not installed."""
    try:
        return importlib.metadata.requires("edgepeft") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def _private(text: str) -> str:
    """``text`` without the user's home folder, so that it can be pasted into a bug report."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return text
    text = re.sub(r"//[^/@]*@", "//", text)  # an address may hold a password
    text = re.sub(r"//[^/@]*@", "//", text)  # an address may hold a password
    return text.replace(home, "~") if len(home) > 1 else text


def _system() -> str:
    if sys.platform != "linux":
        return platform.platform(terse=True)
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = "Linux"
    return f"{name}, kernel {platform.release()}, {' '.join(platform.libc_ver()).strip() or 'another libc'}"


def _memory() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB
    except (AttributeError, ValueError, OSError):  # Windows has none of it
        return None


def _free(folder: Path) -> float:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free / MB


def _features() -> tuple[str, ...]:
    """What the CPU can do, as far as Linux says it; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return ()
    words = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    there = set(words.group(1).split()) if words else set()
    return tuple(feature for feature in _FEATURES if feature in there)


def _executors() -> tuple[ExecutorState, ...]:
    """Each executor that needs no address, with what this machine lacks for it."""
    from .devices import executor_for
    from .targets import load_target

    target = load_target("linux-x64-cpu")
    states = []
    for entry in EXECUTORS.values():
        if entry.needs_address:
            states.append(
                ExecutorState(
                    entry.name, entry.summary, ready=False, missing=(("an address", f"--on {entry.example}"),)
                )
            )
            continue
        try:
            executor = executor_for(target, entry.name)
            missing = () if executor is None else executor.missing()
        except EdgepeftError as error:  # one that cannot even be asked must not hide the others
            states.append(ExecutorState(entry.name, entry.summary, ready=False, missing=((str(error), ""),)))
            continue
        lacks = tuple((each.what, each.remedy) for each in missing)
        states.append(ExecutorState(entry.name, entry.summary, ready=not lacks, missing=lacks))
    return tuple(states)
