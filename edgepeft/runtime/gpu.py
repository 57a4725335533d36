"""ONNX Runtime's WebGPU provider on this machine's GPU: a plugin that ``edgepeft[webgpu]`` installs.

It computes through Vulkan on Linux, Direct3D 12 on Windows and Metal on macOS. What it does not take of a graph runs on the CPU.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..bundle.protobuf import block, number
from ..bundle.slots import SlotTable
from ..errors import BundleError, DeviceError, MissingExtraError
from .buffers import as_values
from .gpu_session import GPU, GpuSession, GpuValues
from .half_slots import half_slots
from .sessions import open_session, run_values

#: ONNX Runtime's name of the provider, and ours of its library.
PROVIDER, _LIBRARY = "WebGpuExecutionProvider", "edgepeft.webgpu"
#: Without it the plugin offers a device only where ONNX Runtime knows a GPU itself (on Linux: by /sys/class/drm), though
#: Vulkan may have another: in a container, in a virtual machine, or one that a program on the CPU stands in for.
_ALLOW = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
#: The first ONNX Runtime whose Python has memory of the plugin's device.
_LEAST = (1, 32)
#: Of TensorProto.DataType.
_TYPES: dict[Any, int] = {np.float32: 1, np.float16: 10}

_registering = threading.Lock()


def webgpu_device() -> Any:
    """The plugin's ``OrtEpDevice``, registered once a process.

    Raises:
        MissingExtraError: The plugin is not installed, or does not fit the installed ONNX Runtime.
        DeviceError: It offers no device.
    """
    import onnxruntime as ort

    try:
        import onnxruntime_ep_webgpu as plugin
    except ImportError as error:
        raise MissingExtraError(
            "device='webgpu' needs ONNX Runtime's WebGPU plugin: pip install 'edgepeft[webgpu]'"
        ) from error
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise MissingExtraError(
            f"device='webgpu' needs onnxruntime {least} or newer, found {ort.__version__}: pip install -U onnxruntime"
        )
    with _registering:
        found = _offered(ort)
        if found is None:
            try:
                ort.register_execution_provider_library(_LIBRARY, plugin.get_library_path())
                if (found := _offered(ort)) is None:
                    ort.unregister_execution_provider_library(_LIBRARY)
                    with _any_adapter():
                        ort.register_execution_provider_library(_LIBRARY, plugin.get_library_path())
                    found = _offered(ort)
            except Exception as error:  # ONNX Runtime's exception types are not public
                raise MissingExtraError(
                    f"ONNX Runtime {ort.__version__} cannot load its WebGPU plugin: {str(error)[:300]}. On Linux it wants Vulkan's "
                    "loader (libvulkan.so.1: apt install libvulkan1). Or install what fits: pip install -U 'edgepeft[webgpu]'"
                ) from error
    if found is None:
        raise DeviceError(
            "ONNX Runtime's WebGPU plugin offers no device on this machine. It wants a GPU's driver, on Linux for Vulkan "
            "(mesa-vulkan-drivers, or the vendor's)."
        )
    return found


@contextmanager
def _any_adapter() -> Iterator[None]:
    """The plugin offers a device though ONNX Runtime knows of no GPU."""
    before = os.environ.get(_ALLOW)
    os.environ[_ALLOW] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ALLOW]
        else:
            os.environ[_ALLOW] = before


def _offered(ort: Any) -> Any:
    return next((device for device in ort.get_ep_devices() if device.ep_name == PROVIDER), None)


def open_gpu_session(
    bundle: Bundle,
    file: str,
    *,
    threads: int | None = None,
    settings: Mapping[str, str] | None = None,
    half: bool = False,
) -> Any:
    """A session over a graph of a bundle on the GPU; the graph and its weights are verified as they are opened.

    Of a graph that computes in ``half`` precision it takes the factors of adapters in float16 (:mod:`.half_slots`).

    Raises:
        MissingExtraError, DeviceError: See :func:`webgpu_device`.
        CorruptBundleError: A file is not what the manifest says.
        BundleError: ONNX Runtime cannot open the graph.
    """
    device = webgpu_device()
    recorded = {"session.record_ep_graph_assignment_info": "1"}
    with bundle.open_graph(file) as graph:
        model = graph.model
        if half and isinstance(model, bytes) and not file.endswith(".ort"):
            model = half_slots(model, bundle.manifest.slots.tensors())
        merged = {**graph.settings, **recorded, **(settings or {})}
        try:
            with GPU:
                return GpuSession(open_session(model, threads=threads, settings=merged, device=device))
        except BundleError as error:
            check_computes()  # says it better where nothing can be opened
            raise BundleError(
                f"ONNX Runtime cannot open {bundle.file(file)} on WebGPU: {error.__cause__}"
            ) from error.__cause__


@dataclass(frozen=True)
class Placement:
    """Where ONNX Runtime put the nodes of a graph: how many on the GPU, and which ones, by operator, on the CPU."""

    gpu: int
    cpu: Mapping[str, int]

    @property
    def nodes(self) -> int:
        """How many there are."""
        return self.gpu + sum(self.cpu.values())

    def __str__(self) -> str:
        left = ", ".join(f"{count} {operator}" for operator, count in self.cpu.items())
        return f"{self.gpu} of {self.nodes} nodes ran on WebGPU" + (f"; on the CPU: {left}" if left else "")


def placement_of(session: Any) -> Placement:
    """Where a session of :func:`open_gpu_session` has its nodes."""
    nodes = Counter(
        (part.ep_name == PROVIDER, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    return Placement(
        gpu=sum(count for (gpu, _), count in nodes.items() if gpu),
        cpu={operator: count for (gpu, operator), count in nodes.most_common() if not gpu},
    )


def on_gpu(session: Any, array: np.ndarray) -> Any:
    """A copy of an array in the GPU's memory, as an OrtValue for runs of the session."""
    with GPU:
        value = session.create_ortvalue_from_shape_and_type(array.shape, array.dtype.type, "webgpu")
        value.update_inplace(np.ascontiguousarray(array))
    return value


