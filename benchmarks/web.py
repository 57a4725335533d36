"""A language model's bundle in ONNX Runtime Web against the same bundle natively: tokens, tokens/s, swaps.

    python benchmarks/web.py BUNDLE --variant q4 [--on web|node] [--tokens 32] [--prompt TEXT]

The browser has no kernels that multiply 4-bit weights with 8-bit activations (``accuracy_level`` 4 of MatMulNBits): it
computes with fp32 activations. So the tokens are compared with a native run of the variant as it is, and with one whose
``accuracy_level`` is 0; equal tokens are asked of the latter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from edgepeft.bench import Job, Prompts, WorkerResult, run_worker
from edgepeft.bundle import Bundle, dump_manifest, hash_file, read_bundle
from edgepeft.devices import executor_for
from edgepeft.targets import load_target

PROMPTS = ("What is the capital of France?", "My laptop does not start. What should I do?")


def full_precision(bundle: Bundle, variant: str, folder: Path) -> Path:
    """A copy of the bundle whose variant multiplies with fp32 activations."""
    import onnx

    copy = Path(shutil.copytree(bundle.path, folder / "bundle", ignore=shutil.ignore_patterns("report", "*_data")))
    for path in bundle.path.glob("onnx/*_data"):
        (copy / "onnx" / path.name).symlink_to(path.resolve())
    entry = bundle.manifest.variants[variant]
    model = onnx.load(copy / entry.file, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, copy / entry.file)
    for name in entry.data:  # a link that leaves the bundle would be refused
        (copy / name).unlink()
        shutil.copyfile(bundle.path / name, copy / name)
    files = {**bundle.manifest.files, entry.file: hash_file(copy / entry.file)}
    (copy / "edgepeft.json").write_text(dump_manifest(bundle.manifest.model_copy(update={"files": files})))
    return copy


def same(one: WorkerResult, other: WorkerResult) -> list[tuple[int, int]]:
    """For each prompt of each adapter: tokens that agree from the start, and how many there are."""
    pairs = []
    for a, b in zip(one.generated, other.generated, strict=True):
        for x, y in zip(a.tokens, b.tokens, strict=True):
            agree = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            pairs.append((agree, max(len(x), len(y))))
    return pairs


def main() -> int:
    """Run, compare, print; 1 where tokens differ from the full-precision native run or the base does not come back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--on", default="web", choices=["web", "node"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--adapter", action="append", help="only these adapters; may be repeated")
    parser.add_argument("--prompt", action="append")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    names = [None, *(arguments.adapter or bundle.manifest.adapters)]
    prompts = tuple(
        Prompts(adapter=name, texts=tuple(arguments.prompt or PROMPTS), max_new_tokens=arguments.tokens)
        for name in names
    )
    job = Job(bundle=str(bundle.path), variant=arguments.variant, threads=1, prompts=prompts)
    executor = executor_for(load_target("web-wasm"), arguments.on)
    assert executor is not None
    web = executor.run(job.model_copy(update={"swaps": 60, "restore": True}))
    native = run_worker(job)
    with tempfile.TemporaryDirectory() as folder:
        full = run_worker(
            job.model_copy(update={"bundle": str(full_precision(bundle, arguments.variant, Path(folder)))})
        )
    rows = [(g.adapter, i) for g in web.generated for i in range(len(g.tokens))]
    as_shipped, as_computed = same(web, native), same(web, full)
    for (adapter, i), shipped, computed in zip(rows, as_shipped, as_computed, strict=True):
        print(f"{adapter or '(base)'}, prompt {i + 1}: {computed[0]}/{computed[1]} tokens as natively with fp32 activations, "
              f"{shipped[0]}/{shipped[1]} as natively with the variant's own")  # fmt: skip
    speed = [s for g in web.generated for s in g.tokens_per_s if s is not None]
    here = [s for g in native.generated for s in g.tokens_per_s if s is not None]
    prefill = [ms for g in web.generated for ms in g.prefill_ms]
    swap = web.swap
    assert swap is not None
    result = {
        "engine": web.host.python, "onnxruntime_web": web.host.onnxruntime, "cpu": web.host.cpu, "load_ms": web.load_ms,
        "peak_rss_mb": web.peak_rss_mb, "tokens_per_s": statistics.median(speed), "native_tokens_per_s": statistics.median(here),
        "prefill_ms": statistics.median(prefill), "swap_first_ms": swap.cold_ms, "swap_again_ms": statistics.median(swap.use_ms),
        "swap_again_max_ms": max(swap.use_ms), "base_and_adapters_restored": web.base_restored,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    equal = all(agree == count for agree, count in as_computed)
    return 0 if equal and web.base_restored else 1


if __name__ == "__main__":
    sys.exit(main())
