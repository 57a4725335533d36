"""Settings of classifiers' adapters side by side on MiniLM and VADER's four sources, in many processes, on a GPU if there is one.

    python benchmarks/training_sweep.py methods OUT [--workers N] [--seconds S] [--seeds N]
    python benchmarks/training_sweep.py few OUT [--labels 8,16,32] …
    python benchmarks/training_sweep.py ranks OUT …
    python benchmarks/training_sweep.py draws OUT [--labels 16] …
    python benchmarks/training_sweep.py summary OUT

``methods``: LoRA at several places and rates, from even attention too, IA3, norms, and all weights, on 1,000 sentences of a source.
``ranks``: ranks that a sensitivity map gives, at as many bytes as rank 8 at query and value takes and at half of them.
``draws``: the rows of each draw of ``few`` as files, for other programs (few_setfit.py).
``few``: what `edgepeft tune` may choose from where labels are few, and logistic regression on the means of MiniLM's last states.
Each result is a line of OUT/MODE.jsonl (what is there already is not done again): accuracy on up to 1,000 held-out sentences of
documents that no training saw, after the
last step (no epoch is chosen). A draw is a source and a seed, which picks the rows, the initial weights and the order; all settings
see the same draws. ``summary`` prints means over draws, and differences from the first setting with their standard error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SOURCES = ("reviews", "movies", "tweets", "news")
ROWS, HELD = 1000, 1000
BATCH, LENGTH = 16, 64


@dataclass(frozen=True)
class Job:
    """One training: a setting by name on a draw; ``rows`` are so many, or so many a label where ``few``."""

    source: str
    seed: int
    rows: int
    few: bool
    what: str
    steps: int


def write_data(folder: Path) -> None:
    """Sentences with a polarity of each source: ``SOURCE.train.jsonl`` and ``SOURCE.heldout.jsonl``."""
    from edgepeft.demo.assets import vader
    from edgepeft.demo.vader import read_sentences

    folder.mkdir(parents=True, exist_ok=True)
    sentences = read_sentences(vader())
    for source in SOURCES:
        for name, held in (("train", False), ("heldout", True)):
            rows = [s for s in sentences if s.source == source and s.polarity and s.heldout is held]
            lines = [json.dumps({"text": s.text, "label": s.polarity}) for s in (rows[:HELD] if held else rows)]
            (folder / f"{source}.{name}.jsonl").write_text("\n".join(lines) + "\n")


def candidates(bench: Any) -> dict[str, Any]:
    """Settings by name."""
    from edgepeft.train.even_attention import key_site
    from edgepeft.train.methods import Settings
    from edgepeft.train.trials import Candidate
    from edgepeft.train.tune_stages import upper_half

    site, upper = key_site(bench), upper_half(bench)
    norms = (("modules_to_save", ["LayerNorm"]),)
    found = {
        **{f"full {rate:g}": Candidate(Settings("full", learning_rate=rate)) for rate in (5e-5, 1e-4, 2e-4)},
        **{f"lora qv {rate:g}": Candidate(Settings(learning_rate=rate)) for rate in (1e-3, 3e-3)},
        "ia3 0.01": Candidate(Settings("ia3", learning_rate=1e-2)),
        "ln 0.003": Candidate(Settings("ln", learning_rate=3e-3)),
    }
    for rate in (3e-4, 5e-4, 1e-3, 2e-3, 4e-3):
        every = Settings(targets="all-linear", learning_rate=rate)
        found[f"lora all {rate:g}"] = Candidate(every)
        found[f"lora all + norms {rate:g}"] = Candidate(replace(every, peft=norms))
        found[f"dora all {rate:g}"] = Candidate(replace(every, method="dora"))
        found[f"lora all r32 {rate:g}"] = Candidate(replace(every, rank=32))
        found[f"even dora all {rate:g}"] = Candidate(replace(every, method="dora"), "fine-tune", 0.01, site)
        found[f"even dora upper {rate:g}"] = Candidate(
            replace(every, method="dora", targets=upper), "fine-tune", 0.01, site
        )
    for rate in (3e-4, 7e-4, 1.5e-3):
        small = Settings("dora", targets=upper, learning_rate=rate)
        found[f"few: even dora upper {rate:g}"] = Candidate(small, "fine-tune", 0.01, site)
        found[f"few: contrast lora all {rate:g}"] = Candidate(
            Settings(targets="all-linear", learning_rate=rate), "contrast", 0.01
        )
        found[f"few: even dora all {rate:g}"] = Candidate(replace(small, targets="all-linear"), "fine-tune", 0.01, site)
    for strength in (0.003, 0.01, 0.1):
        frozen = Settings("dora", rank=1, ranks=((site or "", 1),))
        found[f"few: head under even attention, C={strength:g}"] = Candidate(frozen, "features", strength, site)
    return found


#: What ``methods`` trains, the most telling first, and for how many epochs.
METHODS = [
    *[(f"full {rate}", epochs) for epochs in (2, 4) for rate in ("0.0001", "5e-05", "0.0002")],
    *[(f"lora all {rate}", epochs) for epochs in (2, 4) for rate in ("0.001", "0.002", "0.0005")],
    *[(f"even dora all {rate}", epochs) for epochs in (2, 4) for rate in ("0.001", "0.0005", "0.002")],
    *[(f"even dora upper {rate}", epochs) for epochs in (2, 4) for rate in ("0.001", "0.002")],
    *[("lora qv 0.001", 2), ("lora qv 0.003", 2), ("lora qv 0.001", 4), ("lora qv 0.003", 4)],
    *[("lora all + norms 0.001", 2), ("lora all + norms 0.001", 4), ("lora all + norms 0.002", 2)],
    *[("ia3 0.01", 2), ("ln 0.003", 2), ("ia3 0.01", 4), ("ln 0.003", 4)],
    *[("lora all 0.004", 2), ("lora all 0.004", 4), ("dora all 0.001", 2), ("lora all r32 0.0005", 2), ("lora all r32 0.001", 2)],
]  # fmt: skip
#: What ``few`` tries: the setting, and its steps.
MEAN = "few: logistic regression on mean states"
FEW = [
    (MEAN, 0),
    *[(f"few: even dora upper {rate}", steps) for steps in (53, 120) for rate in ("0.0007", "0.0003", "0.0015")],
    *[(f"few: contrast lora all {rate}", 53) for rate in ("0.0003", "0.0007", "0.0015")],
    *[(f"few: head under even attention, C={strength}", 0) for strength in ("0.003", "0.01", "0.1")],
    *[(f"few: even dora all {rate}", 53) for rate in ("0.0003", "0.0007")],
]

#: What ``ranks`` trains for two epochs: uniform ranks, and chosen ones by measure and share of their bytes.
RANKS = [
    (what, 2)
    for rate in ("0.001", "0.003")
    for what in (
        f"ranks uniform {rate}",
        *(f"ranks {name} {share} {rate}" for name in ("gradient", "eva") for share in ("1", "0.5")),
        f"ranks taylor 0.5 {rate}",
        f"ranks fisher 0.5 {rate}",
    )
]

_STATE: dict[str, Any] = {}


def start(base: str, data: str) -> None:
    """Loads the base and all rows in a worker."""
    import torch

    torch.set_num_threads(1)
    _STATE.update(base=base, data=Path(data), known={})


def _bench(source: str) -> Any:
    from edgepeft.data import read_examples
    from edgepeft.train.source import load_rows
    from edgepeft.train.trainer import seeded
    from edgepeft.train.workbench import open_workbench

    if source not in _STATE["known"]:
        files = [_STATE["data"] / f"{source}.{name}.jsonl" for name in ("train", "heldout")]
        rows = load_rows(*map(read_examples, files), text="text", label="label", pair=None)
        with seeded(0, 1):
            _STATE["known"][source] = open_workbench(_STATE["base"], rows, LENGTH)
    return _STATE["known"][source]


def run(job: Job, deadline: float) -> dict[str, Any] | None:
    """Train and judge; nothing once the time is over."""
    import numpy as np

    from edgepeft.train.methods import trainable
    from edgepeft.train.trials import trained

    if time.time() > deadline:
        return None
    whole = _bench(job.source)
    began = time.perf_counter()
    chosen = _chosen(np.array([row.target for row in whole.rows]), job.seed, job.rows, job.few)
    bench = replace(whole, rows=tuple(whole.rows[i] for i in chosen), known={})
    truth = np.array([row.target for row in bench.held])
    if job.what == MEAN:
        right = float((_by_mean_states(bench) == truth).mean())
        return {**asdict(job), "accuracy": right, "trained": 0, "seconds": time.perf_counter() - began}
    candidate = _ranked(bench, job.what, job.seed) if job.what.startswith("ranks") else candidates(bench)[job.what]
    done = trained(bench, candidate, bench.rows, max(1, job.steps), BATCH, job.seed, 1)
    with done:
        done.keep_states(bench.held)
        logits, loss = done.evaluate(bench.held)
    return {
        **asdict(job),
        "accuracy": float((logits.argmax(axis=1) == truth).mean()),
        "loss": loss,
        "trained": trainable(done.model),
        "seconds": time.perf_counter() - began,
    }


def _chosen(targets: Any, seed: int, rows: int, few: bool) -> list[int]:
    """The places of a draw's rows: so many in all, or of each label where ``few``."""
    import numpy as np

    generator = np.random.default_rng(seed)
    if not few:
        return [int(i) for i in generator.permutation(len(targets))[:rows]]
    return [
        int(i) for label in np.unique(targets) for i in generator.permutation(np.flatnonzero(targets == label))[:rows]
    ]


