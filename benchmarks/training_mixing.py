"""Three sources of unequal size in one adapter of MiniLM: what a mixing temperature gives to the small and takes from the large.

    python benchmarks/training_mixing.py OUT [--seeds 2]

900 sentences of Amazon's reviews, 240 of movies' and 60 of NYT's (VADER; another draw for each seed) train LoRA at every linear
layer for two epochs, at temperatures 1 (by size), 2 and 100 (nearly uniform); 300 held-out sentences of each source judge. Prints
accuracies and the share of the draws of each source. A line of OUT/mixing.jsonl a training; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from training_sweep import write_data
from training_tune import rows_of

SIZES = {"reviews": 900, "movies": 240, "news": 60}
HELD = 300
TEMPERATURES = (1.0, 2.0, 100.0)


def one(base: str, data: Path, out: Path, seed: int, temperature: float) -> dict[str, object]:
    """Train and judge."""
    from edgepeft.data import read_examples
    from edgepeft.train import train_adapter

    generator = np.random.default_rng(seed)
    train, held = [], []
    for source, size in SIZES.items():
        for side, count, found in (("train", size, train), ("heldout", HELD, held)):
            rows = read_examples(data / f"{source}.{side}.jsonl")
            found.append(rows.select([int(i) for i in generator.permutation(len(rows))[:count]]))
    began = time.process_time()
    result = train_adapter(
        base, train, out / "adapter", validation=held, mix_temperature=temperature, seed=seed, threads=1, epochs=2,
        target_modules="all-linear", max_length=64, progress=False,
    )  # fmt: skip
    return {
        "seed": seed,
        "temperature": temperature,
        "cpu_s": round(time.process_time() - began, 1),
        "sources": {
            name: {"share": each.share, "accuracy": each.after}
            for name, each in zip(SIZES, result.sources, strict=True)
        },
    }


def main() -> None:
    """What the first lines say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    from edgepeft.demo.assets import minilm

    write_data(options.out / "data")
    file = options.out / "mixing.jsonl"
    for seed in range(options.seeds):
        for temperature in TEMPERATURES:
            known = rows_of(file)
            if not any((row["seed"], row["temperature"]) == (seed, temperature) for row in known):
                row = one(str(minilm()), options.out / "data", options.out, seed, temperature)
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
    rows = rows_of(file)
    for temperature in TEMPERATURES:
        mine = [row for row in rows if row["temperature"] == temperature]
        told = []
        for name in SIZES:
            scores = [row["sources"][name]["accuracy"] for row in mine]
            share = mine[0]["sources"][name]["share"]
            told.append(f"{name} {np.mean(scores):.3f} ({', '.join(f'{s:.3f}' for s in scores)}) at {share:.3f}")
        seconds = np.mean([row["cpu_s"] for row in mine])
        print(f"temperature {temperature:g}: {'; '.join(told)}; {seconds:.0f} s of CPU each")


if __name__ == "__main__":
    main()
