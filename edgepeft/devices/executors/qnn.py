"""``qnn``: Qualcomm's HTP backend, executed on an x86-64 Linux host by the onnxruntime-qnn plugin.

It computes what the NPU computes, floats in fp16 and QDQ graphs in integers, at a speed that says nothing of the NPU's. The
graph gets fixed shapes (the target's buckets) and slots as inputs of a fixed rank, so one compiled graph serves every adapter.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from ...bench import Job, WorkerResult, run_worker
from ...errors import DeviceError, InputError, MeasureError
from ...targets import Target
from ...terminate import run_child
from .protocol import Missing

_TIMEOUT_S = 1800
#: Beyond it for each row: one of MiniLM takes 1.4 s on an idle machine.
_ROW_S = 6


class QnnExecutor:
    """Runs jobs on the HTP backend in a process of its own."""

    name = "qnn (HTP backend on this host)"
    emulated = True
    copies = False
    rows = 8
    reduced_precision = True
    refuses: ClassVar[Mapping[str, str]] = {
        "text-generation": "HTP compiles one graph for each shape, and a key/value cache has another with every token; it would "
        "take a cache of fixed length with masked places, which bundles do not have"
    }

    def __init__(self, target: Target) -> None:
        self._target = target

    def missing(self) -> tuple[Missing, ...]:
        """An x86-64 Linux host, the plugin, and the packages that edit graphs."""
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return (Missing("the HTP backend for hosts runs on x86-64 Linux", "run edgepeft there"),)
        missing = []
        if find_spec("onnxruntime_qnn") is None:
            missing.append(Missing("onnxruntime-qnn", "pip install 'edgepeft[qnn]'"))
        if find_spec("onnx_ir") is None or find_spec("onnxscript") is None:
            missing.append(Missing("onnx_ir and onnxscript", "pip install 'edgepeft[tools]'"))
        return tuple(missing)

    def run(self, job: Job) -> WorkerResult:
        """In a fresh process; :class:`DeviceError` when it fails, or takes half an hour and six seconds a row, which ends it."""
        if job.cases:
            raise InputError("the HTP backend on a host measures no latency: leave cases out")
        if job.prompts:
            raise InputError(f"{self.name} does not generate: {self.refuses['text-generation']}")
        buckets = ",".join(self._target.graph.buckets) or "1x32,1x128"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_path())}
        command = [sys.executable, "-P", "-m", "edgepeft.devices.executors.qnn_worker", buckets]
        timeout_s = _TIMEOUT_S + _ROW_S * sum(len(rows.texts) for rows in job.rows)
        try:
            return run_worker(job, command=command, environment=environment, timeout_s=timeout_s)
        except MeasureError as error:
            raise DeviceError(f"{self.name}: {error}") from error


def assigned_nodes(model: Path) -> set[str] | None:
    """Names of the nodes of a static graph that the QNN provider takes; ``None`` where its plugin is not installed.

    Asked in a process of its own. Raises :class:`DeviceError` where the backend cannot compile the graph.
    """
    if find_spec("onnxruntime_qnn") is None:
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_path())}
    command = [sys.executable, "-P", "-m", "edgepeft.devices.executors.qnn_worker", "--assign", str(model)]
    try:
        done = run_child(command, env=environment, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"QNN has not compiled {model.name} after {_TIMEOUT_S} s") from error
    if done.returncode:
        raise DeviceError(f"QNN cannot compile {model.name}: {done.stderr.strip()[-500:]}")
    return set(json.loads(done.stdout))


def _path() -> list[str]:
    root = Path(__file__).parents[3]
    own = [] if root.name in {"site-packages", "dist-packages"} else [str(root)]
    return [*own, *filter(None, [os.environ.get("PYTHONPATH")])]
