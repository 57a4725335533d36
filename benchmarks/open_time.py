"""How long a bundle takes to open, and what of it is hashing: this tree beside another, interleaved, in fresh processes.

    python benchmarks/open_time.py BUNDLE … [--before TREE] [--processes N]

Each open is one process, whose imports are not counted. ``before`` is the edgepeft in ``TREE`` (a checkout of an older
version), ``always``, ``changed`` and ``never`` are the modes of ``runtime.open(verify=…)`` here. ``changed`` finds every file
in a cache of its own, written by one open beforehand; a bundle written less than two seconds ago is hashed in any case.
Files are in the page cache. Times and memory are medians; ratios are geometric means over rounds of times in one round,
with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

_CHILD = """
import json, sys, time
from pathlib import Path
import onnxruntime
from edgepeft.runtime import open as open_bundle
def resident():
    status = Path("/proc/self/status").read_text()
    return {name: int(status.split(name + ":")[1].split()[0]) / 1000 for name in ("RssAnon", "RssFile")}
before = resident()
started = time.perf_counter()
model = open_bundle(sys.argv[1], threads=1, **({"verify": sys.argv[2]} if sys.argv[2] else {}))
opened = time.perf_counter() - started
after = resident()
names = list(model.adapters)
started = time.perf_counter()
model.use(names[0] if names else None)
first = time.perf_counter() - started
model.use(None)
started = time.perf_counter()
for _ in range(1000):
    model.use(names[0] if names else None)
again = (time.perf_counter() - started) / 1000
held = {name: after[name] - before[name] for name in after}
print(json.dumps({"open_ms": opened * 1e3, "first_use_ms": first * 1e3, "use_us": again * 1e6, **held}))
"""


def measure(tree: Path, bundle: Path, mode: str, cache: Path) -> dict[str, float]:
    """One open in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "EDGEPEFT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, str(bundle.resolve()), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tree)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ratio(mine: list[float], other: list[float]) -> str:
    """Geometric mean of pairwise ratios with its 95 % interval (Student's t)."""
    logs = np.log(np.array(mine) / np.array(other))
    margin = float(stats.t.ppf(0.975, len(logs) - 1)) * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(logs.mean()):.2f}x [{math.exp(logs.mean() - margin):.2f}, {math.exp(logs.mean() + margin):.2f}]"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--before", type=Path, help="A checkout of the version to compare with.")
    parser.add_argument(
        "--processes",
        type=int,
        choices=range(2, 100),
        metavar="N",
        default=9,
        help="Rounds: one process a round and way of opening.",
    )
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    ways = [*([("before", arguments.before.resolve(), "")] if arguments.before else [])]
    ways += [(mode, here, mode) for mode in ("always", "changed", "never")]
    with tempfile.TemporaryDirectory() as scratch:
        for bundle in arguments.bundles:
            size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
            found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in ways}
            measure(here, bundle, "changed", Path(scratch))
            for turn in range(arguments.processes):
                for name, tree, mode in ways if turn % 2 == 0 else reversed(ways):
                    found[name].append(measure(tree, bundle, mode, Path(scratch)))
            print(f"{bundle}: {size / 1e6:.0f} MB, {arguments.processes} rounds")
            first = next(iter(found))
            for name, rounds in found.items():
                middle = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
                opens = [one["open_ms"] for one in rounds]
                against = "" if name == first else ratio(opens, [one["open_ms"] for one in found[first]])
                print(
                    f"  {name:8} open {middle['open_ms']:7.0f} ms  {against:22} first use {middle['first_use_ms']:.2f} ms, "
                    f"use {middle['use_us']:.2f} us, memory +{middle['RssAnon']:.0f} MB anonymous "
                    f"+{middle['RssFile']:.0f} MB of files"
                )


if __name__ == "__main__":
    main()
