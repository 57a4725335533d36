"""Measures training: the demo's three adapters, this checkout against another one, in turns.

    python benchmarks/training.py demo OTHER_CHECKOUT OUT [--rounds 2]

Each run is a fresh process on MiniLM and the demo's VADER sentences with the demo's own settings; the other checkout
runs first and second in turns. Prints seconds of the whole call and of the process's CPU, held-out accuracy, and the ratio
new / old of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["demo"])
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
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
