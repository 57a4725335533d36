"""What ``--rank-budget-ms`` expects an adapter to add to a run, and what it does add: MiniLM on this machine.

    python benchmarks/rank_latency.py OUT [--openings 7] [--rounds 40]

Adapters with random weights (LoRA of rank 8 at query and value, of rank 16 at all linear layers, DoRA of rank 8 there) are exported
twice, with slots and merged, and runs of the target's smallest shape are timed in turns, in the processor time of their one thread.
Where memory comes to lie moves a run by some per cent, so both are opened anew several times. Prints the milliseconds that slots
and ranks add (the median of the differences, and the middle half of them), and what `measure_rank_costs` expects.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA r=8, query and value": {"r": 8, "target_modules": ["query", "value"]},
    "LoRA r=16, every linear layer": {"r": 16, "target_modules": ["query", "key", "value", "dense"]},
    "DoRA r=8, every linear layer": {"r": 8, "target_modules": ["query", "key", "value", "dense"], "use_dora": True},
}


def write_adapter(base: str, folder: Path, options: dict[str, Any]) -> list[tuple[tuple[int, int], int]]:
    """An adapter with random weights; widths and rank of each of its layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=2),
        LoraConfig(task_type="SEQ_CLS", **options),
    )
    layers = []
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_B["default"].weight.normal_(0, 0.02)
                layers.append(((module.in_features, module.out_features), options["r"]))
    model.save_pretrained(folder)
    return layers


def medians(views: list[Any], feeds: dict[str, Any], rounds: int) -> list[float]:
    """The median thread time of each view's runs, in turns, in ms."""
    times: list[list[float]] = [[] for _ in views]
    for number in range(rounds + 10):
        for place in range(len(views)) if number % 2 else reversed(range(len(views))):
            began = time.thread_time()
            views[place].run(feeds)
            if number >= 10:
                times[place].append(time.thread_time() - began)
    return [1e3 * float(np.median(mine)) for mine in times]


def main() -> None:
    """What the first lines say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--openings", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    from edgepeft import runtime
    from edgepeft.demo.assets import minilm
    from edgepeft.pipeline import export
    from edgepeft.targets import load_target
    from edgepeft.train.rank_cost import measure_rank_costs

    base, target = str(minilm()), load_target("linux-x64-cpu")
    shape = target.shapes()[0]
    generator = np.random.default_rng(0)
    feeds = {
        "input_ids": generator.integers(1000, 20000, (shape.batch, shape.sequence)),
        "attention_mask": np.ones((shape.batch, shape.sequence), np.int64),
        "token_type_ids": np.zeros((shape.batch, shape.sequence), np.int64),
    }
    for number, (name, mine) in enumerate(ADAPTERS.items()):
        folder = options.out / f"adapter-{number}"
        layers = write_adapter(base, folder, mine)
        bundles = {mode: options.out / f"{mode}-{number}" for mode in ("merge", "swap")}
        for mode, bundle in bundles.items():
            if not bundle.is_dir():
                export(base, {"mine": folder}, bundle, mode=mode)
        times = []
        for _ in range(options.openings):
            merged, swapped = (runtime.open(bundles[mode], threads=1) for mode in ("merge", "swap"))
            times.append(medians([merged, swapped.adapter("mine")], feeds, options.rounds))
        added = np.array([slotted - plain for plain, slotted in times])
        low, middle, high = np.quantile(added, [0.25, 0.5, 0.75])
        plain = float(np.median([each for each, _ in times]))
        costs = measure_rank_costs([widths for widths, _ in layers], target, gain="use_dora" in mine)
        expected = sum(costs[widths].of(rank) for widths, rank in layers)
        print(
            f"{name}: {plain:.2f} ms without, {middle:+.2f} [{low:+.2f}, {high:+.2f}] ms measured, {expected:+.2f} expected",
            flush=True,
        )


if __name__ == "__main__":
    main()
