"""How time and memory of ``edgepeft quantize --variant q4`` grow with a model: CPU seconds a million weights, peak memory.

    python benchmarks/quantize_growth.py WORK --size 135m 0.5b 1b [--layers N] [--tokens N] [--only everything] [--forget]

A checkpoint of random numbers in a published shape (``scale.py``) is exported in fp32 with a slot at every linear layer, and
quantized in a process of its own, with other options each time:

    default          what the command does by itself, the table against fp32 included
    everything       --head-bits 8 --heal 8
    not measured     --head-bits 8 --heal 8 --no-measure
    5.5 bits         --bits 5.5: every matrix is measured by itself, then fitted for the bits it gets

All sizes read the same text, one token a byte, of which four fifths are fitted to. Seconds are those of all cores together
(``taskset -c 0`` for one thread); memory is the process's own (``RssAnon``), sampled twenty times a second. ``--layers`` cuts a
shape to its first layers, where a machine has no time for all: the difference of two such runs is what a layer takes. Random
numbers say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from scale import SHAPES, measured, weights, write_model

from edgepeft.pipeline._calibration_runs import SHIPPED

#: Options of ``quantize --variant q4`` by the name of a row.
ROWS: dict[str, list[str]] = {
    "default": [],
    "everything": ["--head-bits", "8", "--heal", "8"],
    "not measured": ["--head-bits", "8", "--heal", "8", "--no-measure"],
    "5.5 bits": ["--bits", "5.5"],
}


def exported(folder: Path, config: dict[str, Any]) -> Path:
    """A bundle of that shape in fp32, made once."""
    bundle = folder / "bundle"
    if not bundle.exists():
        write_model(folder / "model", config)
        command = ["export", "--model", str(folder / "model"), "--task", "text-generation", "--slots", "all-linear"]
        run = measured([[*command, "--out", str(bundle)]], bundle, None, folder / "export.log")
        print(f"{folder.name}: exported in {run.cpu_s:.0f} CPU s with {run.anonymous_mb:.0f} MB of its own", flush=True)
    return bundle


def main() -> None:
    """Parse, write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="A folder outside the repository with room for what is written.")
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=["135m", "0.5b"])
    parser.add_argument("--layers", type=int, help="Of each shape; all by default.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--tokens", type=int, default=2560, help="Of the text; 2,048 of 2,560 are fitted to.")
    parser.add_argument("--forget", action="store_true", help="Remove what was written of a size when it was measured.")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked.work.mkdir(parents=True, exist_ok=True)
    os.environ["EDGEPEFT_CACHE"] = str(asked.work / "cache")  # what a matrix is worth is measured anew
    text = SHIPPED.read_bytes().decode("utf-8").encode("ascii", "replace")[: asked.tokens].decode("ascii")
    (asked.work / "text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    print("size   options         weights   CPU s  a million weights  anonymous MB  times fp32")
    for size in asked.size:
        config = SHAPES[size] | ({"num_hidden_layers": asked.layers} if asked.layers else {})
        name = f"{size}-{asked.layers}" if asked.layers else size
        folder = asked.work / name
        folder.mkdir(exist_ok=True)
        bundle = exported(folder, config)
        count = sum(math.prod(shape) for shape in weights(config).values())
        for row in asked.only:
            command = [
                "quantize",
                str(bundle),
                "--variant",
                "q4",
                "--replace",
                "--data",
                f"*={asked.work / 'text.jsonl'}",
            ]
            shutil.rmtree(asked.work / "cache", ignore_errors=True)
            run = measured([[*command, *ROWS[row]]], bundle, None, folder / f"{row}.log")
            print(
                f"{name:<6} {row:<14} {count / 1e6:7.0f} M {run.cpu_s:7.1f} {run.cpu_s / count * 1e6:18.2f} "
                f"{run.anonymous_mb:13.0f} {run.anonymous_mb * 1e6 / count / 4:11.2f}",
                flush=True,
            )
        if asked.forget:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
