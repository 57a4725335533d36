"""SetFit on the draws of few labels that ``training_sweep.py few`` trains on, in an environment of its own.

    python benchmarks/training_sweep.py draws OUT --labels 16 --seeds 5
    python -m venv setfit && setfit/bin/pip install setfit     # 1.2.0, with sentence-transformers 6.2
    setfit/bin/python benchmarks/few_setfit.py OUT BASE
    python benchmarks/training_sweep.py summary OUT

Each result is a line of OUT/few.jsonl, beside those of edgepeft; what is there already is not done again. SetFit as its makers have
it: all weights of the encoder are trained on pairs of texts (``num_iterations`` 20: for each text 20 pairs of one label and 20 of
two), batches of 16, one epoch, 2e-5; then logistic regression on the normed means of its last states. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

WHAT = "few: SetFit, {}"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def accuracy(base: Path, train: list[dict[str, Any]], held: list[dict[str, Any]], seed: int, iterations: int) -> float:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    words = Transformer(str(base), max_seq_length=64)
    pooling = Pooling(words.get_embedding_dimension(), "mean")
    body = SentenceTransformer(modules=[words, pooling, Normalize()], device="cpu")
    labels = sorted({row["label"] for row in train})
    model = SetFitModel(model_body=body, model_head=LogisticRegression(), labels=labels)
    if iterations:
        data = Dataset.from_list([{"text": row["text"], "label": labels.index(row["label"])} for row in train])
        arguments = TrainingArguments(
            output_dir="/tmp/setfit-out",
            batch_size=16,
            num_epochs=1,
            num_iterations=iterations,
            seed=seed,
            save_strategy="no",
            report_to="none",
        )
        Trainer(model=model, args=arguments, train_dataset=data).train()
    else:
        model.model_head.fit(model.encode([row["text"] for row in train]), [labels.index(r["label"]) for r in train])
    said = model.predict([row["text"] for row in held], as_numpy=True)
    names = [labels[int(each)] if not isinstance(each, str) else each for each in said]
    return sum(name == row["label"] for name, row in zip(names, held, strict=True)) / len(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("base", type=Path, help="MiniLM's folder")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9, help="no training starts after so many")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    began = time.time()
    file = given.out / "few.jsonl"
    what = WHAT.format(f"{given.iterations} pairs of each kind a text")
    for draw in sorted((given.out / "draws").glob("*.jsonl"), key=lambda path: path.stem.split("-")[1]):
        source, seed, labels = draw.stem.split("-")
        key = {"source": source, "seed": int(seed), "rows": int(labels), "few": True, "what": what, "steps": 0}
        known = rows_of(file) if file.is_file() else []
        if any(key.items() <= row.items() for row in known) or time.time() - began > given.seconds:
            continue
        start, cpu = time.perf_counter(), time.process_time()
        found = accuracy(
            given.base,
            rows_of(draw),
            rows_of(given.out / "data" / f"{source}.heldout.jsonl"),
            int(seed),
            given.iterations,
        )
        row = {**key, "accuracy": found, "trained": 0, "seconds": time.perf_counter() - start}
        row["cpu"] = time.process_time() - cpu
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main())
