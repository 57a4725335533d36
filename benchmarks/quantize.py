"""What 4 bits cost a language model, by recipe: size, perplexity and divergence from fp32, speed of decoding as a ratio.

    python benchmarks/quantize.py                      # SmolLM2-135M, its weights moved off the grid they were stored on
    python benchmarks/quantize.py --as-shipped         # as the package holds them: numbers that were rounded to 4 bits once
    python benchmarks/quantize.py --model gemma3-270m  # Gemma 3 270M, sizes in the same ratio to its weights
    python benchmarks/quantize.py --tokens 4096        # more of each text (2,048 by default)
    python benchmarks/quantize.py --budget-mb 120 --only '120 MB' --no-speed    # another size, that row alone

The pinned models are de-quantized from 4 bits, so their weights lie on a grid, which some recipes meet exactly. By default uniform
noise of one grid step is added to leave it. Each recipe is made in a bundle of its own from the same fp32 export, calibrated on the
text that ships with edgepeft, and judged on Python's manual and on Emma, windows of 512 tokens, which none was fitted to. Decode
steps (128 tokens of context, one thread) take turns among all recipes; the ratio is to round-to-nearest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.demo import assets
from edgepeft.pipeline import Goal, export, quantize
from edgepeft.pipeline._quality import measure_quality
from edgepeft.runtime.generation.tokens import Tokens

WINDOW, CONTEXT, STEPS = 512, 128, 100
#: Models by name: what fetches each, and how many weights it has.
MODELS: dict[str, tuple[Callable[[], Path], int]] = {
    "smollm2": (assets.smollm2, 134_515_008),
    "gemma3-270m": (assets.gemma3_270m, 268_098_176),
}


def recipes(model: str, budgets: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """Options of ``quantize`` by the name of a row. Sizes are 95 and 110 MB of SmolLM2, of others as many bytes a weight."""
    ratio = MODELS[model][1] / MODELS["smollm2"][1]
    sizes = budgets or [round(ratio * size) for size in (95, 110)]
    return {
        "rtn": {"method": "rtn"},
        "mse": {"method": "mse"},
        "gptq": {},
        "gptq, head 8 bits": {"head_bits": 8},
        "gptq, heal 8": {"heal": 8},
        "gptq, head 8 bits, heal 8": {"head_bits": 8, "heal": 8},
        **{f"{size} MB": {"goal": Goal(bytes=size * 1_000_000)} for size in sizes},
    }


def off_grid(source: Path, target: Path) -> Path:
    """A copy of a checkpoint with uniform noise of one step of a 4-bit grid in every block of 32 numbers of a matrix."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            blocks = tensor.float().reshape(len(tensor), -1, 32)
            step = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / 15
            noisy = blocks + (torch.rand(blocks.shape, generator=generator) - 0.5) * step
            tensors[name] = noisy.reshape(tensor.shape).to(tensor.dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def windows(bundle: Path, tokens: int) -> dict[str, list[list[int]]]:
    """The same part of both texts, in tokens."""
    lines = (assets.pydoc_topics() / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {
        "pydoc": "\n".join(" ".join(str(v) for v in json.loads(line).values()) for line in lines),
        "emma": (assets.austen() / "emma.txt").read_text(encoding="utf-8"),
    }
    tokenizer = Tokens(read_bundle(bundle))
    begin = list(tokenizer.before)  # Gemma's <bos>
    cut = {
        name: tokenizer.encode(text[20_000 : 20_000 + 8 * tokens], special=False)[:tokens]
        for name, text in texts.items()
    }
    return {name: [begin + ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)] for name, ids in cut.items()}


def decode_ratios(bundles: dict[str, Path]) -> dict[str, float]:
    """Median time of a decode step over that of the first recipe, in the same turns."""
    steps = {}
    for name, bundle in bundles.items():
        decoder = runtime.open(bundle, variant="q4", threads=1).base.decoder(1, CONTEXT + STEPS + 8)
        decoder.prefill([[1 + i % 500 for i in range(CONTEXT)]])
        steps[name] = decoder
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(STEPS):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            begin = perf_counter()
            steps[name].step([5])
            times[name].append(perf_counter() - begin)
    first = np.array(next(iter(times.values())))
    return {name: median(np.array(each) / first) for name, each in times.items()}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/quantize"), show_default=True)
@click.option("--as-shipped", is_flag=True, help="Leave the weights on their grid.")
@click.option("--tokens", default=2048, show_default=True, help="Of each text.")
@click.option("--only", multiple=True, metavar="RECIPE", help="Only this row. May be repeated.")
@click.option("--budget-mb", "budgets", multiple=True, type=int, help="A size instead of those two. May be repeated.")
@click.option("--model", "name", type=click.Choice(tuple(MODELS)), default="smollm2", show_default=True)
@click.option("--speed/--no-speed", default=True, help="Time decode steps.")
def main(
    work: Path, as_shipped: bool, tokens: int, only: tuple[str, ...], budgets: tuple[int, ...], name: str, speed: bool
) -> None:
    """Print a table of recipes."""
    kind, rows, fetch = "shipped" if as_shipped else "off-grid", recipes(name, budgets), MODELS[name][0]
    if unknown := set(only) - rows.keys():
        raise click.BadParameter(f"no recipe {', '.join(sorted(unknown))}; there are: {', '.join(rows)}")
    base = work / (kind if name == "smollm2" else f"{name}-{kind}")
    if not (base / "bundle").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        model = fetch() if as_shipped else off_grid(fetch(), base / "model")
        export(model, {}, base / "bundle", slots="all-linear", task="text-generation")
    texts = windows(base / "bundle", tokens)
    bundles: dict[str, Path] = {}
    click.echo(f"{name}, {kind} weights, {tokens} tokens of each text\n")
    click.echo(f"{'recipe':28s} {'MB':>6s} {'s':>5s}  perplexity over fp32, KL divergence, same top token")
    for recipe, options in rows.items():
        if only and recipe not in only:
            continue
        bundle = base / recipe.replace(", ", "-").replace(" ", "")
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(base / "bundle", bundle, copy_function=_link)
        begin = perf_counter()
        done = quantize(bundle, "q4", measure=False, **options)
        seconds = perf_counter() - begin
        found = [f"{done.quantized.share:.1%} of weights"] if done.quantized.share < 0.99 else []
        for text, parts in texts.items():
            (row,) = measure_quality(bundle, "q4", {None: parts})
            change = row.perplexity_after / row.perplexity_before - 1
            error = f" ± {row.divergence_error:.3f}" if row.divergence_error is not None else ""
            found.append(f"{text} {change:+.1%}, {row.divergence:.3f}{error}, {row.same_top:.3f}")
        print(f"{recipe:28s} {done.bytes_after / 1e6:6.1f} {seconds:5.0f}  {'; '.join(found)}", flush=True)
        bundles[recipe] = bundle
    if not speed:
        return
    click.echo("\ndecode step over the first recipe's, median of pairs in one run, one thread:")
    for recipe, ratio in decode_ratios(bundles).items():
        click.echo(f"{recipe:28s} {ratio:.3f}x")


def _link(source: str, target: str) -> str:
    """Large files need no copy: nothing writes into them."""
    Path(target).hardlink_to(source)
    return target


if __name__ == "__main__":
    main()
