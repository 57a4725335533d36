"""Eight rows with eight adapters against eight rows with one adapter of their mean rank, at decode; with edgepeft's kernels.

    python benchmarks/lm_mixed.py

SmolLM2-135M q4 with slots at all linear sites, made once below ``--work``; random LoRA of the ranks below. The batches take
turns token by token in one process, at 128 tokens of context, over ``--sets`` of fresh sessions; ratios of wall time or, with
``--cpu``, of this thread's CPU time (one thread only), which a busy machine moves less. A set's ratio is the median over tokens
of one batch's time divided by another's in the same turn. What the factors' bytes alone would take is printed beside it, at the
speed with which this machine reads memory in order.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any

import click
import numpy as np
from lm_overhead import CONTEXT, bundles, lora, ratio, source

from edgepeft import runtime
from edgepeft.cache import cache_dir
from edgepeft.pipeline import add
from edgepeft.runtime.kernel_adapter import Factors

RANKS = (4, 8, 16, 24, 28, 40, 56, 64)
MEAN = sum(RANKS) // len(RANKS)
#: The batches: each row's adapter.
BATCHES: dict[str, list[str | None]] = {
    "none": [None] * 8,
    "one": [f"m{MEAN}"] * 8,
    "one, row by row": [f"m{MEAN}", "m28"]
    * 4,  # as many bytes as two adapters have, whose rows do not lie side by side
    "eight": [f"m{rank}" for rank in RANKS],
}


def bundle(model: Path, folder: Path) -> Path:
    """The slotted bundle of ``lm_overhead.py`` with an adapter of each rank."""
    _, slotted = bundles(model, folder)
    mixed = folder / "mixed"
    if not mixed.exists():
        shutil.copytree(slotted, mixed)
        for rank in (*RANKS, MEAN):
            add(mixed, f"m{rank}", lora(model, rank, folder / f"mixed-lora{rank}"))
    return mixed


class Batch:
    """Eight rows."""

    def __init__(self, model: Any, names: list[str | None]) -> None:
        self.active = model.engine.mixed(names)
        self.decoder = model.generator.decoder(self.active, len(names), CONTEXT + 64)
        rng = np.random.default_rng(0)
        self.decoder.prefill([rng.integers(5, 49000, CONTEXT).tolist() for _ in names])

    @property
    def megabytes(self) -> float:
        """What a token reads of the adapters."""
        return sum(int(np.prod(value.shape())) for value in self.active.feeds.values()) / 1e6

    def step(self) -> None:
        self.decoder.step([7] * self.decoder.rows)


def read_speed() -> float:
    """GB/s of a sum over an array of 256 MB."""
    array = np.ones(2**25, np.float64)
    times = []
    for _ in range(5):
        start = perf_counter()
        array.sum()
        times.append(perf_counter() - start)
    return array.nbytes / min(times) / 1e9


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=cache_dir() / "lm-overhead")
@click.option("--threads", type=int, multiple=True, default=(1,))
@click.option(
    "--factors", multiple=True, default=("fp32", "fp16", "int8"), type=click.Choice(("fp32", "fp16", "int8", "auto"))
)
@click.option("--tokens", type=int, default=24)
@click.option("--sets", type=int, default=5, help="Times everything is opened afresh.")
@click.option("--cpu", is_flag=True, help="This thread's CPU time in place of wall time.")
def main(work: Path, threads: tuple[int, ...], factors: tuple[Factors, ...], tokens: int, sets: int, cpu: bool) -> None:
    """Print a row for each type of factors."""
    path = source("smollm2", work)
    made = bundle(path, work / "smollm2")
    clock = thread_time if cpu else perf_counter
    for count in threads:
        for form in factors:
            opened = partial(runtime.open, made, variant="q4", threads=count, kernels="require", factors=form)
            found: dict[str, list[float]] = {}
            milliseconds: dict[str, list[float]] = {name: [] for name in BATCHES}
            for _ in range(sets):
                model = opened()
                batches = {name: Batch(model, names) for name, names in BATCHES.items()}
                times: dict[str, list[float]] = {name: [] for name in batches}
                for turn in range(tokens + 2):  # the first two warm up
                    for name in list(batches) if turn % 2 else list(batches)[::-1]:
                        sleep(0.004 if count > 1 else 0)
                        start = clock()
                        batches[name].step()
                        if turn > 1:
                            times[name].append(clock() - start)
                for name, each in times.items():
                    milliseconds[name].append(median(each) * 1e3)
                    found.setdefault(name, []).append(ratio(times["one"], each))
                bytes_ = {name: batch.megabytes for name, batch in batches.items()}
                del batches, model
            print(
                json.dumps(
                    {
                        "threads": count,
                        "factors": form,
                        "clock": "cpu" if cpu else "wall",
                        "read GB/s": round(read_speed(), 1),
                    }
                )
            )
            for name in BATCHES:
                print(
                    f"  {name:16s} {bytes_[name]:6.1f} MB, {median(milliseconds[name]):6.2f} ms a token, "
                    f"{median(found[name]):.3f} ({min(found[name]):.3f} to {max(found[name]):.3f}) of the speed with one adapter"
                )


if __name__ == "__main__":
    main()
