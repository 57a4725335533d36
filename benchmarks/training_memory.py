"""Where the memory of training MiniLM goes, by part, and how far it grows: LoRA against all weights.

    python benchmarks/training_memory.py [--rounds 2] [--rows 1000] [--out FILE]

Parts are counted: what autograd keeps of one batch for the backward pass (each storage once, weights left out), gradients,
AdamW's two moments, and the copy of the best epoch's weights. Growth is measured as ``edgepeft train --compare`` measures it,
each setting in a fresh process, the settings in turns; an epoch is timed by the CPU seconds of the process, judging 100 rows
included. A line of JSON a run goes to FILE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

#: Method, modules, and whether activations are computed again.
SETTINGS: dict[str, tuple[str, str | None, bool]] = {
    "full": ("full", None, False),
    "lora, every linear layer": ("lora", "all-linear", False),
    "lora, query and value": ("lora", None, False),
    "full, activations computed again": ("full", None, True),
    "lora, every linear layer, activations computed again": ("lora", "all-linear", True),
}


def kept_bytes(model: Any, call: Any) -> int:
    """Bytes of what autograd keeps while ``call`` runs forward, each storage once; the weights of ``model`` are left out."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = call()
    total = sum(found.values())
    del loss
    return total


def measure(name: str, rows: int) -> dict[str, Any]:
    """One setting in this process."""
    import torch

    from edgepeft.data import read_examples
    from edgepeft.demo.assets import minilm
    from edgepeft.demo.vader import write_datasets
    from edgepeft.train.compare import _run
    from edgepeft.train.loop import Schedule
    from edgepeft.train.methods import Settings, trainable
    from edgepeft.train.source import load_rows
    from edgepeft.train.steps import Run
    from edgepeft.train.trainer import seeded
    from edgepeft.train.workbench import open_workbench

    torch.set_num_threads(1)
    method, targets, again = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        files = write_datasets(folder)["reviews"]
        train, held = read_examples(files.train), read_examples(files.heldout).select(range(100))
    split = load_rows(train.select(range(rows)), held, text="text", label="label", pair=None)
    with seeded(0, 1):
        bench = open_workbench(str(minilm()), split, 64)
    settings = Settings(method, targets=targets)
    schedule = Schedule(1, settings.rate, 16, 0, None, 1, checkpointing=again)
    start = time.process_time()
    model, course, _, growth = _run(bench, settings, schedule)
    cpu = time.process_time() - start
    longest = sorted(bench.rows, key=len)[-16:]
    counted = Run(
        bench.fresh(settings, 0),
        bench.base.tokenizer,
        longest,
        batch_size=16,
        learning_rate=settings.rate,
        total_steps=1,
        seed=0,
        threads=1,
        checkpointing=again,
    )
    counted.model.train()
    trained = 4 * trainable(model)
    return {
        "setting": name,
        "growth_mb": None if growth is None else growth / 1e6,
        "cpu_s": cpu,
        "activations_mb": kept_bytes(counted.model, lambda: counted.forward(longest).loss) / 1e6,
        "gradients_mb": trained / 1e6,
        "moments_mb": 2 * trained / 1e6,
        "best_epoch_mb": trained / 1e6,
        "tokens": 16 * max(map(len, longest)),
        "accuracy": course.after.accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=list(SETTINGS), help="measure this setting here, and print it as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.rows)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for turn in range(given.rounds):
        for name in SETTINGS if turn % 2 == 0 else reversed(SETTINGS):
            call = [sys.executable, "-W", "ignore", __file__, "--one", name, "--rows", str(given.rows)]
            line = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            found[name].append(json.loads(line))
            if given.out is not None:
                with given.out.open("a") as lines:
                    lines.write(line + "\n")
            print(line, flush=True)
    middle = {
        name: {
            key: median(run[key] for run in runs) for key, value in runs[0].items() if isinstance(value, float | int)
        }
        for name, runs in found.items()
    }
    print("\n| setting | activations | gradients, moments, best epoch | growth | of full | epoch, of full |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, one in middle.items():
        weights = one["gradients_mb"] + one["moments_mb"] + one["best_epoch_mb"]
        full = middle["full"]
        print(
            f"| {name} | {one['activations_mb']:.0f} MB | {weights:.0f} MB | {one['growth_mb']:.0f} MB | "
            f"{one['growth_mb'] / full['growth_mb']:.0%} | {one['cpu_s'] / full['cpu_s']:.2f} |"
        )


if __name__ == "__main__":
    main()
