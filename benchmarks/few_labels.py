"""What contrast gains over a head on frozen features, by the number of labels, on MiniLM and VADER's four sources.

    python benchmarks/few_labels.py run OUT [--labels 4,8,16,32] [--seeds 3] [--sources reviews,movies,tweets,news] [--only NAMES]
    python benchmarks/few_labels.py run OUT --labels 32 --seeds 10 --draws-of-tune --only "contrast 16 0.002,contrast 27 0.002 r16"
    python benchmarks/few_labels.py summary OUT

A draw is that of ``training_tune.py``: a source, a seed and so many rows of each label. On each the recipes of ``edgepeft tune``
are trained as it trains them on all rows (in bfloat16, one thread) and judged on the first 500 held-out sentences: a head under
even attention, contrast of every linear layer from it (53 steps, from 32 labels a class on 16), and the fine-tuning
of the upper half that contrast took the place of (53); beside them logistic regression on the means of the last states.

A name of ``--only`` may also say how contrast trains: steps, rate, a rank other than 8, and ``upper`` for the upper half alone.
``--draws-of-tune`` takes one source a seed and 300 held-out sentences, as ``training_tune.py`` does; give it an OUT of its own.

Each result is a line of OUT/few-labels.jsonl; what is there is not done again.
``summary`` prints accuracies and each recipe's gain over the head: its mean, the standard deviation over draws and the standard
error of the mean. What ``edgepeft/train/tune_stages.py`` expects is taken from these.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from training_sweep import SOURCES, _bench, _by_mean_states, write_data
from training_sweep import start as open_base
from training_tune import draw, rows_of

HELD, STEPS, BATCH = 500, 53, 8
HEAD, MEAN, CONTRAST, UPPER = "head", "mean states", "contrast", "upper half"


def candidate(bench: Any, what: str) -> tuple[Any, int]:
    """A recipe by name, and its steps on all rows."""
    from edgepeft.train.even_attention import key_site
    from edgepeft.train.methods import Settings
    from edgepeft.train.trials import Candidate
    from edgepeft.train.tune_stages import FEW_STRENGTH, evenly_attending, taught_by_contrast, upper_half

    site = key_site(bench)
    assert site is not None
    if what == HEAD:
        return Candidate(evenly_attending(site), "features", FEW_STRENGTH, site), 0
    if what == CONTRAST:
        labels = min(Counter(row.target for row in bench.rows).values())
        taught, steps = taught_by_contrast(site, bench.width, labels, len(bench.rows) * 3 // 4)
        return taught, steps * 4 // 3
    if what.startswith(CONTRAST):
        _, made, rate, *more = what.split()
        rank = next((int(word[1:]) for word in more if word.startswith("r")), 8)
        where = upper_half(bench) if "upper" in more else "all-linear"
        taught = Settings("dora", rank=rank, targets=where, learning_rate=float(rate))
        return Candidate(taught, "contrast", FEW_STRENGTH, site), int(made)
    settings = Settings("dora", rank=8, targets=upper_half(bench), learning_rate=7e-4)
    return Candidate(settings, "fine-tune", FEW_STRENGTH, site), STEPS


def judged(bench: Any, what: str, seed: int) -> dict[str, float]:
    """The accuracy on the held-out rows, and CPU seconds of the training."""
    from edgepeft.train.trials import trained

    truth = np.array([row.target for row in bench.held])
    start = time.process_time()
    if what == MEAN:
        return {"accuracy": float((_by_mean_states(bench) == truth).mean()), "cpu": time.process_time() - start}
    recipe, steps = candidate(bench, what)
    with trained(bench, recipe, bench.rows, steps, BATCH, seed, 1) as run:
        cpu = time.process_time() - start
        if run.cached_layers:
            run.keep_states(bench.held)
        logits, _ = run.evaluate(bench.held)
    return {"accuracy": float((logits.argmax(axis=1) == truth).mean()), "cpu": cpu}


def summary(file: Path) -> str:
    """Accuracies by labels and source, and the gains over the head."""
    found: dict[int, dict[str, dict[tuple[str, int], float]]] = defaultdict(lambda: defaultdict(dict))
    cpu: dict[str, list[float]] = defaultdict(list)
    for row in (rows := rows_of(file)):
        found[row["labels"]][row["what"]][row["source"], row["seed"]] = row["accuracy"]
        cpu[row["what"]].append(row["cpu"])
    sources = [each for each in SOURCES if any(each == row["source"] for row in rows)]
    lines = [
        f"| labels a class | recipe | draws | {' | '.join(sources)} | mean | minus the head | deviation over draws |",
        f"| ---: | --- | ---: |{' ---: |' * len(sources)} ---: | ---: | ---: |",
    ]
    gains: list[float] = []
    for labels, recipes in sorted(found.items()):
        for what, draws in recipes.items():
            by_source = [np.mean([a for (s, _), a in draws.items() if s == source] or [np.nan]) for source in sources]
            changes = [a - recipes[HEAD][key] for key, a in draws.items() if key in recipes[HEAD]]
            cells = [*by_source, np.mean(list(draws.values()))]
            change = np.mean(changes) if changes else np.nan
            spread = np.std(changes, ddof=min(1, len(changes) - 1)) if changes else np.nan
            gains += changes if what == CONTRAST else []
            lines.append(
                f"| {labels} | {what} | {len(draws)} | {' | '.join(f'{cell:.3f}' for cell in cells)} | "
                f"{change:+.3f} ± {spread / max(1, len(changes)) ** 0.5:.3f} | {spread:.3f} |"
            )
    if gains:
        lines.append(
            f"\ncontrast over all {len(gains)} draws: {np.mean(gains):+.3f}, deviation {np.std(gains, ddof=1):.3f}"
        )
    lines += [f"{what}: {np.median(each):.1f} s of CPU" for what, each in cpu.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["run", "summary"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", default="4,8,16,32")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--draws-of-tune", action="store_true", help="one source a seed, and 300 held-out sentences")
    parser.add_argument("--only", help=f"recipes by name, with , between them: {HEAD}, {MEAN}, {CONTRAST}, {UPPER}")
    given = parser.parse_args()
    file = given.out / "few-labels.jsonl"
    if given.mode == "summary":
        print(summary(file))
        return
    from edgepeft.demo.assets import minilm

    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "data").is_dir():
        write_data(given.out / "data")
    open_base(str(minilm()), str(given.out / "data"))
    known = rows_of(file)
    names = given.only.split(",") if given.only else [HEAD, MEAN, CONTRAST, UPPER]
    for seed in range(given.first, given.first + given.seeds):
        for labels in map(int, given.labels.split(",")):
            sources = [SOURCES[seed % len(SOURCES)]] if given.draws_of_tune else given.sources.split(",")
            for source in sources:
                bench = draw(source, seed, labels)
                if not given.draws_of_tune:
                    bench = replace(bench, held=_bench(source).held[:HELD])
                for what in names:
                    key = {"source": source, "seed": seed, "labels": labels, "what": what}
                    if any(key.items() <= row.items() for row in known):
                        continue
                    row = {**key, **judged(bench, what, seed)}
                    with file.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    print(summary(file))


if __name__ == "__main__":
    sys.exit(main())
