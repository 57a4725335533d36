"""``edgepeft train --verdict`` on tasks that are made for a verdict.

    python benchmarks/training_verdicts.py OUT [--seeds 3] [--tasks random,parity,table-40,table-400,easy] [--minilm]

Over a small BERT (two layers of 64) with random weights. ``random``: labels by chance (hopeless). ``parity``: whether one of two
words is there but not both, among six others. ``table-N``: each of N words has a label by chance, and a text of seven has that of
most of its words, so N signs must be learnt by heart: few fit into an adapter, many take the embeddings, which only all weights
change (full fine-tuning). ``easy``: as ``table-2``, two words that decide (a head or an adapter suffices). ``--minilm``: labels
by chance on Amazon's sentences over MiniLM. A line of OUT/verdicts.jsonl a task and seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, ROWS = 64, 2400
#: Verdicts that are right.
RIGHT: dict[str, set[str]] = {
    "random": {"hopeless"},
    "parity": {"more rank", "full fine-tuning wins", "more data", "an adapter suffices"},
    "table-40": {"more rank", "more data", "full fine-tuning wins"},
    "table-400": {"full fine-tuning wins"},
    "easy": {"a head suffices", "an adapter suffices"},
    "minilm-random": {"hopeless"},
}


def as_examples(words: np.ndarray, labels: np.ndarray) -> Any:
    """Rows with a label each; a text that stands twice is left out the second time."""
    from edgepeft.data import Examples

    texts = [" ".join(f"w{word}" for word in row) for row in words]
    first = sorted({text: place for place, text in reversed(list(enumerate(texts)))}.values())
    return Examples(tuple(texts[i] for i in first), tuple(("no", "yes")[int(labels[i])] for i in first))


def task(name: str, seed: int) -> tuple[Any, int]:
    """The rows of a task, and how many words there are."""
    generator = np.random.default_rng(seed)
    if name == "parity":
        words = generator.integers(2, 22, (ROWS, 6))
        here = generator.random((ROWS, 2)) < 0.5
        for column in (0, 1):
            places = generator.integers(3 * column, 3 * column + 3, ROWS)
            rows = np.flatnonzero(here[:, column])
            words[rows, places[rows]] = column
        return as_examples(words, here[:, 0] ^ here[:, 1]), 22
    count = {"random": 200, "easy": 40}.get(name) or int(name.partition("-")[2])
    words = generator.integers(0, count, (ROWS, 7))
    if name == "random":
        return as_examples(words, generator.permutation(np.arange(ROWS) % 2)), count
    if name == "easy":
        decides = generator.random(ROWS) < 0.5
        words = generator.integers(2, count, (ROWS, 7))
        words[np.arange(ROWS), generator.integers(0, 7, ROWS)] = decides
        return as_examples(words, decides), count
    table = generator.permutation(np.arange(count) % 2)
    return as_examples(words, table[words].sum(axis=1) > 3), count


def make_base(folder: Path, seed: int, count: int) -> Path:
    """The small BERT with random weights, over ``count`` words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = folder / f"base-{seed}-{count}"
    if (place / "model.safetensors").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(count))]
    (place / "vocab.txt").write_text("\n".join(names) + "\n")
    BertTokenizerFast(str(place / "vocab.txt"), model_max_length=64).save_pretrained(place)
    torch.manual_seed(seed)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * HIDDEN}
    BertModel(
        BertConfig(vocab_size=len(names), max_position_embeddings=64, initializer_range=0.1, **shape)
    ).save_pretrained(place)
    return place


def judge(name: str, seed: int, out: Path) -> dict[str, Any]:
    """The verdict on one task."""
    from edgepeft.train.complexity import judge_complexity

    start = time.process_time()
    if name == "minilm-random":
        from edgepeft.data import Examples, read_examples
        from edgepeft.demo.assets import minilm
        from edgepeft.demo.vader import write_datasets

        rows = read_examples(write_datasets(out / "data")["reviews"].train).select(range(600))
        labels = np.random.default_rng(seed).permutation(np.arange(600) % 2)
        rows = Examples(rows.texts, tuple(str(label) for label in labels))
        found = judge_complexity(str(minilm()), rows, threads=1, seed=seed, max_length=64)
    else:
        rows, count = task(name, seed)
        found = judge_complexity(make_base(out, seed, count), rows, threads=1, seed=seed, learning_rate=3e-3)
    return {
        "task": name,
        "seed": seed,
        "right": found.finding in RIGHT[name],
        "cpu": time.process_time() - start,
        "finding": found.finding,
        "sentence": found.sentence,
        "accuracies": {row.what: row.accuracy.estimate for row in found.evidence},
        "evidence": [asdict(row) for row in found.evidence],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tasks", default="random,parity,table-40,table-400,easy")
    parser.add_argument("--minilm", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = [*filter(None, given.tasks.split(",")), *(["minilm-random"] if given.minilm else [])]
    file = given.out / "verdicts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for seed in range(given.first, given.first + given.seeds):
        for name in names:
            if any((row["task"], row["seed"]) == (name, seed) for row in rows):
                continue
            row = judge(name, seed, given.out)
            rows.append(row)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            shown = ", ".join(f"{what} {value:.3f}" for what, value in row["accuracies"].items())
            print(f"{name}, seed {seed}: {row['finding']} ({shown}; {row['cpu']:.0f} s of CPU)", flush=True)
    for name in RIGHT:
        mine = [row for row in rows if row["task"] == name]
        if mine:
            print(f"{name}: the right verdict in {sum(row['right'] for row in mine)} of {len(mine)} seeds")


if __name__ == "__main__":
    sys.exit(main())
