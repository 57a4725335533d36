"""What can be said of a bundle for a target without running it: sizes, opset, operators, slot style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

from ...bundle import Bundle
from ...report.gate import Gate, Report, Table
from ...targets import Target
from ...units import MB
from ..place import deployed_mb, refused_shapes

#: How the gate begins that says whether something executed the bundle; a target that is static by choice is not held to it.
EXECUTED = "executed on "


def size_gates(bundle: Bundle, target: Target, variants: Sequence[str]) -> tuple[Gate, ...]:
    """What one device gets for each variant, and each adapter's file, against the target's budgets."""
    gates = []
    budgets = target.budgets
    if (limit := budgets.bundle_mb) is not None:
        for variant in variants:
            size = deployed_mb(bundle.manifest, variant)
            gates.append(Gate.at_most(f"bundle size {variant}", size, limit, "MB"))
    if (limit := budgets.adapter_mb) is not None:
        for name, entry in bundle.manifest.adapters.items():
            size = bundle.manifest.files[entry.onnx_adapter].bytes / MB
            gates.append(Gate.at_most(f"adapter size {name}", size, limit, "MB"))
    return tuple(gates)


def graph_gates(bundle: Bundle, target: Target, variants: Sequence[str]) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
    """Opset, operators and slot style of each variant's graph against ``[graph]``; and notes on what could not be seen."""
    gates: list[Gate] = []
    notes: list[str] = []
    if why := refused_shapes(bundle.manifest, target):
        notes.append(why)
    for name in variants:
        variant = bundle.manifest.variants[name]
        fits = variant.slots in (target.slots, "none") or (target.slots == "input" and variant.input_file is not None)
        if not fits and bundle.manifest.adapters:
            detail = f"the variant's slots are {variant.slots!r}; "
            detail += (
                f"write them as inputs with: edgepeft web prepare {bundle.path}"
                if target.slots == "input"
                else f"make the bundle with: edgepeft export --target {target.name}"
            )
            gates.append(Gate.holds(f"slots {name} as {target.slots!r}", False, detail))
        if variant.file.endswith(".ort"):
            notes.append(f"{variant.file} is in ORT format: its operators were checked when it was converted")
            continue
        if find_spec("onnx") is None:
            notes.append("the graph was not looked at: pip install 'edgepeft[tools]'")
            continue
        opset, ops = variant_facts(bundle, name)
        gates.append(Gate.at_most(f"opset {name}", opset, target.graph.opset, "opset"))
        if target.graph.forbidden_ops:
            bad = {op: ops[op] for op in target.graph.forbidden_ops if op in ops}
            detail = ", ".join(f"{count} {op}" for op, count in bad.items())
            gates.append(Gate.at_most(f"operators {name}", float(sum(bad.values())), 0.0, "nodes", detail))
    return tuple(gates), tuple(dict.fromkeys(notes))


def shape_gates(bundle: Bundle, target: Target, variants: Sequence[str]) -> tuple[Gate, ...]:
    """Whether graphs have the fixed shapes that ``[graph] shapes = "static"`` demands, for targets that nothing executes.

    A provider leaves most nodes of a graph with other shapes to the CPU: how many it would take is said, where ONNX Runtime
    ships a list of its operators. What freezing gives is another graph, so nothing is decided.
    """
    inputs = bundle.manifest.inputs
    if refused_shapes(bundle.manifest, target):
        return ()  # said already, and freezing does not help a bundle that writes texts
    if target.graph.shapes != "static" or all(isinstance(size, int) for value in inputs for size in value.shape):
        return ()
    gates = []
    for name in variants:
        detail = (
            f"{target.name} takes fixed shapes ({', '.join(target.graph.buckets)}), and the graph's are not: "
            f"{_taken(bundle, name, target)}write graphs for it with: edgepeft targets freeze {bundle.path}"
        )
        gates.append(Gate.undecided(f"fixed shapes {name}", detail))
    return tuple(gates)


def _taken(bundle: Bundle, name: str, target: Target) -> str:
    from .coverage import taken_as_shipped

    variant = bundle.manifest.variants[name]
    if find_spec("onnx") is None or variant.file.endswith(".ort"):
        return ""
    found = taken_as_shipped(bundle, name, target.runtime.providers[0])
    if found is None:
        return ""
    return f"as shipped {found.provider} takes {found.taken} of {found.nodes} nodes, in {found.partitions} partitions; "


def variant_facts(bundle: Bundle, variant: str) -> tuple[int, dict[str, int]]:
    """The highest opset of a variant's graphs, and how often each operator occurs in them.

    Both halves of an encoder-decoder count. The graphs are ONNX files: one in ORT format has no opset to read.
    """
    entry = bundle.manifest.variants[variant]
    opset, ops = 0, Counter[str]()
    for file in filter(None, (entry.file, entry.decoder_file)):
        own, counts = _graph_facts(bundle, file)
        opset = max(opset, own)
        ops.update(counts)
    return opset, dict(ops)


def _graph_facts(bundle: Bundle, file: str) -> tuple[int, dict[str, int]]:
    """Opset of the default domain, and how often each operator occurs (``Op`` or ``domain.Op``), weights left unread."""
    import onnx

    with bundle.open(file) as opened:
        model = onnx.load(opened.load_path, format="protobuf", load_external_data=False)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    ops: dict[str, int] = {}
    for node in model.graph.node:
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        ops[name] = ops.get(name, 0) + 1
    return opset, ops


def static_report(bundle: Bundle, target: Target, variants: Sequence[str], why: str, kind: str = "static") -> Report:
    """The static checks as a report that says, as an inconclusive gate, that nothing was executed."""
    gates, notes = graph_gates(bundle, target, variants)
    gates = (*gates, *shape_gates(bundle, target, variants))
    executed = Gate.undecided(f"{EXECUTED}{target.name}", f"static only, nothing was executed: {why}")
    if target.note:
        notes = (*notes, f"{target.name}: {target.note}")
    return Report(
        kind=kind,
        title=f"Static checks of {bundle.path} for {target.name}",
        gates=(*size_gates(bundle, target, variants), *gates, executed),
        tables=(
            Table(
                "What a device gets",
                ("variant", "MB"),
                tuple((name, deployed_mb(bundle.manifest, name)) for name in variants),
            ),
        ),
        notes=notes,
        data={"target": target.name, "executed": False, "why": why, "variants": list(variants)},
    )
