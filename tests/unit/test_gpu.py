"""What is said where there is no WebGPU plugin, no driver or no GPU, and which variant is chosen for one."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgepeft import doctor
from edgepeft.bench import Host
from edgepeft.bench.history import host_class
from edgepeft.devices.executors.local_webgpu import LocalWebGpuExecutor
from edgepeft.errors import InputError, MissingExtraError
from edgepeft.quantize.recipes import preferred_on_gpu
from edgepeft.runtime.engine import check_device
from edgepeft.runtime.gpu import Placement, webgpu_device
from edgepeft.runtime.gpu_attention import LONG, LongAttention
from edgepeft.runtime.half_slots import half_slots
from edgepeft.targets import load_target
from edgepeft.worker import vulkan


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgepeft\[webgpu\]'"):
        webgpu_device()


def test_a_plugin_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own reason is passed on; on Linux the loader of Vulkan is what lacks most often."""
    stub = SimpleNamespace(get_library_path=lambda: "/no/such/library.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", stub)
    monkeypatch.setattr("edgepeft.runtime.gpu._offered", lambda ort: None)
    monkeypatch.delenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", raising=False)
    with pytest.raises(MissingExtraError, match=r"(?s)cannot load its WebGPU plugin: .*library\.so.*libvulkan1"):
        webgpu_device()

    assert "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER" not in os.environ


def test_an_old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", SimpleNamespace())
    monkeypatch.setattr("onnxruntime.__version__", "1.30.1")
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime 1\.32 or newer, found 1\.30\.1"):
        webgpu_device()


def test_words_for_a_device() -> None:
    assert check_device("webgpu", "auto") == "webgpu"
    with pytest.raises(InputError, match=r"device is one of cpu, webgpu, found 'cuda'"):
        check_device("cuda", "auto")
    with pytest.raises(InputError, match=r"kernels='require' is for device='cpu'"):
        check_device("webgpu", "require")


@pytest.mark.parametrize(
    ("variants", "halves", "expected"),
    [
        (["fp32", "int8", "q4", "q4f16", "fp16"], True, "q4f16"),
        (["fp32", "int8", "q4", "q4f16", "fp16"], False, "q4"),
        (["fp16", "int8", "fp32"], True, "fp16"),
        (["int8", "fp32", "fp16"], False, "fp32"),
        (["int8", "w8a16"], True, "int8"),
    ],
)
def test_which_variant_suits_a_gpu(variants: list[str], halves: bool, expected: str) -> None:
    assert preferred_on_gpu(variants, halves=halves) == expected


def test_the_executor_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepeft.devices.executors.local_webgpu.find_spec", lambda name: None)
    executor = LocalWebGpuExecutor(load_target("linux-x64-webgpu"))
    assert ("onnxruntime-ep-webgpu", "pip install 'edgepeft[webgpu]'") in [
        (each.what, each.remedy) for each in executor.missing()
    ]


def test_without_a_loader_of_vulkan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "_LOADERS", {sys.platform: ("libno-such-vulkan.so.1",)})
    assert vulkan.vulkan_gpus() is None


def test_where_nodes_are_in_words() -> None:
    assert (
        str(Placement(gpu=7, cpu={"Shape": 2, "Concat": 1}))
        == "7 of 10 nodes ran on WebGPU; on the CPU: 2 Shape, 1 Concat"
    )
    assert str(Placement(gpu=3, cpu={})) == "3 of 3 nodes ran on WebGPU"


@pytest.mark.parametrize("field", ["gpu", "kernels"])
def test_histories_that_know_of_no_gpu_and_no_kernels_go_on(field: str) -> None:
    host = Host(cpu="c", cores=2, os="Linux", machine="x86_64", python="3.12", onnxruntime="1.32.0", threads=1)
    assert field not in host_class(host)
    assert f'"{field}":"one"' in host_class(host.model_copy(update={field: "one"})).replace(" ", "")


