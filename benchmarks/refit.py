"""How much of its gain an adapter keeps on 4-bit weights, as it was trained and refitted: SmolLM2-135M, `support` and `austen`.

    python benchmarks/refit.py OUT [--adapter support] [--max-steps N] [--as-shipped] [--budget-mb 110] [--head-bits 8]

Exports the base with slots at every linear layer, trains the demo's adapters on fp32 (those in OUT are used again),
adds them, rounds the base to q4 by GPTQ, and refits each adapter on texts that it was trained on. Perplexities are ONNX
Runtime's, on texts that neither training nor fitting saw: a quarter of the exchanges for `support` (answers alone), Emma
for `austen`. The pinned weights are de-quantized from 4 bits, which `q4` would find again, so uniform noise of one grid
step is added unless --as-shipped.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.data import Examples
from edgepeft.demo import assets
from edgepeft.demo.corpora import NOVELS
from edgepeft.demo.language import HELD_OUT, SETTINGS
from edgepeft.pipeline import Goal, add, export, quantize, refit, remove
from edgepeft.runtime import View
from edgepeft.runtime.generation.tokens import Tokens
from edgepeft.train import train_language_adapter
from edgepeft.validate import read_language_rows
from edgepeft.validate.likelihood import logarithms, row_tokens

sys.path.insert(0, str(Path(__file__).parent))
from quantize import off_grid

WINDOW, TOKENS = 256, 4096
#: Characters of each novel that `austen` is refitted on.
EXCERPT = 30_000

Parts = list[tuple[Sequence[int], int]]


def exchanges(out: Path) -> tuple[Path, Path]:
    """Two files: three quarters of the exchanges to train and fit on, and the others."""
    lines = sorted(set((assets.chatterbot() / "support.jsonl").read_text(encoding="utf-8").splitlines()) - {""})
    random.Random(0).shuffle(lines)
    held = len(lines) // 4
    files = out / "support.train.jsonl", out / "support.heldout.jsonl"
    for file, part in zip(files, (lines[held:], lines[:held]), strict=True):
        file.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
    return files


def held_out(view: View, name: str, out: Path) -> Parts:
    """Tokens, and from which on they are judged."""
    if name == "support":
        return [row_tokens(view, row) for row in read_language_rows(exchanges(out)[1]).rows]
    text = (assets.austen() / f"{HELD_OUT}.txt").read_text(encoding="utf-8")
    ids = Tokens(view.bundle).encode(text, special=False)[:TOKENS]
    return [(ids[at : at + WINDOW], 1) for at in range(0, len(ids), WINDOW)]


def nats(view: View, parts: Parts) -> float:
    """Negative log-likelihood of a token."""
    total = count = 0.0
    for ids, start in parts:
        for place, found in logarithms(view, ids, start - 1):
            wanted = np.asarray(ids[place + 1 : place + 1 + len(found)])
            total -= float(found[np.arange(len(wanted)), wanted].sum())
            count += len(wanted)
    return total / count


def measure(bundle: Path, variant: str, name: str, out: Path) -> tuple[float, float]:
    """Nats a token of the base and of the adapter."""
    with runtime.open(bundle, variant=variant) as model:
        parts = held_out(model.base, name, out)
        return nats(model.base, parts), nats(model.adapter(name), parts)


def trained(name: str, base: Path, out: Path, max_steps: int | None) -> Path:
    """The demo's adapter, trained on ``base``."""
    folder = out / name
    if (folder / "adapter_model.safetensors").is_file():
        return folder
    options = {**SETTINGS[name], "progress": False, **({"max_steps": max_steps} if max_steps else {})}
    options.pop("validation_fraction", None)
    if name == "support":
        train, held = exchanges(out)
        train_language_adapter(base, train, folder, validation=held, **options)
    else:
        novels = out / "novels"
        novels.mkdir(exist_ok=True)
        for novel in NOVELS:
            if novel != HELD_OUT:
                (novels / f"{novel}.txt").write_bytes((assets.austen() / f"{novel}.txt").read_bytes())
        train_language_adapter(
            base, novels, folder, validation=assets.austen() / f"{HELD_OUT}.txt",
            **{**options, "max_validation_tokens": 1024},
        )  # fmt: skip
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", action="append", choices=tuple(SETTINGS))
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--as-shipped", action="store_true")
    parser.add_argument("--budget-mb", type=float)
    parser.add_argument("--head-bits", type=int)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    base = assets.smollm2()
    if not arguments.as_shipped:
        base = out / "base" if (out / "base").is_dir() else off_grid(base, out / "base")
    bundle = out / "bundle"
    if not (bundle / "edgepeft.json").is_file():
        export(base, {}, bundle, slots="all-linear", task="text-generation")
    goal = Goal(bytes=int(arguments.budget_mb * 1e6)) if arguments.budget_mb else None
    # Rounded with no adapter in the bundle, as in every run.
    for name in list(read_bundle(bundle).manifest.adapters):
        remove(bundle, adapter=name)
    done = quantize(bundle, "q4", goal=goal, head_bits=arguments.head_bits, measure=False, replace=True)
    print(f"q4: {done.bytes_after / 1e6:.1f} MB", flush=True)
    for name in arguments.adapter or SETTINGS:
        add(bundle, name, trained(name, base, out, arguments.max_steps), replace=True)
        before, after = measure(bundle, "fp32", name, out)
        rounded, plain = measure(bundle, "q4", name, out)
        data = (
            read_language_rows(exchanges(out)[0])
            if name == "support"
            else Examples(
                tuple(
                    (assets.austen() / f"{novel}.txt").read_text(encoding="utf-8")[EXCERPT : 2 * EXCERPT]
                    for novel in NOVELS
                    if novel != HELD_OUT
                ),
                None,
            )
        )
        (done,) = refit(bundle, "q4", [name], data={name: data}, announce=print)
        fitted = measure(bundle, "q4", name, out)[1]
        print(f"{name}: perplexity on fp32 {np.exp(before):.3f} without, {np.exp(after):.3f} with the adapter")
        for what, found in (("as trained", plain), ("refitted", fitted)):
            print(
                f"  on q4 {np.exp(rounded):.3f} without, {np.exp(found):.3f} with it {what}: "
                f"{(rounded - found) / (before - after):.1%} of its gain in nats over the same base, "
                f"{(before - found) / (before - after):.1%} over the base in fp32"
            )
        print(f"  kept: {done.kept}")


if __name__ == "__main__":
    main()
