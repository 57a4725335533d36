"""What the command line costs before it does anything: this tree beside another, interleaved, in fresh processes.

    python benchmarks/start.py [--before TREE] [--rounds N]

CPU seconds are of the whole process (user and system, medians), so that work beside it on the machine does not count. Each
is also given as a multiple of Python alone (``python -c pass``) and of ``import click, cloup``, which parse the command
line and which no command can do without. ``before`` is the edgepeft in ``TREE`` (a checkout of an older version). Bytecode is
there, as pip leaves it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
FLOORS = {"python -c pass": ["-c", "pass"], "import click, cloup": ["-c", "import click, cloup"]}
CALLS = {
    "import edgepeft": ["-c", "import edgepeft"],
    "edgepeft --version": ["-m", "edgepeft", "--version"],
    "edgepeft --help": ["-m", "edgepeft", "--help"],
    "edgepeft train --help": ["-m", "edgepeft", "train", "--help"],
}


def cpu_seconds(arguments: list[str], folder: Path, bytecode: str, *, code: int = 0, **environment: str) -> float:
    """CPU seconds of one process of this Python in ``folder``, which ends with ``code``; its bytecode is kept in another one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": "", **environment},
        cwd=folder,
        capture_output=True,
    )
    if done.returncode != code:
        raise SystemExit(f"{arguments}: exit code {done.returncode}, expected {code}\n{done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an older version")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(given.before, given.rounds, folder)


def measure(before: Path | None, rounds: int, bytecode: str) -> None:
    """Print the table."""
    runs: dict[tuple[str, str], tuple[list[str], Path]] = {
        **{(name, ""): (arguments, HERE) for name, arguments in FLOORS.items()},
        **{(name, "here"): (arguments, HERE) for name, arguments in CALLS.items()},
    }
    if before is not None:
        runs |= {(name, "before"): (arguments, before.resolve()) for name, arguments in CALLS.items()}
    for arguments, tree in runs.values():  # compiles, and reads files once
        cpu_seconds(arguments, tree, bytecode, PYTHONPATH=str(tree))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, (arguments, tree) in runs.items():
            seconds[key].append(cpu_seconds(arguments, tree, bytecode, PYTHONPATH=str(tree)))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    python, parsers = (medians[name, ""] for name in FLOORS)
    print(f"{'call':24}{'tree':8}{'CPU s':>8}{'x python':>10}{'x click, cloup':>16}")
    for (name, tree), value in sorted(medians.items(), key=lambda each: [*FLOORS, *CALLS].index(each[0][0])):
        print(f"{name:24}{tree:8}{value:8.3f}{value / python:10.1f}{value / parsers:16.2f}")


if __name__ == "__main__":
    main()
