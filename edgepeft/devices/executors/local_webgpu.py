"""``local-webgpu``: a fresh process on this machine whose base its GPU computes, through ONNX Runtime's WebGPU plugin."""

from __future__ import annotations

from importlib.util import find_spec

from ...bench import Job, WorkerResult, run_worker
from ...errors import DeviceError
from ...targets import Target
from ...worker.gpu_probe import LocalGpu, find_local_gpu
from .gpu_traits import GpuTraits
from .protocol import Missing

_EXTRA = "pip install 'edgepeft[webgpu]'"


class LocalWebGpuExecutor(GpuTraits):
    """Runs on this machine's GPU.

    Where a program on the CPU stands in for one (Mesa's llvmpipe, SwiftShader), it computes the same shaders: labels, parity and
    the restored base are judged, and its time never is.
    """

    copies = False

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def _gpu(self) -> LocalGpu | None:
        try:
            return find_local_gpu()
        except DeviceError:
            return None

    @property
    def name(self) -> str:
        """Which GPU it is, if any: ``local-webgpu (NVIDIA H100)``."""
        gpu = self._gpu
        return "local-webgpu" if gpu is None else f"local-webgpu ({gpu.name})"

    def missing(self) -> tuple[Missing, ...]:
        """Another kind of machine, the plugin, or a GPU that it can use."""
        missing = []
        if (why := self._target.here()) is not None:
            machine = self._target.machine
            missing.append(Missing(why, f"run edgepeft on a {machine.os} {machine.arch} machine"))
        if find_spec("onnxruntime_ep_webgpu") is None:
            missing.append(Missing("onnxruntime-ep-webgpu", _EXTRA))
        if missing:
            return tuple(missing)
        try:
            find_local_gpu()
        except DeviceError as error:
            return (Missing(str(error), f"then again: edgepeft targets doctor {self._target.name}"),)
        return ()

    def run(self, job: Job) -> WorkerResult:
        """In a fresh Python process."""
        done = run_worker(job.model_copy(update={"device": "webgpu"}))
        gpu = find_local_gpu()
        software = ", which is software on the CPU" if gpu.software else ""
        return done.model_copy(
            update={
                "host": done.host.model_copy(update={"gpu": gpu.name}),
                "notes": (f"GPU: {gpu.name}{software}", *done.notes),
            }
        )
