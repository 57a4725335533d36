"""What a long context costs by the type of the key/value cache: megabytes of the process's own, and tokens a second.

    python benchmarks/long_context.py BUNDLE --variant q4 q4_kv8 [--length 128 8192 32000] [--rounds N] [--threads 1]

Each measurement is a process of its own; variants alternate, and the medians over ``--rounds`` are printed. The cache is filled
with random states (reading a prompt of that length would take hours, and a step costs the same whatever they are), then tokens are
generated one by one behind it, in place, as the runtime does. Time is processor seconds of the process, so that others on the
machine count little. ``cache`` is what the buffers take, ``own`` all memory of the process's own while it writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

#: Tokens that are timed.
STEPS = 8


def one(bundle: Path, variant: str, length: int, threads: int) -> dict[str, float]:
    """Measure in this process: milliseconds of a processor for a token, and megabytes."""
    import numpy as np
    import onnxruntime as ort

    from edgepeft import runtime

    model = runtime.open(bundle, variant=variant, threads=threads)
    engine = model.base.engine
    session, signature = engine.session, engine.generator.signature
    if not signature.shared:
        raise SystemExit(f"{variant} does not write into its cache in place")
    rng = np.random.default_rng(0)
    cache = {tensor.past: tensor.zeros(1, length + STEPS + 1) for tensor in signature.cache}
    for array in cache.values():
        for head in array[0]:  # a head at a time, so that floats of all of them are never held
            states = rng.standard_normal((length, array.shape[3]), np.float32)
            head[:length] = states * 20 if array.dtype == np.int8 else states
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in cache.items()}
    for tensor in signature.cache:
        binding.bind_ortvalue_input(tensor.past, held[tensor.past])
        binding.bind_ortvalue_output(tensor.present, held[tensor.past])
    binding.bind_output("logits")
    spent = []
    for step in range(STEPS + 1):
        at = length + step
        fed = {"input_ids": np.array([[5 + step]]), "attention_mask": np.ones((1, at + 1), np.int64)}
        if signature.positions:
            fed["position_ids"] = np.array([[at]])
        if signature.logits_from:
            fed["logits_from"] = np.array([0], np.int64)
        for name, array in fed.items():
            held[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            binding.bind_ortvalue_input(name, held[name])
        began = time.process_time()
        session.run_with_iobinding(binding)
        spent.append(time.process_time() - began)
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in rollup}
    return {
        "ms": 1e3 * statistics.median(spent[1:]),  # the first maps pages
        "cache": sum(array.nbytes for array in cache.values()) / 1e6,
        "own": sizes["Anonymous"],
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", nargs="+", default=["q4", "q4_kv8"])
    parser.add_argument("--length", nargs="+", type=int, default=[128, 8192, 32000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "LENGTH"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.bundle, asked.one[0], int(asked.one[1]), asked.threads)))
        return
    print("variant      tokens    ms of a processor a token   tokens/s   cache MB   own MB")
    for length in asked.length:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in asked.variant}
        for turn in range(asked.rounds):
            for name in asked.variant if turn % 2 == 0 else asked.variant[::-1]:
                line = [
                    sys.executable,
                    __file__,
                    str(asked.bundle),
                    "--threads",
                    str(asked.threads),
                    "--one",
                    name,
                    str(length),
                ]
                done = subprocess.run(line, capture_output=True, text=True, check=False)  # nosec - our own command line
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[name].append(json.loads(done.stdout))
        for name, each in found.items():
            ms, cache, own = (statistics.median(run[key] for run in each) for key in ("ms", "cache", "own"))
            print(f"{name:<12} {length:>6} {ms:>27.1f} {1e3 / ms:>10.1f} {cache:>10.1f} {own:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
