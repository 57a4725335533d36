"""Trained on Amazon's sentences, judged on movies' and NYT's: is it warned of? And in its own domain: is it left alone?

    python benchmarks/training_general.py OUT [--seeds 20] [--seconds S]
    python benchmarks/training_general.py --rates

For each seed 1,800 sentences of VADER's Amazon reviews are drawn from both sides of the demo's split: 800 train LoRA in MiniLM's
upper half for two epochs (in bfloat16), 500 are its rows in domain. 500 others of the same domain, 548 movie sentences and 548 of
NYT's are judged as ``edgepeft validate --general`` judges them: the drop with Newcombe's interval, and its warning. A line of
OUT/general.jsonl a seed; what is there is not done again.
``--rates`` trains nothing: how often the rule warns where both accuracies are known, from the binomial probabilities of all counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from training_sweep import write_data
from training_tune import rows_of

TRAIN, INSIDE, OUTSIDE = 800, 500, 548
#: Accuracies in domain and elsewhere whose rates are told: no loss, losses below the margin and at it, NYT's and movies' loss.
ACCURACIES = ((0.885, 0.885), (0.885, 0.865), (0.885, 0.835), (0.885, 0.809), (0.885, 0.715))
ROWS = (100, 200, 500, 1000, 2000)


def judged(base: str, data: Path, seed: int) -> dict[str, Any]:
    """Right rows and all rows of one seed, in domain and elsewhere."""
    from edgepeft.data import Examples, read_examples
    from edgepeft.train.methods import Settings
    from edgepeft.train.source import load_rows
    from edgepeft.train.trainer import seeded
    from edgepeft.train.trials import Candidate, trained
    from edgepeft.train.tune_stages import upper_half
    from edgepeft.train.workbench import encode, open_workbench

    def read(source: str, *sides: str) -> Examples:
        parts = [read_examples(data / f"{source}.{side}.jsonl") for side in sides]
        labels = tuple(label for part in parts for label in part.labels or ())
        return Examples(tuple(text for part in parts for text in part.texts), labels)

    generator = np.random.default_rng(seed)
    reviews = read("reviews", "train", "heldout")
    order = [int(place) for place in generator.permutation(len(reviews))]
    train, inside, other = (
        reviews.select(order[start : start + size])
        for start, size in ((0, TRAIN), (TRAIN, INSIDE), (TRAIN + INSIDE, INSIDE))
    )
    split = load_rows(train, None, text="text", label="label", pair=None)
    with seeded(seed, 1):
        bench = replace(open_workbench(base, split, 64), bf16=True)
    settings = Settings(targets=upper_half(bench), learning_rate=2e-3)
    run = trained(bench, Candidate(settings), bench.rows, 2 * -(-TRAIN // 16), 16, seed, 1)

    def right(rows: Examples) -> int:
        encoded, _ = encode(bench.base.tokenizer, rows, bench.problem, 64)
        with run:
            logits, _ = run.evaluate(encoded)
        return int((logits.argmax(axis=1) == np.array([row.target for row in encoded])).sum())

    hits = right(inside)
    found: dict[str, Any] = {"seed": seed, "in": [hits, len(inside)]}
    for name, rows in {
        "reviews": other,
        **{
            source: (mine := read(source, "heldout")).select(
                [int(i) for i in generator.permutation(len(mine))[:OUTSIDE]]
            )
            for source in ("movies", "news")
        },
    }.items():
        found[name] = [right(rows), len(rows)]
    return found


def grade(inside: list[int], outside: list[int]) -> str | None:
    """What is said of hits and rows in domain, and of those elsewhere."""
    from edgepeft.metrics.intervals import newcombe_drop
    from edgepeft.validate.loss_grade import graded

    return graded(newcombe_drop(*inside, *outside), None)


def likely_counts(accuracy: float, rows: int) -> dict[int, float]:
    """The probabilities of all numbers of right rows but the least likely, one in 10 million on either side."""
    from scipy.stats import binom

    least, most = (int(end) for end in binom.ppf((1e-7, 1 - 1e-7), rows, accuracy))
    return {hits: float(binom.pmf(hits, rows, accuracy)) for hits in range(least, most + 1)}


def rates() -> None:
    """Prints how often a warning is given, and how often one that the loss is surely beyond the margin."""
    print("| accuracy in domain, elsewhere | rows in domain and elsewhere | warned of | as surely beyond 5 points |")
    print("| --- | ---: | ---: | ---: |")
    for one, two in ACCURACIES:
        for rows in ROWS:
            warned = beyond = 0.0
            for hits, chance in likely_counts(one, rows).items():
                for others, other_chance in likely_counts(two, rows).items():
                    if chance * other_chance > 1e-12 and (found := grade([hits, rows], [others, rows])):
                        warned += chance * other_chance
                        beyond += chance * other_chance * (found == "beyond")
            print(f"| {one}, {two} | {rows:,} | {warned:.2%} | {beyond:.2%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rates", action="store_true", help="how often the rule warns, computed")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9, help="nothing starts after so many")
    given = parser.parse_args()
    if given.rates:
        rates()
        return
    if given.out is None:
        parser.error("OUT is missing: the folder of the journal")
    from edgepeft.demo.assets import minilm

    given.out.mkdir(parents=True, exist_ok=True)
    deadline, data, file = time.time() + given.seconds, given.out / "data", given.out / "general.jsonl"
    if not data.is_dir():
        write_data(data)
    known = {row["seed"] for row in rows_of(file)}
    for seed in range(given.seeds):
        if seed not in known and time.time() < deadline:
            row = judged(str(minilm()), data, seed)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    rows = rows_of(file)
    print(f"in domain {np.mean([row['in'][0] / row['in'][1] for row in rows]):.3f}, {len(rows)} seeds")
    for name in ("reviews", "movies", "news"):
        mean = np.mean([row[name][0] / row[name][1] for row in rows])
        said = [grade(row["in"], row[name]) for row in rows]
        warned, beyond = sum(each is not None for each in said), said.count("beyond")
        print(
            f"{name}: {mean:.3f}, warned of in {warned} of {len(rows)} seeds, {beyond} times as surely beyond 5 points"
        )


if __name__ == "__main__":
    sys.exit(main())
