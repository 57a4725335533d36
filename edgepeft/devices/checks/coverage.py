"""Which nodes of a bundle's graph a mobile provider would take, by share of nodes and of FLOPs, and why not the others.

From the lists of operators that ONNX Runtime ships (``onnxruntime.tools.mobile_helpers``) and its own estimate of partitions;
QNN is asked itself where the plugin is installed. A list is a promise: caveats that this cannot check are printed with the table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...adapters.bundle_graph import load_graph
from ...bundle import Bundle, read_bundle, rereading
from ...errors import InputError
from ...report.gate import Report, Table
from ...runtime.active import read_tensors
from ...scratch import scratch_folder
from ...targets import Shape, parse_shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

#: XNNPACK's operators, for which ONNX Runtime ships no list: from its provider documentation, November 2026.
_XNNPACK = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool", "Softmax", "Resize", "Gemm", "MatMul"})
#: Highest rank of a tensor that a provider takes, as onnxruntime's usability checker sets it.
_MAX_RANK = {"NNAPI": 4, "CoreML": 5}
_LISTS = {"NNAPI": "nnapi_supported_ops.md", "CoreML": "coreml_supported_mlprogram_ops.md"}


@dataclass
class _Facts:
    """What a rule may ask of a graph: shapes by value name, and which values are constants."""

    shapes: dict[str, tuple[int, ...] | None]
    constants: set[str]


@dataclass
class Coverage:
    """One provider and graph. ``rejected`` is (operator, reason) → nodes."""

    graph: str
    provider: str
    nodes: int
    taken: int
    flops_share: float | None
    partitions: int | None
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    caveats: tuple[str, ...] = ()


#: A node's reason to be rejected, ``None`` where it is taken.
Rule = Callable[["NodeProto", _Facts], str | None]


def _name(node: NodeProto) -> str:
    return f"{node.domain or 'ai.onnx'}:{node.op_type}"


def _listed(provider: str) -> tuple[Rule, dict[str, str]]:
    """The rule of a shipped list of operators, and its caveats by operator."""
    from onnxruntime.tools import mobile_helpers

    path = Path(mobile_helpers.__file__).parent / _LISTS[provider]
    caveats = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.strip().split("|")
        if len(cells) == 4 and ":" in cells[1]:
            caveats[cells[1].strip()] = cells[2].replace("<br/>", " ").strip()
    limit = _MAX_RANK[provider]

    def rule(node: NodeProto, facts: _Facts) -> str | None:
        if _name(node) not in caveats:
            return "operator not supported"
        shapes = [facts.shapes.get(name) for name in node.input if name]
        if any(shape is None for shape in shapes):
            return "dynamic shape"
        if any(shape is not None and len(shape) > limit for shape in shapes):
            return f"more than {limit} dimensions"
        said = caveats[_name(node)]
        needs_constant = node.op_type == "Gemm" and "must be constant" in said
        if needs_constant and node.input[1] not in facts.constants:
            return "weight is not constant"
        if node.op_type == "Gather" and "constant if not int32" in said and node.input[1] not in facts.constants:
            return "indices are int64 and not constant"
        return None

    return rule, caveats


def _xnnpack(node: NodeProto, facts: _Facts) -> str | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _XNNPACK:
        return "operator not supported"
    if node.op_type in {"MatMul", "Gemm"}:
        left, right = (facts.shapes.get(name) for name in node.input[:2])
        if node.input[1] not in facts.constants:
            return "weight is not constant"
        if left is None or right is None or len(left) != 2 or len(right) != 2:
            return "not 2-D"
    return None


def flops(node: NodeProto, facts: _Facts) -> int:
    """Multiplications and additions of a node: exact for MatMul and Gemm, one for each output element elsewhere."""
    out = facts.shapes.get(node.output[0])
    if out is None:
        return 0
    size = math.prod(out)
    if node.op_type in {"MatMul", "Gemm"}:
        left = facts.shapes.get(node.input[0])
        return 2 * size * (left[-1] if left else 1)
    return size


def _sized(model: ModelProto, facts: _Facts) -> bool:
    """Whether every shape is known; else shares of FLOPs would be of those that happen to be."""
    return all(facts.shapes.get(node.output[0]) is not None for node in model.graph.node)


def _facts(model: ModelProto) -> _Facts:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        fixed = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        shapes[value.name] = tuple(dim.dim_value for dim in dims) if fixed else None
    inputs = {value.name for value in model.graph.input}
    constants = set()
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        if tensor.name not in inputs:
            constants.add(tensor.name)
    return _Facts(shapes=shapes, constants=constants)


def cover(model: ModelProto, graph: str, provider: str, rule: Rule, caveats: dict[str, str]) -> Coverage:
    """``rule`` over every node of an ONNX model, with ONNX Runtime's estimate of how many partitions that makes."""
    from onnxruntime.tools.mobile_helpers.usability_checker import check_partitioning

    facts = _facts(model)
    judged = [(node, rule(node, facts)) for node in model.graph.node]

    class Checker:
        def is_op_supported(self, node: NodeProto) -> bool:
            return rule(node, facts) is None

        def get_caveats(self) -> list[str]:
            return []

    info = check_partitioning(model.graph, Checker(), require_fixed_input_sizes=False)
    rejected = Counter((node.op_type, why) for node, why in judged if why is not None)
    total = sum(flops(node, facts) for node, _ in judged)
    taken = [node for node, why in judged if why is None]
    seen = {_name(node) for node in taken}
    return Coverage(
        graph=graph,
        provider=provider,
        nodes=len(model.graph.node),
        taken=len(taken),
        flops_share=sum(flops(node, facts) for node in taken) / total if total and _sized(model, facts) else None,
        partitions=info.num_partitions,
        rejected=rejected,
        caveats=tuple(f"{op}: {said}" for op, said in sorted(caveats.items()) if said and op in seen),
    )


