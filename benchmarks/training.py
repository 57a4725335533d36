"""Measures training on MiniLM and VADER's sentences.

    python benchmarks/training.py demo OUT --other CHECKOUT [--rounds 2]
    python benchmarks/training.py few OUT [--labels 16] [--seeds 5] [--first 0] [--budget 120]
    python benchmarks/training.py ranks OUT [--seeds 5]

``few``: `edgepeft tune` with so many labels a class of Amazon's sentences, judged on 500 held-out ones, against logistic
regression on frozen features (the mean of the token states). ``ranks``: chosen ranks against uniform ones of as many bytes.
``demo``: the demo's three adapters with the demo's own settings, this checkout against another one, which runs first and
second in turns, each run a fresh process; prints seconds of the whole call and of the process's CPU, held-out accuracy, and
the ratio new / old of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_RUN = """
import json, sys, time, resource
from pathlib import Path
from edgepeft.demo import run
from edgepeft.demo.assets import minilm
from edgepeft.demo.vader import write_datasets
from edgepeft.train import train_adapter
import torch, transformers, peft, datasets
out = Path(sys.argv[1])
data = write_datasets(out / "data")
found = {}
kept = run.train_adapter
for name in run.ADAPTERS:
    # Scored on the held-out sentences, which the demo itself only looks at after the export.
    def train(*arguments, **options):
        found[name] = kept(*arguments, **options)
        return found[name]
    run.train_adapter = train
    start, cpu = time.perf_counter(), time.process_time()
    run._train(minilm(), data[name], out / name, True, lambda message: None)
    result = found[name]
    found[name] = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu, "loop": result.seconds}
for name in run.ADAPTERS:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from edgepeft.data import read_examples
    rows = read_examples(data[name].heldout)
    labels = data[name].labels
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(labels))
    model = PeftModel.from_pretrained(model, out / name).eval()
    tokenizer, right = AutoTokenizer.from_pretrained(minilm()), 0
    with torch.no_grad():
        for start in range(0, len(rows), 50):
            batch = tokenizer(list(rows.texts[start:start + 50]), padding=True, truncation=True, max_length=64, return_tensors="pt")
            names = [labels[i] for i in model(**batch).logits.argmax(-1).tolist()]
            right += sum(a == b for a, b in zip(names, rows.labels[start:start + 50]))
    found[name] |= {"right": right, "rows": len(rows)}
print(json.dumps(found))
"""


def demo(checkout: Path, out: Path) -> dict[str, dict[str, float]]:
    """Train the demo's adapters with the code in ``checkout``."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", _RUN, str(out)]
    done = subprocess.run(command, env=environment, cwd=out, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def few(out: Path, labels: int, seeds: range, budget: float) -> None:
    """Tune on few labels, against logistic regression."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from edgepeft.data import Examples, read_examples
    from edgepeft.demo.assets import minilm
    from edgepeft.demo.vader import write_datasets
    from edgepeft.train.tune import tune

    files = write_datasets(out / "data")["reviews"]
    rows, held = read_examples(files.train), read_examples(files.heldout)
    names = sorted(set(rows.labels or ()))
    truth = np.array([names.index(label) for label in held.labels or ()])
    pooled = {"train": _pooled(rows.texts), "held": _pooled(held.texts)}
    changes = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        chosen = [
            int(place)
            for name in names
            for place in generator.permutation([i for i, label in enumerate(rows.labels or ()) if label == name])[
                :labels
            ]
        ]
        mine: Examples = rows.select(chosen)
        solver = LogisticRegression(max_iter=1000).fit(pooled["train"][chosen], mine.labels)
        mean = float((solver.predict(pooled["held"]) == np.array(held.labels)).mean())
        start, cpu = time.perf_counter(), time.process_time()
        found = tune(
            minilm(), mine, out / f"tuned-{labels}-{seed}", budget_s=budget, validation=held, seed=seed, max_length=64
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        changes.append(found.adapter.after.accuracy - mean)
        print(
            f"{labels} a class, seed {seed}: tune {found.adapter.after.accuracy:.3f} ({found.chosen}), logistic regression on mean "
            f"states {mean:.3f}, {len(truth)} held-out rows, {len(found.tried)} trials in {seconds:.0f} s (CPU {cpu:.0f} s), "
            f"{len(found.left)} left",
            flush=True,
        )
    error = np.std(changes, ddof=1) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
    print(
        f"tune minus logistic regression: {np.mean(changes):+.3f} ± {error:.3f} (standard error over {len(changes)} seeds)"
    )


def _pooled(texts: tuple[str, ...]) -> Any:
    """Means of MiniLM's last states over the tokens of each text, normed, as sentence-transformers gives them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from edgepeft.demo.assets import minilm

    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm()).eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            states = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(states, dim=-1))
    return torch.cat(found).numpy()


def ranks(out: Path, seeds: int) -> None:
    """Chosen against uniform ranks."""
    import numpy as np

    from edgepeft.data import read_examples
    from edgepeft.demo.assets import minilm
    from edgepeft.demo.vader import write_datasets
    from edgepeft.train.choose_ranks import train_with_chosen_ranks

    files = write_datasets(out / "data")["reviews"]
    held = read_examples(files.heldout)
    changes = []
    for seed in range(seeds):
        found = train_with_chosen_ranks(
            minilm(),
            files.train,
            out / f"ranks-{seed}",
            validation=held,
            epochs=2,
            max_length=64,
            patience=None,
            seed=seed,
        )
        changes.append(found.change.estimate)
        print(f"seed {seed}: chosen {found.chosen.estimate:.3f}, uniform {found.uniform.estimate:.3f}", flush=True)
        if not seed:
            print("\n".join("  ".join(f"{cell:>5}" for cell in row) for row in found.map))
    error = np.std(changes, ddof=1) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
    print(f"chosen minus uniform: {np.mean(changes):+.3f} ± {error:.3f} (standard error over {len(changes)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["demo", "few", "ranks"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--other", type=Path, help="the checkout that demo compares with")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="few: the first seed")
    parser.add_argument("--budget", type=float, default=120.0)
    arguments = parser.parse_args()
    if arguments.what == "few":
        few(
            arguments.out, arguments.labels, range(arguments.first, arguments.first + arguments.seeds), arguments.budget
        )
        return
    if arguments.what == "ranks":
        ranks(arguments.out, arguments.seeds)
        return
    if arguments.other is None:
        parser.error("demo needs --other CHECKOUT")
    here = Path(__file__).resolve().parents[1]
    for number in range(arguments.rounds):
        order = [("old", arguments.other.resolve()), ("new", here)]
        measured = {}
        for name, checkout in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            measured[name] = demo(checkout, arguments.out.resolve() / name)
            total = {key: sum(one[key] for one in measured[name].values()) for key in ("wall", "cpu", "loop")}
            right = {key: f"{one['right'] / one['rows']:.3f}" for key, one in measured[name].items()}
            print(
                f"round {number + 1} {name}: {total['wall']:.1f} s, CPU {total['cpu']:.1f} s, in the loop {total['loop']:.1f} s, "
                f"held-out accuracy {right}, load {os.getloadavg()[0]:.1f}, process {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        for key in ("wall", "cpu", "loop"):
            old, new = (sum(one[key] for one in measured[name].values()) for name in ("old", "new"))
            print(f"round {number + 1} new / old, {key}: {new / old:.2f}", flush=True)


if __name__ == "__main__":
    main()
