"""What makes few labels go far: from SetFit's recipe to an adapter that ships, one step at a time, on MiniLM.

    python benchmarks/few_causes.py OUT [--draws 0,1,2,3] [--source reviews] [--labels 16] [--only NAME;NAME]

Each line of OUT/causes.jsonl is a setting on a draw of ``training_sweep.py few`` (what is there is not done again): accuracy on
the held-out sentences of logistic regression on the normed means of the last states (which does not ship by itself) and of the head
that edgepeft solves for on what the classifier reads (which ships), and CPU seconds of the training. One thread. A table of means
over draws is printed at the end.

Settings differ in what is trained and how fast, in the texts of a step (sixteen sampled pairs as SetFit draws them, or all pairs of
shuffled rows), in the loss (squared distance of cosines from 1 and 0, or supervised contrast at a temperature of 0.1, Khosla et al.
2020), and in where it is taken: the mean of the last states, what the classifier reads, or both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from training_sweep import _bench, _chosen, write_data
from training_sweep import start as open_base


@dataclass(frozen=True)
class Recipe:
    """``method`` at every linear layer, or those of the upper half; ``where`` is mean, read or both."""

    method: str = "lora"
    rate: float = 3e-4
    where: str = "both"
    loss: str = "all pairs"
    steps: int = 53
    batch: int = 32
    upper: bool = False
    even: bool = False
    dropout: float = 0.0
    bf16: bool = False


RECIPES = {
    "SetFit's: all weights, sampled pairs, means, dropout": Recipe(
        "full", 2e-5, "mean", "sampled pairs", 80, dropout=0.1
    ),
    "LoRA, sampled pairs, means": Recipe("lora", 3e-4, "mean", "sampled pairs", 80),
    "LoRA, all pairs, means and what is read": Recipe(),
    "LoRA, all pairs, means": Recipe(where="mean"),
    "LoRA, all pairs, what is read": Recipe(where="read"),
    "DoRA from even attention, all pairs, means and what is read": Recipe("dora", even=True),
    "DoRA from even attention, all pairs, what is read": Recipe("dora", where="read", even=True),
    "DoRA from even attention, supervised contrast, what is read": Recipe(
        "dora", where="read", loss="supervised", even=True
    ),
    "the same in the upper half": Recipe("dora", where="read", loss="supervised", even=True, upper=True),
    "frozen": Recipe(steps=0),
}


def supervised(states: Any, targets: Sequence[int], temperature: float = 0.1) -> Any:
    """The supervised contrastive loss (Khosla et al. 2020, equation 2)."""
    import torch

    unit, labels = torch.nn.functional.normalize(states, dim=-1), torch.tensor(targets)
    itself = torch.eye(len(labels), dtype=torch.bool)
    scores = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    shares = scores - torch.logsumexp(scores, dim=1, keepdim=True)
    same = (labels[:, None] == labels[None]) & ~itself
    having = same.any(dim=1)
    return -(shares.masked_fill(~same, 0.0).sum(dim=1)[having] / same.sum(dim=1)[having]).mean()


def sampled(states: Any, targets: Sequence[int]) -> Any:
    """SetFit's loss: the first half of the texts against the second, one by one."""
    import torch

    unit, labels, half = torch.nn.functional.normalize(states, dim=-1), torch.tensor(targets), len(targets) // 2
    return ((unit[:half] * unit[half:]).sum(-1) - (labels[:half] == labels[half:]).float()).square().mean()


