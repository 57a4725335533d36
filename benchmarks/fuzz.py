"""Damaged and hostile bundles, adapter files and PEFT folders: each must give a typed error or the right result.

    python benchmarks/fuzz.py --rounds 5000 --seed 0

Each mutant is made from its own seed, which is printed where something is wrong: ``--first SEED --rounds 1`` repeats it.
Mutants run in worker processes: one that takes more than ``LIMIT_S`` or dies is counted, and its worker is replaced.

- ``bundle``: JSON changed by structure (with the hashes mended or not), flipped bytes, truncations, swapped files, links,
  pipes, graphs and weights with other dimensions. Opened, run with the base and with each adapter, and described.
- ``adapter``: both files of an adapter, their hashes mended, and the ``.onnx`` as something to add.
- ``peft``: ``adapter_config.json`` and tensors of a PEFT folder, added to a bundle.

A mutant whose hashes and manifest were left alone must never give other numbers: that would be a silent change.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import math
import multiprocessing
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 5.0
KINDS = ("bundle", "adapter", "peft")
TEXTS = ["the film was very good .", "bad plot", "a great book , and a fine end"]
#: What a mutant may come to; the last four are faults.
RESULTS = ("typed error", "right", "other", "silent change", "raw exception", "hang", "crash", "bundle changed")
FAULTS = RESULTS[3:]

#: Values that no field expects.
_HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324, "", "x",
    "x" * 5000, "a" * 40 + "!", "../../x", "/etc/passwd", "con", "NUL", "aux.txt", "\u0000", "é\u202e", "{{ 9 ** 9 }}", "(a+)+$",
    "([a-z_.0-9]*)*!", "(", "[", "*", "all-linear", [], {}, [[]], [None], ["x"] * 50, {"x": 1}, {"": None}, [0, -1],
    [2**31, 2**31], "0" * 64,
)  # fmt: skip
#: Texts that JSON readers stumble over, put in the place of a value.
_RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 5000 + "]" * 5000, '{"a":' * 2000 + "1" + "}" * 2000, '"\\ud800"',
    '{"a": 1, "a": 2}', "01", "'x'", '"' + "a" * 100_000 + '"', "[" + "0," * 50_000 + "0]", "",
)  # fmt: skip
_MARK = "@@fuzz@@"


@dataclass(frozen=True)
class Originals:
    """What is mutated, and what it gives as it is."""

    bundle: Path
    checkpoints: tuple[Path, ...]
    expected: dict[str, np.ndarray]


# ── mutations ──


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(inner, (*path, key))
    return found


def mutate_json(path: Path, rng: random.Random) -> None:
    """Change one to three places of a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    raw = None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            break
        *parents, last = rng.choice(places)
        inside = value
        for key in parents:
            inside = inside[key]
        way = rng.randrange(6)
        if way == 0:
            del inside[last]
        elif way == 1 and isinstance(inside, dict):
            inside[rng.choice(("x", "", "con", last + "x" if isinstance(last, str) else "y"))] = inside[last]
        elif way == 2 and isinstance(inside[last], int) and not isinstance(inside[last], bool):
            inside[last] += rng.choice((-1, 1, 2**31, -(2**31), inside[last]))
        elif way == 3:
            other = rng.choice(places)
            found = value
            for key in other:
                if not (isinstance(found, dict) and key in found) and not (
                    isinstance(found, list) and isinstance(key, int) and key < len(found)
                ):
                    break
                found = found[key]
            inside[last] = json.loads(json.dumps(found))
        elif way == 4:
            inside[last], raw = _MARK, rng.choice(_RAW)
        else:
            inside[last] = rng.choice(_HOSTILE)
    text = json.dumps(value)
    if raw is not None:
        text = text.replace(f'"{_MARK}"', raw)
    path.write_text(text, encoding="utf-8")


