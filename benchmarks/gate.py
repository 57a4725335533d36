"""Does the gate hold its word? ``check`` of a bundle against itself, many times, and against a slower copy.

Prints one line a check and a summary: against itself ``fail`` must never come up, against the copy that does twice
the layers' work it must. Needs the ``export`` extra (onnx_ir) to make the copy.

    python benchmarks/gate.py BUNDLE [--times 20] [--variant fp32] [--shape 1x32] [--adapter NAME]
    python benchmarks/gate.py BUNDLE --times 100 --budget-s 20 --only-itself     # many short checks
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepeft import runtime
from edgepeft.bench import CheckResult, check
from edgepeft.bundle import MANIFEST_NAME, dump_manifest, hash_file, read_bundle
from edgepeft.report.gate import Verdict
from edgepeft.targets import Shape, Target, load_target
from edgepeft.worker.inference import make_inputs

#: The layers' work. Each of these takes an activation first and gives one first.
HEAVY = {"MatMul", "Gemm", "FusedMatMul", "Attention", "MultiHeadAttention", "DynamicQuantizeMatMul", "MatMulNBits"}


def slower_copy(bundle: Path, folder: Path, variant: str) -> tuple[Path, int]:
    """A copy of ``bundle`` whose ``variant`` computes every heavy node twice and averages; and how many nodes.

    The second computation reads ``(2 x) / 2``, which is ``x`` exactly in binary floating point but not the same value
    to ONNX Runtime, so it is not shared with the first. Averaging two equal numbers gives that number: outputs stay
    bit for bit equal.
    """
    shutil.copytree(bundle, folder)
    copied = read_bundle(folder)
    file = copied.manifest.variants[variant].file
    model = ir.load(folder / file)
    graph = model.graph
    for name, number in (("gate_two", 2.0), ("gate_half", 0.5)):
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.float32(number), name=name)))
    two, half = graph.initializers["gate_two"], graph.initializers["gate_half"]
    heavy = [node for node in graph if node.op_type in HEAVY and node.inputs[0] is not None]
    for number, node in enumerate(heavy):
        users = list(node.outputs[0].uses())  # before the copy's own nodes become users too
        double = ir.node("Mul", [node.inputs[0], two], name=f"gate_{number}_double")
        again = ir.node("Mul", [double.outputs[0], half], name=f"gate_{number}_again")
        inputs = [again.outputs[0], *node.inputs[1:]]
        second = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs),
            name=f"gate_{number}_second",
        )  # fmt: skip
        total = ir.node("Add", [node.outputs[0], second.outputs[0]], name=f"gate_{number}_sum")
        mean = ir.node("Mul", [total.outputs[0], half], name=f"gate_{number}_mean")
        old, new = node.outputs[0], mean.outputs[0]
        graph.insert_after(node, [double, again, second, total, mean])
        for user, index in users:
            user.replace_input_with(index, new)
        if old in graph.outputs:
            new.name, old.name = old.name, f"gate_{number}_first"
            new.type, new.shape = old.type, old.shape
            graph.outputs[graph.outputs.index(old)] = new
    ir.save(model, folder / f"{file}.new")
    (folder / f"{file}.new").replace(folder / file)
    files = {**copied.manifest.files, file: hash_file(folder / file)}
    manifest = copied.manifest.model_copy(update={"files": files})
    (folder / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
    return folder, len(heavy)


def same_outputs(one: Path, other: Path, variant: str, adapter: str | None) -> bool:
    """Whether both bundles give the same numbers, bit for bit."""
    outputs = []
    for path in (one, other):
        model = runtime.open(path, variant=variant, threads=1).use(adapter)
        outputs.append(model.forward(make_inputs(model, Shape(2, 16), seed=0, vocabulary=1000)))
    return all(np.array_equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


def bound(ratio: float | None) -> str:
    """A bound on a ratio; a question mark where there were too few rounds for one."""
    return "?" if ratio is None else f"{ratio:.3f}"


def line(what: str, result: CheckResult) -> str:
    """One check on one line: the verdict on latency and each case's ratio with its interval."""
    cases = ", ".join(
        f"{c.adapter or '(base)'} {c.shape} {c.ratio:.3f} [{bound(c.lower)}, {bound(c.upper)}] x{c.replicates} {c.verdict}"
        for c in result.cases
    )
    return f"{what}: {result.verdict} in {result.seconds:.0f} s: {cases}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="linux-x64-cpu")
    parser.add_argument("--times", type=int, default=20, help="checks against itself")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--shape", action="append", help="<batch>x<sequence>, repeatable (default 1x32)")
    parser.add_argument("--adapter", action="append", help="repeatable (default: the first adapter, else the base)")
    parser.add_argument(
        "--budget-s", type=float, help="seconds for each check (default: the target's rounds and seconds)"
    )
    parser.add_argument("--only-itself", action="store_true", help="leave the slower copy out")
    options = parser.parse_args()
    bundle: Path = options.bundle
    adapters = options.adapter or [next(iter(read_bundle(bundle).manifest.adapters), None)]
    # Budgets are another gate: here only the comparison is on trial.
    target = Target.model_validate({**load_target(options.target).model_dump(), "budgets": {}})
    if options.budget_s is not None:
        target = target.model_copy(update={"check": target.check.for_seconds(options.budget_s)})
    ask = {"adapters": adapters, "variants": [options.variant], "shapes": options.shape or ["1x32"]}
    verdicts: Counter[Verdict] = Counter()
    for number in range(options.times):
        result = check(bundle, bundle, target, **ask)
        verdicts[result.verdict] += 1
        print(line(f"itself {number + 1:2}", result), flush=True)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict)
    print(f"against itself, {options.times} times: {counts} (must be 0 fail)")
    if options.only_itself:
        return 1 if verdicts[Verdict.FAIL] else 0
    with tempfile.TemporaryDirectory() as folder:
        slow, nodes = slower_copy(bundle, Path(folder) / "slow", options.variant)
        equal = same_outputs(bundle, slow, options.variant, adapters[0])
        print(f"slower copy: {nodes} nodes computed twice, outputs {'equal bit for bit' if equal else 'DIFFER'}")
        slower = check(slow, bundle, target, **ask)
        print(line("slower copy", slower), flush=True)
    print(f"against the slower copy: {slower.verdict} (must be fail)")
    good = not verdicts[Verdict.FAIL] and slower.verdict is Verdict.FAIL and nodes > 0 and equal
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
