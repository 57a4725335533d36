"""``web``, ``webgpu`` and ``node``: a job in ONNX Runtime Web, in a headless browser or in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ....bench import Job, WorkerResult
from ....errors import DeviceError
from ....json_text import json_text
from ....targets import Target
from ....terminate import run_child
from ....worker.host import fingerprint
from ..gpu_traits import GpuTraits
from ..protocol import Missing
from .browser import answer_of
from .folders import bundle_folder, module_folders
from .gpu import WEBGPU_FLAGS, Gpu, find_gpu
from .packages import (
    find_browser,
    find_node,
    install,
    missing_browser,
    missing_node,
    missing_packages,
    web_folder,
)
from .site import Site, as_json

_TIMEOUT_S = 900.0


class WebExecutor:
    """Runs jobs on a page in headless Chromium, served from this machine."""

    name = "web (Chromium)"
    emulated = False
    copies = False
    rows = 200
    _device = "wasm"
    _flags: tuple[str, ...] = ("--disable-gpu",)

    def __init__(self, target: Target, timeout_s: float = _TIMEOUT_S) -> None:
        self._target = target
        self._timeout_s = timeout_s

    def missing(self) -> tuple[Missing, ...]:
        """A browser, or npm where the packages are not fetched yet."""
        return (*(() if find_browser() else (missing_browser(),)), *missing_packages())

    def run(self, job: Job) -> WorkerResult:
        """On a fresh page in a fresh profile."""
        browser = find_browser()
        if browser is None:
            raise DeviceError(f"{missing_browser().what}: {missing_browser().remedy}")
        folders = {"/bundle/": bundle_folder(Path(job.bundle)), **module_folders(install(), "harness")}
        asked = {**job.model_dump(mode="json"), "bundle": "/bundle/", "device": self._device}
        with Site(folders, {"/job.json": as_json(asked)}) as site:
            text, peak_mb = answer_of(browser, site, "web/harness/page.html", self._timeout_s, self._flags)
        return _result(job, {**_object(text, self.name), "peak_rss_mb": peak_mb}, self.name)


class WebGpuExecutor(GpuTraits, WebExecutor):  # type: ignore[override] # constants of WebExecutor depend on the machine here
    """The same page on WebGPU.

    Where the machine has no GPU that Chromium can use, Chromium computes WebGPU on the CPU (SwiftShader): the same shaders, so
    labels, parity and the restored base are judged, and its time never is.
    """

    _device = "webgpu"
    _flags = WEBGPU_FLAGS

    @property
    def _gpu(self) -> Gpu | None:
        browser = find_browser()
        return None if browser is None else find_gpu(browser)

    @property
    def name(self) -> str:  # type: ignore[override] # it depends on the machine
        """Which GPU it is, if any: ``webgpu (Chromium, google swiftshader)``."""
        gpu = self._gpu
        return "webgpu (Chromium)" if gpu is None else f"webgpu (Chromium, {gpu.name})"

    def missing(self) -> tuple[Missing, ...]:
        """A browser, npm where the packages are not fetched yet, or a GPU that the browser gives to pages."""
        missing = super().missing()
        if missing or self._gpu is not None:
            return missing
        return (
            Missing(
                f"{find_browser()} gives pages no WebGPU adapter, not even SwiftShader's",
                "install a Chromium with libvk_swiftshader.so (Debian's has it), or a driver for Vulkan; web-wasm runs without",
            ),
        )


class NodeExecutor:
    """Runs jobs in Node with the same WebAssembly: quicker to start than a browser, for development."""

    name = "node"
    emulated = False
    copies = False
    rows = 200

    def __init__(self, target: Target, timeout_s: float = _TIMEOUT_S) -> None:
        self._target = target
        self._timeout_s = timeout_s

    def missing(self) -> tuple[Missing, ...]:
        """Node, or npm where the packages are not fetched yet."""
        return (*(() if find_node() else (missing_node(),)), *missing_packages())

    def run(self, job: Job) -> WorkerResult:
        """In a fresh process."""
        node = find_node()
        if node is None:
            raise DeviceError(f"{missing_node().what}: {missing_node().remedy}")
        packages = install()
        asked = {**job.model_dump(mode="json"), "bundle": str(Path(job.bundle).resolve()), "device": "wasm"}
        # Node finds packages from where a module lies, so the sources are put beside them.
        with tempfile.TemporaryDirectory(prefix="edgepeft-node-") as folder:
            for name in ("src", "harness"):
                shutil.copytree(web_folder() / name, Path(folder) / name)
            shutil.copyfile(web_folder() / "package.json", Path(folder) / "package.json")
            (Path(folder) / "node_modules").symlink_to(packages / "node_modules", target_is_directory=True)
            text = self._node([node, str(Path(folder) / "harness" / "node.js")], json_text(asked, indent=None))
        return _result(job, _object(text, self.name), self.name)

    def _node(self, command: list[str], asked: str) -> str:
        try:
            done = run_child(command, input=asked, timeout=self._timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"node gave no answer in {self._timeout_s:g} s and was stopped; measure fewer rows or cases"
            ) from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise DeviceError(f"node: {lines[-1] if lines else f'exit code {done.returncode}'}")
        return done.stdout


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except json.JSONDecodeError as error:
        raise DeviceError(f"{name} answered with something else than a result: {text[:200]!r}") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise DeviceError(f"{name}: {answer['error'] if isinstance(answer, dict) else text[:200]}")
    return answer


def _result(job: Job, answer: dict[str, Any], name: str) -> WorkerResult:
    """The page's answer with what only Python knows: the host, and which ONNX Runtime Web was installed."""
    version = json.loads((web_folder() / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
    host = fingerprint(version, job.threads).model_copy(
        update={"os": "web", "machine": "wasm32", "python": str(answer.pop("engine", ""))}
    )
    try:
        return WorkerResult.model_validate({**answer, "host": host, "import_ms": 0.0})
    except ValidationError as error:
        raise DeviceError(f"{name} answered with something else than a result: {error}") from error