def write_draws(data: Path, out: Path, seeds: range, labels: list[int], sources: list[str]) -> None:
    """Rows of each draw: ``SOURCE-SEED-LABELS.jsonl``."""
    import numpy as np

    from edgepeft.data import read_examples
    from edgepeft.train.source import load_rows

    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        files = [data / f"{source}.{name}.jsonl" for name in ("train", "heldout")]
        split = load_rows(*map(read_examples, files), text="text", label="label", pair=None)
        targets = np.array(split.problem.targets(split.train))
        for seed in seeds:
            for count in labels:
                mine = split.train.select(_chosen(targets, seed, count, True))
                lines = [
                    json.dumps({"text": t, "label": n}) for t, n in zip(mine.texts, mine.labels or (), strict=True)
                ]
                (out / f"{source}-{seed}-{count}.jsonl").write_text("\n".join(lines) + "\n")


def _ranked(bench: Any, what: str, seed: int) -> Any:
    """Uniform or chosen ranks, as ``edgepeft train --modules auto`` sets them."""
    from edgepeft.train.allocation import allocate, byte_costs, uniform_cost
    from edgepeft.train.methods import Settings
    from edgepeft.train.sensitivity import measure_sites
    from edgepeft.train.trials import Candidate

    _, measure, *more = what.split()
    settings = Settings(rank=8, alpha=16, learning_rate=float(more[-1]))
    if measure != "uniform":
        sites = measure_sites(bench, seed=seed, threads=1)
        budget = int(float(more[0]) * uniform_cost(sites, ("query", "value"), 8, byte_costs(sites)))
        ranks = allocate(sites, budget, byte_costs(sites), measure=measure)  # type: ignore[arg-type] # one of its names
        settings = replace(settings, ranks=tuple(ranks.items()))
    return Candidate(settings)


