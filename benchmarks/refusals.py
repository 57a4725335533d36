"""What a wrong call of ``train``, ``tune`` or ``search`` costs until it is refused, in a fresh process: this tree beside another.

    python benchmarks/refusals.py [--before TREE] [--rounds N] [--all]

The calls are those of tests/unit/test_train_bad_calls.py. CPU seconds are of the whole process (user and system, the median of
the rounds). ``before`` is the edgepeft in ``TREE`` (a checkout of an older version). Bytecode is there, as pip leaves it.
"""

from __future__ import annotations

import argparse
import os
import resource
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def cpu_seconds(call: str, folder: Path, tree: Path, bytecode: str) -> float:
    """CPU seconds of one call in ``folder``, refused by the edgepeft in ``tree``; its bytecode is kept in a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from edgepeft.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *shlex.split(call)],
        cwd=folder,
        env=environment,
        capture_output=True,
    )
    if done.returncode != 2:
        raise SystemExit(f"edgepeft {call}: exit code {done.returncode}, expected 2\n{done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an older version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="print each call too")
    given = parser.parse_args()
    trees = {"here": HERE, **({"before": given.before.resolve()} if given.before else {})}
    tests = runpy.run_path(str(HERE / "tests/unit/test_train_bad_calls.py"))
    calls = list(tests["CALLS"])
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as bytecode:
        folder = Path(name)
        tests["write_files"](folder)
        for tree in trees.values():  # compiles
            cpu_seconds(calls[0], folder, tree, bytecode)
        runs: dict[tuple[str, str], list[float]] = {(call, tree): [] for call in calls for tree in trees}
        for _ in range(given.rounds):
            for (call, tree), seconds in runs.items():
                seconds.append(cpu_seconds(call, folder, trees[tree], bytecode))
    medians = {key: statistics.median(values) for key, values in runs.items()}
    if given.all:
        for call in calls:
            print(*(f"{medians[call, tree]:6.2f}" for tree in trees), call)
    print(f"{'command':10}{'tree':8}{'calls':>6}{'least':>7}{'median':>8}{'most':>7}  CPU s")
    for command in ("train", "tune", "search"):
        for tree in trees:
            values = [value for (call, of), value in medians.items() if of == tree and call.split()[0] == command]
            print(
                f"{command:10}{tree:8}{len(values):6}{min(values):7.2f}{statistics.median(values):8.2f}{max(values):7.2f}"
            )


if __name__ == "__main__":
    main()