def mutate_bytes(path: Path, rng: random.Random) -> None:
    """Flip, cut, repeat or overwrite bytes."""
    data = bytearray(path.read_bytes())
    way = rng.randrange(6)
    if way == 0 or not data:
        data = data[: rng.randrange(len(data) + 1)]
    elif way == 1:
        data += rng.randbytes(rng.randrange(1, 100))
    elif way == 2:
        start = rng.randrange(len(data))
        data[start : start + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
    elif way == 3:
        place = rng.randrange(max(1, len(data) - 8))
        data[place : place + 8] = struct.pack("<q", rng.choice((0, -1, 1, 2**31, 2**62, -(2**63))))
    else:
        for _ in range(rng.choice((1, 1, 4, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def mutate_onnx(path: Path, rng: random.Random) -> None:
    """Change the dimensions, type, name or place of a tensor in a graph, or its metadata."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    tensors = list(model.graph.initializer)
    way = rng.randrange(8)
    if way == 0 and model.metadata_props:
        prop = rng.choice(list(model.metadata_props))
        file = path.with_suffix(".json")
        file.write_text(prop.value, encoding="utf-8")
        try:
            mutate_json(file, rng)
        except (json.JSONDecodeError, AttributeError):
            file.write_text("[" * 3000, encoding="utf-8")
        prop.value = file.read_text(encoding="utf-8")
        file.unlink()
    elif way == 1 and model.graph.node:
        node = rng.choice(list(model.graph.node))
        node.op_type = rng.choice(("Identity", "Nope", "If", "MatMul", ""))
    elif way == 2:
        rng.choice(list(model.graph.output)).name = rng.choice(("x", "", "logits"))
    elif tensors:
        tensor = rng.choice(tensors)
        if way == 3:
            tensor.data_type = rng.choice((0, 2, 7, 8, 10, 11, 16, 99))
        elif way == 4:
            tensor.name = rng.choice(("x", "", tensors[0].name))
        elif way == 5 and tensor.external_data:
            entry = rng.choice(list(tensor.external_data))
            entry.value = rng.choice(("../x", "/etc/passwd", "0", "-1", "4096", str(2**62), "x", "", "edgepeft.json"))
        elif way == 6:
            tensor.data_location = rng.choice((0, 1))
            if rng.random() < 0.5:
                entry = tensor.external_data.add()
                entry.key, entry.value = "location", rng.choice(("../../x", "/etc/passwd", "/dev/zero", "x"))
        elif len(tensor.dims):
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, -1, 3, 10**6, 2**40, 2**62))
    path.write_bytes(model.SerializeToString())


def mutate_onnx_adapter(path: Path, rng: random.Random) -> None:
    """Write the adapter with other names, shapes, types or numbers, or change its bytes."""
    import onnxruntime as ort

    if rng.random() < 0.4:
        mutate_bytes(path, rng)
        return
    form = ort.AdapterFormat.read_adapter(str(path))
    tensors = {name: value.numpy().copy() for name, value in form.get_parameters().items()}
    name = rng.choice(sorted(tensors))
    array = tensors.pop(name)
    way = rng.randrange(6)
    if way == 1:
        tensors[rng.choice(("x", "", name + "x", "input_ids"))] = array
    elif way == 2:
        tensors[name] = array.astype(rng.choice(("float64", "float16", "int8", "int64", "bool")))
    elif way == 3:
        tensors[name] = rng.choice(
            (array[..., :-1], array[None], array.reshape(-1), np.zeros((0,), np.float32), array[..., :0])
        )
    elif way == 4:
        array[...] = rng.choice((math.nan, math.inf, 3e38))
        tensors[name] = array
    elif way == 5:
        tensors[name], tensors["x"] = array, np.zeros(3, np.float32)
    written = ort.AdapterFormat()
    written.set_model_version(form.get_model_version() + rng.randrange(2))
    written.set_adapter_version(form.get_adapter_version())
    written.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in tensors.items()})
    path.unlink()
    written.export_adapter(str(path))


def mutate_safetensors(path: Path, rng: random.Random) -> None:
    """Change the header's structure, a tensor, or bytes."""
    data = path.read_bytes()
    if rng.random() < 0.3:
        mutate_bytes(path, rng)
        return
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.5:
        header = path.with_suffix(".json")
        header.write_bytes(data[8 : 8 + size])
        mutate_json(header, rng)
        text = header.read_bytes()
        header.unlink()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        return
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    array = tensors.pop(name)
    way = rng.randrange(6)
    if way == 1:
        tensors[rng.choice(("x", "x.lora_A.weight", "." * 500, name.replace("0", "9"), name + ".base_layer"))] = array
    elif way == 2:
        tensors[name] = array.astype(rng.choice(("float64", "float16", "int8", "int64", "bool")))
    elif way == 3:
        tensors[name] = rng.choice(
            (array[..., :-1], array[None], array.reshape(-1), array[:0], np.float32(1).reshape(()))
        )
    elif way == 4:
        array = array.astype(np.float32)
        array[...] = rng.choice((math.nan, math.inf, 3e38, 0))
        tensors[name] = array
    elif way == 5:
        tensors[name] = np.zeros((*array.shape[:-1], 100_000), np.float32)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, path)


def mend_hashes(bundle: Path) -> None:
    """Write the sizes and hashes that the files now have into the manifest."""
    from edgepeft.bundle import hash_file

    path = bundle / "edgepeft.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in value["files"]:
        if (bundle / name).is_file():
            entry = hash_file(bundle / name)
            value["files"][name] = {"sha256": entry.sha256, "bytes": entry.bytes}
    path.write_text(json.dumps(value), encoding="utf-8")


def _replace(path: Path, rng: random.Random) -> None:
    """Put something else than a file, or another file, in a file's place."""
    siblings = [other for other in path.parents[1].rglob("*") if other.is_file() and other != path]
    way = rng.randrange(7)
    other = rng.choice(siblings).read_bytes()
    path.unlink()
    if way == 1:
        path.mkdir()
    elif way == 2:
        os.mkfifo(path)
    elif way == 3:
        path.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/dev/null", path.name, "../../../x")))
    elif way == 4:
        path.write_bytes(other)
    elif way == 5:
        path.write_bytes(b"")
    elif way == 6:
        with path.open("wb") as file:
            file.truncate(2**33)


# ── what is done with a mutant ──


def outputs(bundle: Path) -> dict[str, np.ndarray]:
    """The logits of every adapter and of the base, with the labels as they are printed."""
    from edgepeft import runtime

    model = runtime.open(bundle, threads=1)
    found: dict[str, np.ndarray] = {}
    for name in (None, *model.adapters):
        view = model.adapter(name)
        found[str(name)] = view.logits(TEXTS)
        found[f"{name} labels"] = np.array([each["label"] for each in view.run(TEXTS)])
    return found


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


def run_bundle(originals: Originals, folder: Path, rng: random.Random) -> tuple[bool, Callable[[], str]]:
    """A mutant of the bundle: whether its hashes and manifest were left alone, and what to do with it."""
    bundle = Path(shutil.copytree(originals.bundle, folder / "bundle"))
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    text_files = [path for path in files if path.suffix == ".json"]
    mended = rng.random() < 0.5
    way = rng.randrange(10)
    if way < 3:
        path = bundle / "edgepeft.json"
        mutate_json(path, rng)
        mended = True
    elif way < 5:
        path = rng.choice(text_files)
        mutate_json(path, rng)
    elif way < 7:
        path = rng.choice(files)
        mutate_bytes(path, rng)
    elif way < 9:
        path = rng.choice([path for path in files if path.suffix == ".onnx"])
        mutate_onnx(path, rng)
    else:
        path, mended = rng.choice(files), False
        _replace(path, rng)
    if mended and path.name != "edgepeft.json":
        mend_hashes(bundle)
    untouched = not mended and path.name != "edgepeft.json"

    def act() -> str:
        from edgepeft.bundle import read_bundle

        found = outputs(bundle)
        read_bundle(bundle).verify()
        return "right" if _same(found, originals.expected) else "other"

    return untouched, act


def run_adapter(originals: Originals, folder: Path, rng: random.Random) -> tuple[bool, Callable[[], str]]:
    """A mutant of an adapter's files, in a bundle with mended hashes or on its way into one."""
    from edgepeft.pipeline import add

    bundle = Path(shutil.copytree(originals.bundle, folder / "bundle"))
    suffix = rng.choice((".onnx", ".onnx_adapter"))
    path = rng.choice(sorted((bundle / "adapters").glob(f"*{suffix}")))
    if rng.random() < 0.5:
        beside = folder / "given"
        shutil.copytree(bundle / "adapters", beside)
        given = beside / path.name
        (mutate_onnx if suffix == ".onnx" else mutate_onnx_adapter)(given, rng)
        return False, lambda: _added(originals, bundle, lambda: add(bundle, "new", given))
    (
        mutate_onnx
        if suffix == ".onnx" and rng.random() < 0.7
        else mutate_onnx_adapter
        if suffix != ".onnx"
        else mutate_bytes
    )(path, rng)
    mend_hashes(bundle)
    return False, lambda: "right" if _same(outputs(bundle), originals.expected) else "other"


def run_peft(originals: Originals, folder: Path, rng: random.Random) -> tuple[bool, Callable[[], str]]:
    """A mutant of a PEFT folder, to be added to a bundle."""
    from edgepeft.pipeline import add

    bundle = Path(shutil.copytree(originals.bundle, folder / "bundle"))
    checkpoint = Path(shutil.copytree(rng.choice(originals.checkpoints), folder / "checkpoint"))
    files = sorted(path for path in checkpoint.iterdir() if path.suffix in {".json", ".safetensors"})
    way = rng.randrange(10)
    if way < 6:
        config = checkpoint / "adapter_config.json"
        if way == 0:
            value = json.loads(config.read_text(encoding="utf-8"))
            value[rng.choice(sorted(value))] = rng.choice(_HOSTILE)
            value[rng.choice(("rank_pattern", "alpha_pattern"))] = {
                str(rng.choice(_HOSTILE)): rng.choice((4, "x", None))
            }
            config.write_text(json.dumps(value), encoding="utf-8")
        else:
            mutate_json(config, rng)
    elif way < 9:
        mutate_safetensors(checkpoint / "adapter_model.safetensors", rng)
    else:
        mutate_bytes(rng.choice(files), rng)
    return False, lambda: _added(originals, bundle, lambda: add(bundle, "new", checkpoint, force=True))


def _added(originals: Originals, bundle: Path, adding: Callable[[], object]) -> str:
    """Add, and look that the bundle is as it was where that fails, and that what was there gives what it gave."""
    from edgepeft.errors import EdgepeftError

    before = (bundle / "edgepeft.json").read_bytes()
    try:
        adding()
    except EdgepeftError:
        if (bundle / "edgepeft.json").read_bytes() != before:
            return "bundle changed"
        raise
    found = outputs(bundle)
    old = {name: array for name, array in found.items() if not name.startswith("new")}
    return "right" if _same(old, originals.expected) else "bundle changed"


_RUN = {"bundle": run_bundle, "adapter": run_adapter, "peft": run_peft}


def judge(originals: Originals, kind: str, seed: int, scratch: Path) -> tuple[str, str]:
    """What one mutant comes to, and the words of its error."""
    from edgepeft.errors import EdgepeftError

    rng = random.Random(f"{kind} {seed}")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        try:
            untouched, act = _RUN[kind](originals, folder, rng)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return "right", f"no mutant: {error!r}"  # the mutation did not fit what it drew
        try:
            result = act()
        except EdgepeftError as error:
            return "typed error", f"{type(error).__name__}: {error}"
        except Exception:
            return "raw exception", traceback.format_exc()
        return ("silent change", "") if result == "other" and untouched else (result, "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ── workers ──


def _work(originals: Originals, scratch: Path, pipe: Connection) -> None:
    import warnings

    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("onnx", "onnx_ir", "peft", "safetensors.numpy", "transformers", "edgepeft.pipeline"):
        importlib.import_module(module)  # before the clock runs
    outputs(originals.bundle)
    pipe.send(None)
    while (job := pipe.recv()) is not None:
        pipe.send(judge(originals, *job, scratch))


class Worker:
    """A process that judges one mutant after the other, and is replaced where one hangs or kills it."""

    def __init__(self, originals: Originals, scratch: Path) -> None:
        self._given = (originals, scratch)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(*self._given, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def judge(self, kind: str, seed: int) -> tuple[str, str]:
        """:func:`judge` there, within :data:`LIMIT_S`."""
        self.pipe.send((kind, seed))
        try:
            if self.pipe.poll(LIMIT_S * 4):  # the machine may be slow; what counts is measured below
                result: tuple[str, str] = self.pipe.recv()
                return result
            result = ("hang", f"more than {LIMIT_S * 4:g} s")
        except EOFError:
            self.process.join()
            result = ("crash", f"exit code {self.process.exitcode}")
        self.close()
        self._start()
        return result

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def make_originals(folder: Path) -> Originals:
    """A tiny random BERT with three adapters, exported."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import build_model, save_lora

    from edgepeft.pipeline import add_slots, capture, read_adapter, write_bundle

    bert = build_model(folder / "bert")
    labels = {"labels": ["a", "b", "c", "d", "e"]}
    checkpoints = (
        save_lora(folder / "plain", bert, rank_pattern={"layer.0.attention.self.query": 3}),
        save_lora(folder / "head", bert, seed=2, r=2, modules_to_save=["classifier"], num_labels=5, record=labels),
        save_lora(folder / "dora", bert, seed=3, use_dora=True, target_modules=["value"]),
    )
    base = capture(bert, task="text-classification")
    adapters = [read_adapter(path, name=path.name, weights=base.weight) for path in checkpoints]
    bundle = write_bundle(folder / "bundle", base, add_slots(base, adapters, reserve="all-linear"), adapters).path
    return Originals(bundle, checkpoints, outputs(bundle))


def fuzz(
    originals: Originals, scratch: Path, jobs: list[tuple[str, int]], say: Callable[[str], None] = print
) -> collections.Counter[tuple[str, str]]:
    """Judge every mutant; counts by kind and result. Faults are said with their seed."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest = (0.0, "")
    worker = Worker(originals, scratch)
    try:
        for kind, seed in jobs:
            start = time.monotonic()
            result, words = worker.judge(kind, seed)
            took = time.monotonic() - start
            if took > LIMIT_S and result not in FAULTS:
                result, words = "hang", f"{took:.1f} s, then: {result} {words[:500]}"
            slowest = max(slowest, (took, f"{kind} {seed}"))
            counts[kind, result] += 1
            if result in FAULTS:
                say(f"{result}: --kind {kind} --first {seed} --rounds 1\n{words}")
    finally:
        worker.close()
    say(f"slowest: {slowest[0]:.2f} s ({slowest[1]})")
    return counts


def main() -> int:
    """Run, print counts, and give 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000, help="mutants, of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="where the seeds begin: run S uses S * 1,000,000, …")
    parser.add_argument("--first", type=int, help="the first mutant's seed itself, to repeat one")
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be repeated; all by default")
    options = parser.parse_args()
    kinds = options.kind or KINDS
    first = options.seed * 1_000_000 if options.first is None else options.first
    jobs = [(kinds[i % len(kinds)], first + i // len(kinds)) for i in range(options.rounds)]
    print(f"{options.rounds} mutants of {', '.join(kinds)}, seeds {first} to {jobs[-1][1]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="edgepeft-fuzz-") as folder:
        os.environ.setdefault("EDGEPEFT_CACHE", f"{folder}/cache")
        counts = fuzz(make_originals(Path(folder)), Path(folder), jobs, lambda text: print(text, flush=True))
    print(f"{'':16}" + "".join(f"{kind:>10}" for kind in kinds))
    for result in RESULTS:
        print(f"{result:16}" + "".join(f"{counts[kind, result]:>10}" for kind in kinds))
    return int(any(counts[kind, result] for kind in kinds for result in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