def to_host(value: Any, dtype: Any) -> np.ndarray:
    """A copy of what :func:`on_gpu` made, or a run wrote into it, in this process's memory."""
    import onnxruntime as ort

    found = np.empty(value.shape(), dtype)
    with GPU:
        ort.copy_tensors([value], [ort.OrtValue.ortvalue_from_numpy(found)])
    return found


class GpuSlots:
    """An engine's slots on the GPU.

    ``empty`` has zeros of rank 1 by name, for slots that no adapter fills: they add nothing, and WebGPU cannot multiply matrices
    of no columns, which the graph's own numbers for a slot are.
    """

    def __init__(self, session: Any, slots: SlotTable) -> None:
        self._session = session
        taken = session.get_overridable_initializers()
        self._half = {value.name for value in taken if value.type == "tensor(float16)"}
        shapes = {name: shape for slot in slots.factored for name, shape in slot.tensors() if name in (slot.a, slot.b)}
        self.empty: Mapping[str, Any] = {
            name: on_gpu(session, self._typed(name, np.zeros([size if isinstance(size, int) else 1 for size in shape])))
            for name, shape in shapes.items()
        }

    def _typed(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float16 if name in self._half else np.float32)

    def resident(self, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], None]:
        """What runs are fed for an adapter: its tensors, in the GPU's memory as long as it is resident."""
        made = {name: on_gpu(self._session, self._typed(name, array)) for name, array in tensors.items()}
        return GpuValues(made), None

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What runs are fed for values in this process's memory or the GPU's: in the types of the slots, the others empty."""
        typed = {
            name: as_values({name: self._typed(name, value.numpy())})[name]
            if name in self._half and value.data_type() == "tensor(float)"
            else value
            for name, value in values.items()
        }
        return GpuValues({**self.empty, **typed})


@cache
def computes_halves() -> bool:
    """Whether the GPU computes in float16 (``shader-f16``), as variants in half precision need: a sum of two numbers is tried.

    Raises:
        MissingExtraError, DeviceError: See :func:`webgpu_device`.
    """
    device = webgpu_device()
    try:
        return _adds(device, np.float16)
    except Exception:  # ONNX Runtime's exception types are not public; it refuses to compile a shader of float16
        return False


def check_computes() -> None:
    """Raise :class:`DeviceError` where the plugin has a device that computes nothing, with ONNX Runtime's reason."""
    try:
        right = _adds(webgpu_device(), np.float32)
    except (BundleError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().rpartition("was false. ")[2]
        raise DeviceError(
            f"WebGPU computes nothing on this machine ({reason[-200:]}). It wants a GPU's driver; on Linux Vulkan's loader and the "
            "driver (apt install libvulkan1 mesa-vulkan-drivers, or the vendor's)"
        ) from error
    if not right:
        raise DeviceError("WebGPU gives a wrong sum of two numbers on this machine: its driver is broken")


def _adds(device: Any, dtype: Any) -> bool:
    """Whether 1.5 + 1.5 in this type is 3 there."""
    with GPU:
        session = open_session(_sum(_TYPES[dtype]), device=device)
        return bool(run_values(session, ["y"], {"x": np.array([1.5], dtype)}, {})["y"][0] == 3)


def _sum(kind: int) -> bytes:
    """A graph ``y = x + x`` over one number of this type, as bytes (fields as in ``onnx.proto``)."""

    def value(name: str) -> bytes:
        shape = block(2, [block(1, [number(1, 1)])])
        return block(1, name) + block(2, [block(1, [number(1, kind), shape])])

    node = block(1, [block(1, "x"), block(1, "x"), block(2, "y"), block(4, "Add")])
    graph = [node, block(2, "sum"), block(11, value("x")), block(12, value("y"))]
    return b"".join([number(1, 8), block(7, graph), block(8, [block(1, ""), number(2, 17)])])
