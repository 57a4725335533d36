"""What a wrong call of ``train``, ``tune`` or ``search`` costs until it is refused, in a fresh process: this tree beside another.

    python benchmarks/refusals.py [--before TREE] [--rounds N] [--all]

The calls are those of tests/unit/test_train_bad_calls.py. CPU seconds are of the whole process (user and system, the median of
the rounds). ``before`` is the edgepeft in ``TREE`` (a checkout of an older version). Bytecode is there, as pip leaves it.
"""

from __future__ import annotations

import argparse
import runpy
import shlex
import statistics
import tempfile
from pathlib import Path

from start import HERE, cpu_seconds


def refused(call: str, folder: Path, tree: Path, bytecode: str) -> float:
    """CPU seconds of one call in ``folder``, refused by the edgepeft in ``tree``; its bytecode is kept in a folder."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from edgepeft.cli import main; main()"
    return cpu_seconds(["-P", "-c", code, *shlex.split(call)], folder, bytecode, code=2, HF_HUB_OFFLINE="1")


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
            refused(calls[0], folder, tree, bytecode)
        runs: dict[tuple[str, str], list[float]] = {(call, tree): [] for call in calls for tree in trees}
        for _ in range(given.rounds):
            for (call, tree), seconds in runs.items():
                seconds.append(refused(call, folder, trees[tree], bytecode))
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