def test_doctor_where_edgepeft_is_on_the_path_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_metadata(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    for name in ("requires", "version"):
        monkeypatch.setattr(importlib.metadata, name, no_metadata)
    assert doctor._problems({"numpy": "1.0"}) == []


class _Session:
    """A session with a node of attention."""

    def get_provider_graph_assignment_info(self) -> list[Any]:
        node = SimpleNamespace(name="layer/attention", op_type="GroupQueryAttention")
        return [SimpleNamespace(ep_name="WebGpuExecutionProvider", get_nodes=lambda: [node])]


@pytest.mark.parametrize(
    ("off", "half", "right"), [(1e-6, False, True), (8e-3, False, False), (8e-3, True, True), (0.1, True, False)]
)
def test_attention_over_many_tokens_is_tried_once(off: float, half: bool, right: bool) -> None:
    gpu, opened = _Session(), []

    def reopen(settings: Mapping[str, str]) -> _Session:
        opened.append(settings)
        return _Session()

    ran = []

    def run(session: object) -> dict[str, np.ndarray]:
        ran.append(session is gpu)
        return {"logits": np.full((1, 40, 3), 2.0 + (2 * off if session is gpu else 0))}

    attention = LongAttention(reopen, half)
    for tokens in (LONG - 1, LONG, 40):
        found = attention.run(gpu, tokens, run)["logits"]
        assert tokens < LONG or right or (found == 2).all()
    assert attention.right is right
    assert opened == [{"ep.webgpuexecutionprovider.forceCpuNodeNames": "layer/attention"}]
    # Short: the GPU. The first long one: both. The next: whichever is right.
    assert ran == [True, False, True, right]


def _graph_with_casts() -> bytes:
    """``y = half(x) A B``; ``A`` and ``B`` are cast, ``C`` has numbers of its own, and ``D`` is read as it is too."""
    node, value = helper.make_node, helper.make_tensor_value_info
    slots = {"A": [1, 3, 0], "B": [1, 0, 2], "C": [1, 1, 2], "D": [1, 0, 2]}
    nodes = [
        *(node("Cast", [name], [f"{name}/half"], to=TensorProto.FLOAT16) for name in slots),
        node("Cast", ["x"], ["x/half"], to=TensorProto.FLOAT16),
        node("MatMul", ["x/half", "A/half"], ["xA"]),
        node("MatMul", ["xA", "B/half"], ["xAB"]),
        node("Add", ["xAB", "C/half"], ["sum"]),
        node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        node("Shape", ["D"], ["shape"]),
        node("Shape", ["D/half"], ["other"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, ["b", "s", 3])]
    inputs += [value(name, TensorProto.FLOAT, [None, None, None]) for name in slots]
    defaults = [
        helper.make_tensor(name, TensorProto.FLOAT, dims, np.ones(np.prod(dims))) for name, dims in slots.items()
    ]
    outputs = [
        value("y", TensorProto.FLOAT, None),
        value("shape", TensorProto.INT64, [3]),
        value("other", TensorProto.INT64, [3]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, defaults)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_slots_in_halves_without_their_casts() -> None:
    """The same numbers to the last bit, small whole ones: a CPU leaves out Casts to float16 and back, and then rounds nothing."""
    model = _graph_with_casts()
    changed = onnx.load_from_string(half_slots(model, {"A", "B", "C", "D"}))
    kinds = {each.name: each.type.tensor_type.elem_type for each in changed.graph.input}
    half = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    assert half == {"A", "B"}, "numbers of the graph's own stay, and what something else reads"
    assert sorted(node.op_type for node in changed.graph.node) == sorted(
        ["Identity"] * 2 + ["Cast"] * 4 + ["MatMul"] * 2 + ["Add"] + ["Shape"] * 2
    )
    random = np.random.default_rng(3)
    x, a, b = (random.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 5, 3), (1, 3, 4), (1, 4, 2)))
    before = ort.InferenceSession(model).run(["y"], {"x": x, "A": a, "B": b})[0]
    after = ort.InferenceSession(changed.SerializeToString())
    assert np.array_equal(before, after.run(["y"], {"x": x, "A": a.astype(np.float16), "B": b.astype(np.float16)})[0])
    assert np.array_equal(after.run(["y"], {"x": x})[0], np.ones((2, 5, 2), np.float32)), "empty by default"
    assert half_slots(model, {"none"}) == model


def test_bytes_that_are_no_graph() -> None:
    with pytest.raises(IndexError):
        half_slots(b"\xff\xff", {"A"})