def _by_mean_states(bench: Any) -> Any:
    """What logistic regression says of the held rows, from means of the last states over the tokens, normed."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    from edgepeft.train.batches import Collator, sorted_batches
    from edgepeft.train.device import training_device

    device = training_device()
    encoder, collate = bench.base.model.base_model.to(device).eval(), Collator(bench.base.tokenizer, device)

    def pooled(rows: Any) -> Any:
        found: list[Any] = [None] * len(rows)
        with torch.no_grad():
            for places, part in sorted_batches(rows, 64):
                batch = collate(part)
                batch.pop("labels")
                mask = batch["attention_mask"][..., None]
                states = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
                for place, state in zip(
                    places, torch.nn.functional.normalize(states, dim=-1).cpu().numpy(), strict=True
                ):
                    found[place] = state
        return np.stack(found)

    solver = LogisticRegression(max_iter=1000)
    return solver.fit(pooled(bench.rows), [row.target for row in bench.rows]).predict(pooled(bench.held))


def jobs(mode: str, seeds: range, labels: list[int], sources: list[str]) -> list[Job]:
    """All trainings, seed by seed, so that whatever is done in time is balanced."""
    if mode in {"methods", "ranks"}:
        per_epoch = -(-ROWS // BATCH)
        return [
            Job(source, seed, ROWS, False, what, epochs * per_epoch)
            for seed in seeds
            for what, epochs in (METHODS if mode == "methods" else RANKS)
            for source in sources
        ]
    return [
        Job(source, seed, count, True, what, steps)
        for seed in seeds
        for count in labels
        for what, steps in FEW
        for source in sources
    ]


def summary(file: Path) -> str:
    """Means over draws, as a Markdown table a number of rows."""
    import numpy as np

    found: dict[int, dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found[row["rows"]][row["what"], row["steps"]][row["source"], row["seed"]] = row
    lines = []
    for count, settings in sorted(found.items()):
        first = next(iter(settings))
        reference = {draw: row["accuracy"] for draw, row in settings[first].items()}
        lines += [f"\n{count} rows{' a label' if first[0].startswith('few') else ''}\n"]
        lines += [
            f"| setting | steps | {' | '.join(SOURCES)} | mean | minus the first (standard error) | draws | trained | s |"
        ]
        lines += [f"| --- | ---: |{' ---: |' * (len(SOURCES) + 5)}"]
        for (what, steps), draws in settings.items():
            by_source = [
                np.mean([r["accuracy"] for (s, _), r in draws.items() if s == source] or [np.nan]) for source in SOURCES
            ]
            changes = [row["accuracy"] - reference[draw] for draw, row in draws.items() if draw in reference]
            error = np.std(changes, ddof=1) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
            cells = [f"{value:.3f}" for value in by_source]
            mean, change = (
                np.mean([r["accuracy"] for r in draws.values()]),
                float(np.mean(changes)) if changes else float("nan"),
            )
            size = next(iter(draws.values()))["trained"]
            seconds = float(np.median([r["seconds"] for r in draws.values()]))
            cells += [f"{mean:.4f}", f"{change:+.4f} ({error:.4f})", str(len(draws)), str(size), f"{seconds:.1f}"]
            lines.append(f"| {what} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["methods", "few", "ranks", "draws", "data", "summary"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="no training starts after so many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--labels", default="8,16,32")
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--only", help="settings whose names hold this, or one of several with ; between them")
    parser.add_argument("--data", type=Path, help="what `data` wrote; by default made in OUT")
    parser.add_argument("--base", help="MiniLM's folder; by default the pinned one")
    given = parser.parse_args()
    if given.mode == "summary":
        for file in sorted(given.out.glob("*.jsonl")):
            print(summary(file))
        return
    deadline = time.time() + given.seconds
    data = given.data or given.out / "data"
    if given.data is None and not data.is_dir():
        write_data(data)
    if given.mode == "data":
        return
    if given.mode == "draws":
        seeds, labels = range(given.first, given.first + given.seeds), [int(n) for n in given.labels.split(",")]
        write_draws(data, given.out / "draws", seeds, labels, given.sources.split(","))
        return
    if given.base is None:
        from edgepeft.demo.assets import minilm

        given.base = str(minilm())
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = range(given.first, given.first + given.seeds)
    mine = jobs(given.mode, seeds, [int(n) for n in given.labels.split(",")], given.sources.split(","))
    mine = [job for job in mine if given.only is None or any(part in job.what for part in given.only.split(";"))]
    file = given.out / f"{given.mode}.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    mine = [job for job in mine if not any(asdict(job).items() <= row.items() for row in known)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    done = 0
    with (
        file.open("a") as lines,
        ProcessPoolExecutor(
            given.workers, mp_context=context, initializer=start, initargs=(given.base, str(data))
        ) as pool,
    ):
        for future in as_completed([pool.submit(run, job, deadline) for job in mine]):
            try:
                row = future.result()
            except Exception as error:  # one setting that cannot be trained must not end a long sweep
                print(f"failed: {error!r}", file=sys.stderr, flush=True)
                continue
            if row is not None:
                done += 1
                lines.write(json.dumps(row) + "\n")
                lines.flush()
    print(f"{done} of {len(mine)} trainings")
    print(summary(file))


if __name__ == "__main__":
    sys.exit(main())