def pairs(rows: Sequence[Any], steps: int, batch: int, generator: Any) -> list[list[Any]]:
    """As many pairs of one label as of two, none twice before all were drawn, in an order by chance."""
    count, half = len(rows), batch // 2
    both = [(i, j) for i in range(count) for j in range(i, count)]
    kinds: list[list[tuple[int, int]]] = [[], []]
    for i, j in both:
        kinds[rows[i].target == rows[j].target].append((i, j))
    drawn = []
    for kind in kinds:
        order = generator.permutation(len(kind))
        drawn += [kind[order[turn % len(kind)]] for turn in range(steps * half // 2)]
    mixed = [drawn[turn] for turn in generator.permutation(len(drawn))]
    parts = [mixed[step * half : (step + 1) * half] for step in range(steps)]
    return [[rows[i] for i, _ in part] + [rows[j] for _, j in part] for part in parts]


class Taps:
    """The mean of the last states and what the head reads, of one batch after the other."""

    def __init__(self, model: Any, labels: int) -> None:
        from edgepeft.train.cached import blocks_of
        from edgepeft.train.frozen_features import head_of

        self.head, self._seen = head_of(model, labels), {}
        blocks_of(model)[1][-1].register_forward_hook(lambda *_: self._seen.update(states=_[-1]))
        model.register_forward_pre_hook(lambda *_: self._seen.update(mask=_[-1]["attention_mask"]), with_kwargs=True)

    def read(self, run: Any, rows: Sequence[Any]) -> dict[str, Any]:
        from edgepeft.train.frozen_features import entering

        read = entering(run, rows, self.head)
        states = self._seen["states"][0] if isinstance(self._seen["states"], tuple) else self._seen["states"]
        mask = self._seen["mask"][..., None].float()
        return {"mean": (states * mask).sum(1) / mask.sum(1), "read": read}


def trained(bench: Any, recipe: Recipe, seed: int) -> tuple[Any, Taps]:
    """A network after the recipe's steps, as a run that has ended."""
    import torch

    from edgepeft.train.contrast import pair_loss, shuffled_batches
    from edgepeft.train.even_attention import attend_evenly, key_site
    from edgepeft.train.methods import Settings
    from edgepeft.train.steps import Run
    from edgepeft.train.tune_stages import upper_half

    targets: Any = upper_half(bench) if recipe.upper else "all-linear"
    model: Any = bench.fresh(Settings(recipe.method, targets=targets, learning_rate=recipe.rate), seed)
    if recipe.even:
        attend_evenly(model, key_site(bench) or "")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = recipe.dropout
    losses: dict[str, Callable[..., Any]] = {
        "all pairs": pair_loss,
        "sampled pairs": sampled,
        "supervised": supervised,
    }
    taps = Taps(model, len(bench.problem.labels))

    def loss(run: Any, rows: Sequence[Any]) -> Any:
        states = taps.read(run, rows)
        places = ["mean", "read"] if recipe.where == "both" else [recipe.where]
        return sum(losses[recipe.loss](states[each], [row.target for row in rows]) for each in places) / len(places)

    run = Run(
        model,
        bench.base.tokenizer,
        bench.rows,
        batch_size=recipe.batch,
        learning_rate=recipe.rate,
        total_steps=max(1, recipe.steps),
        seed=seed,
        threads=1,
        loss_of=loss,
        epoch_of=lambda rows, size, generator: (
            pairs(rows, recipe.steps, size, generator)
            if recipe.loss == "sampled pairs"
            else shuffled_batches(rows, size, generator)
        ),
        bf16=recipe.bf16,
    )
    with run:
        if not recipe.dropout:
            run.keep_states()
        run.advance(recipe.steps)
    return run, taps


def judged(bench: Any, run: Any, taps: Taps, seed: int) -> dict[str, float]:
    """Accuracies on the held-out rows."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from edgepeft.train.batches import sorted_batches
    from edgepeft.train.frozen_features import solve_head
    from edgepeft.train.tune_stages import FEW_STRENGTH

    found: dict[str, list[Any]] = defaultdict(lambda: [None] * (len(bench.rows) + len(bench.held)))
    rows = [*bench.rows, *bench.held]
    if run.cached_layers:
        run.keep_states(bench.held)
    run.model.eval()
    with torch.no_grad():
        for places, part in sorted_batches(rows, 32):
            for name, states in taps.read(run, part).items():
                for place, state in zip(places, states.numpy(), strict=True):
                    found[name][place] = state
    count, truth = len(bench.rows), np.array([row.target for row in rows])
    means = np.stack(found["mean"])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    solver = LogisticRegression(max_iter=1000).fit(means[:count], truth[:count])
    read = np.stack(found["read"])
    labels, said = len(bench.problem.labels), {"means": float((solver.predict(means[count:]) == truth[count:]).mean())}
    for strength in (FEW_STRENGTH, 0.1, 1.0):
        weight, bias = solve_head(read[:count], truth[:count].tolist(), labels, strength, seed)
        right = float(((read[count:] @ weight.T + bias).argmax(axis=1) == truth[count:]).mean())
        said["ships" if strength == FEW_STRENGTH else f"ships, C={strength:g}"] = right
    return said


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Accuracies of each draw, and their mean."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        found[f"{line['what']} ({line['labels']} of a label, {line['source']})"][line["draw"]] = line
    told = []
    for what, draws in found.items():
        for kind in ("means", "ships"):
            each = " ".join(f"{draws[draw][kind]:.3f}" for draw in sorted(draws))
            told.append(f"{np.mean([line[kind] for line in draws.values()]):.4f}  {kind}: {each}  {what}")
        told.append(f"        CPU seconds {np.mean([line['cpu'] for line in draws.values()]):.0f}")
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", default="0,1,2,3")
    parser.add_argument("--source", default="reviews")
    parser.add_argument("--labels", type=int, default=16)
    parser.add_argument("--only", help="settings of these names, with ; between them")
    parser.add_argument("--bf16", action="store_true", help="steps compute in bfloat16 (adapters)")
    given = parser.parse_args()
    from edgepeft.demo.assets import minilm

    if not (given.out / "data").is_dir():
        write_data(given.out / "data")
    open_base(str(minilm()), str(given.out / "data"))
    whole = _bench(given.source)
    targets = np.array([row.target for row in whole.rows])
    file = given.out / "causes.jsonl"
    names = given.only.split(";") if given.only else list(RECIPES)
    for draw in map(int, given.draws.split(",")):
        chosen = _chosen(targets, draw, given.labels, True)
        bench = replace(whole, rows=tuple(whole.rows[place] for place in chosen), known={})
        for name in names:
            recipe = replace(RECIPES[name], bf16=given.bf16 and RECIPES[name].method != "full")
            key = {"source": given.source, "draw": draw, "labels": given.labels, "what": name, **asdict(recipe)}
            known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
            if any(key.items() <= line.items() for line in known):
                continue
            start = time.process_time()
            run, taps = trained(bench, recipe, draw)
            cpu = time.process_time() - start
            line = {**key, **judged(bench, run, taps, draw), "cpu": cpu, "loss": float(np.mean(run.losses[-3:] or [0]))}
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            print(
                f"draw {draw}: means {line['means']:.3f}, ships {line['ships']:.3f}, {cpu:.0f} s of CPU: {name}",
                flush=True,
            )
    print(table([json.loads(line) for line in file.read_text().splitlines()]))


if __name__ == "__main__":
    sys.exit(main())