def taken_as_shipped(bundle: Bundle, variant: str, provider: str) -> Coverage | None:
    """What a provider would take of a variant's graph as it is, by ONNX Runtime's list; ``None`` where that ships none.

    Args:
        bundle: A bundle with ONNX graphs.
        variant: The variant.
        provider: As ONNX Runtime calls it, ``CoreMLExecutionProvider``.
    """
    import onnx

    listed = next((name for name in _LISTS if name.lower() == provider.removesuffix("ExecutionProvider").lower()), None)
    if listed is None:
        return None
    with bundle.open(bundle.manifest.variants[variant].file) as opened:
        model = onnx.load(opened.load_path, format="protobuf", load_external_data=False)
    return cover(model, "as shipped", listed, *_listed(listed))


def _graphs(bundle: Bundle, variant: str, adapter: str | None, shape: Shape, folder: Path) -> dict[str, Path]:
    """The graph as it ships, with fixed shapes and slots as inputs, and with fixed shapes and constant slots."""
    import onnx_ir as ir

    from ...graph.passes.freeze import freeze, freeze_inputs, slot_shapes

    slotted = load_graph(bundle, bundle.manifest.variants[variant].file)
    table = bundle.manifest.slots
    tensors = {name: read_tensors(bundle, name, entry) for name, entry in bundle.manifest.slot_adapters.items()}
    chosen = tensors.get(adapter or "", next(iter(tensors.values()), dict[str, np.ndarray]()))
    size = {"batch": shape.batch, "sequence": shape.sequence}
    made = {
        "as shipped": slotted,
        f"{shape}, slots as inputs": freeze_inputs(slotted, table, slot_shapes(tensors.values()), **size),
        f"{shape}, constant slots": freeze(slotted, table, chosen, **size),
    }
    paths = {}
    for number, (name, graph) in enumerate(made.items()):
        paths[name] = folder / f"{number}.onnx"
        ir.save(graph, paths[name], external_data=f"{number}.onnx_data")
    return paths


@rereading
def coverage_report(
    bundle: str | Path, *, variant: str | None = None, adapter: str | None = None, shape: str = "1x32"
) -> Report:
    """Coverage of a bundle's graph by NNAPI, CoreML and XNNPACK, and by QNN where its plugin is installed.

    Raises :class:`InputError` for a merged or ORT-format bundle and :class:`UnknownAdapterError` for an unknown adapter.
    """
    import onnx

    opened = read_bundle(bundle)
    name, entry = opened.variant(variant)
    opened = opened.on(name)
    if opened.manifest.mode != "swap" or entry.file.endswith(".ort"):
        raise InputError(f"{opened.path}: coverage looks at the ONNX graph of a bundle with slots")
    if adapter is not None:
        opened.slot_adapter(adapter)
    opened.verify((*opened.variant_files(name), *(a.onnx_adapter for a in opened.manifest.adapters.values())))
    found: list[Coverage] = []
    with scratch_folder("coverage") as scratch:
        for graph, path in _graphs(opened, name, adapter, parse_shape(shape), Path(scratch)).items():
            model = onnx.load(path, load_external_data=False)
            for provider in _LISTS:
                found.append(cover(model, graph, provider, *_listed(provider)))
            found.append(cover(model, graph, "XNNPACK", _xnnpack, {}))
            if graph != "as shipped" and (asked := _ask_qnn(model, graph, path)) is not None:
                found.append(asked)
    return _report(opened, name, found)


def _ask_qnn(model: ModelProto, graph: str, path: Path) -> Coverage | None:
    """What the QNN provider itself takes; ``None`` without the plugin."""
    from ..executors.qnn import assigned_nodes

    taken = assigned_nodes(path)
    if taken is None:
        return None
    facts = _facts(model)
    total = sum(flops(node, facts) for node in model.graph.node)
    left = [node for node in model.graph.node if node.name not in taken]
    return Coverage(
        graph=graph,
        provider="QNN (HTP)",
        nodes=len(model.graph.node),
        taken=len(model.graph.node) - len(left),
        flops_share=1 - sum(flops(node, facts) for node in left) / total if total else None,
        partitions=None,
        rejected=Counter((node.op_type, "left by the provider") for node in left),
    )


def _report(bundle: Bundle, variant: str, found: Sequence[Coverage]) -> Report:
    rows = tuple((c.graph, c.provider, c.nodes, c.taken, c.taken / c.nodes, c.flops_share, c.partitions) for c in found)
    left = tuple((c.graph, c.provider, nodes, op, why) for c in found for (op, why), nodes in c.rejected.most_common())
    caveats = dict.fromkeys(f"{c.provider} {said}" for c in found for said in c.caveats)
    return Report(
        kind="coverage",
        title=f"Provider coverage of {bundle.path}, {variant}",
        tables=(
            Table("What is left to the CPU, and why", ("graph", "provider", "nodes", "operator", "reason"), left),
            Table(
                "What each provider would take",
                ("graph", "provider", "nodes", "taken", "share", "share of FLOPs", "partitions"),
                rows,
            ),
        ),
        notes=(
            "NNAPI, CoreML, XNNPACK: by operator lists, not executed; what they leave runs on the CPU without a word",
            *(f"not checked: {said}" for said in caveats),
        ),
        data={
            "coverage": [
                {"graph": c.graph, "provider": c.provider, "nodes": c.nodes, "taken": c.taken, "flops_share": c.flops_share,
                 "partitions": c.partitions, "rejected": [[op, why, n] for (op, why), n in c.rejected.items()]}
                for c in found
            ]
        },
    )  # fmt: skip
