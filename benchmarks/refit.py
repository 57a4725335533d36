"""How much of its gain an adapter keeps on 4-bit weights, as it was trained and refitted: SmolLM2-135M, `support` and `austen`.

    python benchmarks/refit.py OUT [--adapter support] [--max-steps N] [--as-shipped] [--budget-mb 110] [--head-bits 8] [--no-refit]

Exports the base with slots at every linear layer, trains the demo's adapters on fp32 (those in OUT are used again),
rounds the base to q4 by GPTQ, adds them, and refits each adapter on texts that it was trained on. Perplexities are ONNX
Runtime's, on texts that neither training nor fitting saw: a quarter of the exchanges for `support` (answers alone), Emma
for `austen`. Errors of what is kept are the jackknife's over exchanges or windows. The pinned weights are de-quantized from 4 bits,
which `q4` would find again, so uniform noise of one grid step is added unless --as-shipped.

Base, adapters and what is measured on fp32 stay in OUT and are used again: call it once for each form of the base.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
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
from edgepeft.validate.language_rows import LanguageRows
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


def losses(view: View, parts: Parts) -> np.ndarray:
    """Negative log-likelihood and tokens of each part, ``[parts, 2]``."""
    found = []
    for ids, start in parts:
        total = count = 0.0
        for place, logarithm in logarithms(view, ids, start - 1):
            wanted = np.asarray(ids[place + 1 : place + 1 + len(logarithm)])
            total -= float(logarithm[np.arange(len(wanted)), wanted].sum())
            count += len(wanted)
        found.append((total, count))
    return np.array(found)


def nats(found: np.ndarray) -> float:
    """Negative log-likelihood of a token."""
    total, count = found.sum(0)
    return float(total / count)


def kept(before: np.ndarray, after: np.ndarray, base: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """The share of the gain from ``before`` to ``after`` that is one from ``base`` to ``found``, and its jackknife error."""

    def share(rows: np.ndarray) -> float:
        one, two, three, four = (nats(each[rows]) for each in (before, after, base, found))
        return (three - four) / (one - two)

    every = np.arange(len(before))
    without = np.array([share(np.delete(every, place)) for place in every])
    return share(every), float(np.sqrt((len(every) - 1) * np.mean((without - without.mean()) ** 2)))


def measure(bundle: Path, variant: str, name: str, out: Path, *, base: bool = True) -> list[np.ndarray]:
    """:func:`losses` of the base, unless it is left out, and of the adapter."""
    with runtime.open(bundle, variant=variant) as model:
        parts = held_out(model.base, name, out)
        views = [model.base, model.adapter(name)] if base else [model.adapter(name)]
        return [losses(view, parts) for view in views]


def on_fp32(bundle: Path, name: str, out: Path) -> list[np.ndarray]:
    """:func:`measure` on fp32, once."""
    file = out / f"{name}.fp32.npy"
    if not file.is_file():
        np.save(file, np.array(measure(bundle, "fp32", name, out)))
    return list(np.load(file))


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
    parser.add_argument(
        "--no-refit", action="store_true", help="measure what is kept as it was trained, and fit nothing"
    )
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
    print(f"q4: {done.bytes_after / 1e6:.1f} MB; {time.process_time():.0f} s of CPU so far", flush=True)
    for name in arguments.adapter or SETTINGS:
        add(bundle, name, trained(name, base, out, arguments.max_steps), replace=True)
        before, after = on_fp32(bundle, name, out)
        rounded, plain = measure(bundle, "q4", name, out)
        print(f"{name}: perplexity on fp32 {shown(before)} without, {shown(after)} with the adapter")
        tell("as trained", before, after, rounded, plain)
        if arguments.no_refit:
            continue
        (done,) = refit(bundle, "q4", [name], data={name: texts_of(name, out)}, announce=print)
        if done.kept:
            tell("refitted", before, after, rounded, *measure(bundle, "q4", name, out, base=False))
        print(f"  kept: {done.kept}; {time.process_time():.0f} s of CPU so far", flush=True)


def texts_of(name: str, out: Path) -> Examples | LanguageRows:
    """What an adapter is refitted on: of what it was trained on."""
    if name == "support":
        return read_language_rows(exchanges(out)[0])
    novels = (novel for novel in NOVELS if novel != HELD_OUT)
    return Examples(
        tuple(
            (assets.austen() / f"{novel}.txt").read_text(encoding="utf-8")[EXCERPT : 2 * EXCERPT] for novel in novels
        ),
        None,
    )


def shown(found: np.ndarray) -> str:
    return f"{np.exp(nats(found)):.3f}"


def tell(what: str, before: np.ndarray, after: np.ndarray, rounded: np.ndarray, found: np.ndarray) -> None:
    shares = [
        f"{share:.1%} ± {error:.1%} of its gain in nats over the {over}"
        for over, base in (("same base", rounded), ("base in fp32", before))
        for share, error in [kept(before, after, base, found)]
    ]
    print(f"  on q4 {shown(rounded)} without, {shown(found)} with it {what}: {', '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
