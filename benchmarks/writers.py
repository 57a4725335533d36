"""Writers and readers of one bundle at once: is anything lost, does any open fail, does a kill leave anything broken?

    python benchmarks/writers.py BUNDLE --rounds 200
    python benchmarks/writers.py BUNDLE --kills 60

A round starts two ``add``, a ``quantize --replace`` and a ``remove`` of what the round before added, all at once and each in
a process of its own, while other processes open the bundle all the time. After it the bundle must hold exactly what the
round asked for, and every file must have its hash. ``--kills`` starts an ``add`` and a ``quantize --replace`` instead, ends
one of them with SIGKILL at a random moment, and the other one must come through. BUNDLE is copied first; it needs an fp32
variant and an adapter. Prints JSON with the counts; exit code 1 where one is not what it must be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Imported before the processes are forked: a round then takes no time to start. No session is made in this process.
from edgepeft import runtime
from edgepeft.bundle import read_bundle, rereading
from edgepeft.pipeline import add, quantize, remove

CONTEXT = multiprocessing.get_context("fork")
VARIANT = "int8"


def _child(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send(("", work(*arguments)))
    except Exception as error:  # whatever it is, it is what is being counted
        connection.send((f"{type(error).__name__}: {error}", None))


class Task:
    """A function in a process of its own."""

    def __init__(self, name: str, work: Callable[..., Any], *arguments: Any) -> None:
        self.name = name
        self._receive, send = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_child, args=(send, work, arguments))
        self.process.start()
        send.close()

    def result(self, seconds: float = 300) -> tuple[str, Any]:
        """What went wrong (empty: nothing), and what the function returned."""
        try:
            if not self._receive.poll(seconds):
                self.process.kill()
                return f"{self.name}: nothing after {seconds:g} s", None
            error, value = self._receive.recv()
            return (f"{self.name}: {error}" if error else ""), value
        except EOFError:
            self.process.join()
            return f"{self.name}: ended with {self.process.exitcode}", None
        finally:
            self.process.join()


def put(bundle: Path, name: str, source: Path, pause: float = 0.0) -> None:
    time.sleep(pause)
    add(bundle, name, source)


def take(bundle: Path, names: list[str]) -> None:
    for name in names:
        remove(bundle, name)


def make(bundle: Path, pause: float = 0.0) -> None:
    time.sleep(pause)
    quantize(bundle, VARIANT, replace=True)


@rereading
def whole(bundle: Path) -> set[str]:
    opened = read_bundle(bundle)
    opened.verify()
    return set(opened.manifest.adapters)


def read(bundle: Path, adapter: str, stop: Any) -> tuple[int, list[str]]:
    """Open the bundle and run a text until told to stop; how often, and what failed."""
    opens, failed = 0, []
    while not stop.is_set():
        try:
            model = runtime.open(bundle, variant=VARIANT if opens % 2 else "fp32", threads=1)
            model.use(adapter).run(["a good film"])
            whole(bundle)
        except Exception as error:  # it is what is being counted
            where = traceback.extract_tb(error.__traceback__)
            failed.append(f"{type(error).__name__}: {error} (in {', '.join(f'{s.name}:{s.lineno}' for s in where)})")
        opens += 1
    return opens, failed


def stress(bundle: Path, sources: list[Path], rounds: int, readers: int) -> dict[str, Any]:
    """``rounds`` of two adds, a quantize and a remove at once."""
    first = sorted(read_bundle(bundle).manifest.adapters)
    stop = CONTEXT.Event()
    reading = [Task("open", read, bundle, first[0], stop) for _ in range(readers)]
    problems: list[str] = []
    lost = 0
    before: list[str] = []
    start = time.monotonic()
    for number in range(rounds):
        names = [f"one-{number}", f"two-{number}"]
        tasks = [Task(f"add {name}", put, bundle, name, source) for name, source in zip(names, sources, strict=True)]
        tasks += [Task("quantize", make, bundle), Task("remove", take, bundle, before)]
        problems += [f"round {number}, {error}" for task in tasks if (error := task.result()[0])]
        error, found = Task("verify", whole, bundle).result()
        if error:
            problems.append(f"round {number}, {error}")
        elif odd := {*first, *names} ^ found:
            lost += len({*first, *names} - found)
            problems.append(f"round {number}: differs in {sorted(odd)}")
        before = sorted(found - {*first}) if found else []
    seconds = time.monotonic() - start
    stop.set()
    results = [task.result() for task in reading]
    failed = [text for error, value in results for text in ([error] if error else value[1])]
    return {
        "rounds": rounds,
        "writes": 5 * rounds,
        "lost": lost,
        "writers_failed": len(problems),
        "opens": sum(value[0] for _, value in results if value),
        "opens_failed": len(failed),
        "seconds": round(seconds, 1),
        "examples": problems[:5] + failed[:5],
    }


def kills(bundle: Path, source: Path, rounds: int, seed: int) -> dict[str, Any]:
    """``rounds`` of an add and a quantize, one of which is killed."""
    rng = random.Random(seed)
    expected = set(read_bundle(bundle).manifest.adapters)
    problems: list[str] = []
    hit = through = 0
    began = time.monotonic()
    if error := Task("quantize", make, bundle).result()[0]:
        raise SystemExit(error)
    span = 1.5 * (time.monotonic() - began)
    for number in range(rounds):
        name = f"new-{number}"
        tasks = [
            Task("add", put, bundle, name, source, rng.uniform(0, 0.1)),
            Task("quantize", make, bundle, rng.uniform(0, 0.1)),
        ]
        victim = tasks[number % 2]
        time.sleep(rng.uniform(0, span))
        victim.process.kill()
        results = {task.name: task.result()[0] for task in tasks}
        died = victim.process.exitcode == -signal.SIGKILL
        hit += died
        problems += [f"round {number}, {e}" for n, e in results.items() if e and not (died and n == victim.name)]
        error, found = Task("verify", whole, bundle).result()
        # The add is there where it came through; where it was killed, it is there whole or not at all.
        sure = {*expected} if died and victim.name == "add" else {*expected, name}
        if error or found not in (sure, {*sure, name}):
            problems.append(f"round {number}: {error or sorted(found ^ sure)}")
            continue
        through += died and name in found and victim.name == "add"
        expected = set(found)
        if name in found and (error := Task("remove", take, bundle, [name]).result()[0]):
            problems.append(f"round {number}, {error}")
        expected -= {name}
    if error := Task("add", put, bundle, "last", source).result()[0]:
        problems.append(error)
    left = sorted(path.name for path in bundle.parent.iterdir() if path != bundle)
    return {
        "kills": hit,
        "came_through_before": through,
        "broken": len(problems),
        "left_behind": left,
        "seed": seed,
        "examples": problems[:10],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, help="a PEFT checkpoint that one of the adds lowers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgepeft-writers-") as scratch:
        bundle = Path(shutil.copytree(options.bundle, Path(scratch) / "beside" / "bundle"))
        entry = next(iter(read_bundle(bundle).manifest.adapters.values()))
        source = Path(shutil.copyfile(bundle / entry.onnx, Path(scratch) / "adapter.onnx"))
        if VARIANT not in read_bundle(bundle).manifest.variants and (
            error := Task("quantize", make, bundle).result()[0]
        ):
            raise SystemExit(error)
        found: dict[str, Any] = {}
        if options.rounds:
            found |= stress(bundle, [source, options.checkpoint or source], options.rounds, options.readers)
        if options.kills:
            found["killing"] = kills(bundle, source, options.kills, options.seed)
    print(json.dumps(found, indent=1))
    killing = found.get("killing", {"broken": 0, "left_behind": []})
    wrong = [found.get(key, 0) for key in ("lost", "writers_failed", "opens_failed")]
    sys.exit(1 if any([*wrong, killing["broken"], killing["left_behind"]]) else 0)


if __name__ == "__main__":
    main()
