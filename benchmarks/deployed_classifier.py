"""Measures what classifiers learn on rounded weights and from teachers, on MiniLM and VADER's sentences.

    python benchmarks/deployed_classifier.py rounded OUT [--source reviews] [--variant q4] [--epochs 2] [--rows N]
    python benchmarks/deployed_classifier.py teacher OUT [--source reviews] [--epochs 2] [--rows N]

``rounded``: LoRA in the upper three layers, as the demo has it: trained in fp32; trained on the variant; from the first one on, on
the variant, by the rows and by what the first one says (`--distill`). All are judged by ONNX Runtime on held-out sentences of the
source, which no training saw: accuracy on both variants, and the share of labels that the variant keeps of what the first one says
in fp32.
``teacher``: LoRA at query and value by the rows and by what MiniLM says that was fine-tuned whole (`--teacher`), judged likewise.
Epochs are chosen on a tenth of the training rows. Intervals are Wilson's; changes are paired.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgepeft import runtime
from edgepeft.data import Examples, evenly, read_examples
from edgepeft.demo.assets import minilm
from edgepeft.demo.run import TARGET_MODULES
from edgepeft.metrics.intervals import wilson
from edgepeft.pipeline import add, export, quantize
from edgepeft.train import train_adapter
from edgepeft.train.gain import paired_gain

sys.path.insert(0, str(Path(__file__).parent))
from training_sweep import write_data


def answers(bundle: Path, variant: str, name: str, rows: Examples) -> np.ndarray:
    """The labels that ONNX Runtime gives."""
    with runtime.open(bundle, variant=variant, threads=1) as model:
        return np.array([answer.label for answer in model.adapter(name).predict(list(rows.texts))])


def said(right: np.ndarray) -> str:
    found = wilson(int(right.sum()), len(right))
    return f"{right.mean():.3f} [{found.lower:.3f}, {found.upper:.3f}]"


def rounded(out: Path, train: Path, held: Examples, variant: str, options: dict[str, Any]) -> None:
    bundle = out / "bundle"
    if not (bundle / "edgepeft.json").is_file():
        export(minilm(), {}, bundle, task="text-classification", slots="all-linear")
    if not (bundle / "onnx" / f"model_{variant}.onnx").is_file():
        quantize(bundle, variant, measure=False)
    on = {"deploy_variant": variant, "bundle": bundle}
    runs: dict[str, dict[str, Any]] = {
        "fp32": {},
        "variant": on,
        "on": {**on, "start": out / "fp32"},
        "distilled": {**on, "start": out / "fp32", "distill": True},
    }
    truth = np.array(held.labels)
    first: dict[str, np.ndarray] = {}
    for name, more in runs.items():
        start = time.process_time()
        if "start" not in more:
            more = {**more, "target_modules": TARGET_MODULES}
        found = train_adapter(minilm(), train, out / name, **options, **more)
        seconds = time.process_time() - start
        add(bundle, name, out / name, replace=True)
        mine = {each: answers(bundle, each, name, held) for each in ("fp32", variant)}
        first = first or mine
        change = paired_gain((first[variant] == truth) * 1.0, (mine[variant] == truth) * 1.0, "accuracy")
        print(
            f"{name}: accuracy fp32 {said(mine['fp32'] == truth)}, {variant} {said(mine[variant] == truth)}, against the first on "
            f"{variant} {change}; {variant} keeps {said(mine[variant] == first['fp32'])} of the first one's labels in fp32; epoch "
            f"{found.best_epoch}, CPU {seconds:.0f} s",
            flush=True,
        )


def teacher(out: Path, train: Path, held: Examples, options: dict[str, Any]) -> None:
    from edgepeft.train.methods import Settings
    from edgepeft.train.source import load_rows
    from edgepeft.train.trials import Candidate, trained
    from edgepeft.train.workbench import open_workbench

    bench = open_workbench(minilm(), load_rows(read_examples(train), None, text="text", label="label", pair=None), 64)
    steps = options["epochs"] * -(-len(bench.rows) // 16)
    whole = trained(bench, Candidate(Settings("full", learning_rate=1e-4)), bench.rows, steps, 16, 0, 1)
    whole.model.save_pretrained(out / "whole")
    bench.base.tokenizer.save_pretrained(out / "whole")
    bundle = out / "bundle"
    if not (bundle / "edgepeft.json").is_file():
        export(minilm(), {}, bundle, task="text-classification", slots="all-linear")
    truth = np.array(held.labels)
    first = None
    for name, more in {"rows": {}, "taught": {"teacher": out / "whole"}}.items():
        found = train_adapter(minilm(), train, out / name, **options, **more)
        add(bundle, name, out / name, replace=True)
        right = answers(bundle, "fp32", name, held) == truth
        first = right if first is None else first
        change = paired_gain(first * 1.0, right * 1.0, "accuracy")
        seconds = time.process_time()
        print(
            f"{name}: accuracy {said(right)}, against rows {change}; {found.taught or ''}; {seconds:.0f} s of CPU so far",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rounded", "teacher"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", default="reviews")
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="how many rows are trained on, spread evenly; all by default")
    given = parser.parse_args()
    if not (given.out / "data").is_dir():
        write_data(given.out / "data")
    train, held = (given.out / "data" / f"{given.source}.{name}.jsonl" for name in ("train", "heldout"))
    out = given.out / f"{given.what}-{given.source}-{given.seed}"
    out.mkdir(parents=True, exist_ok=True)
    if given.rows:
        lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
        train = out / f"train-{given.rows}.jsonl"
        train.write_text("".join(lines[i] for i in evenly(len(lines), given.rows)), encoding="utf-8")
    options = {
        "epochs": given.epochs,
        "patience": None,
        "max_length": 64,
        "threads": 1,
        "seed": given.seed,
        "progress": False,
    }
    if given.what == "rounded":
        rounded(out, train, read_examples(held), given.variant, options)
    else:
        teacher(out, train, read_examples(held), options)


if __name__ == "__main__":
    main()
