"""Half precision by emulation: sizes, labels and logits of an encoder, greedy tokens of a language model.

    python benchmarks/halves.py demo-out                    # after `edgepeft demo`
    python benchmarks/halves.py --language LM [--variant q4f16] [--tokens 32] [--prompts 6]   # a bundle with fp32 (and q4)

ONNX Runtime's CPU widens float16 over whole stretches of a graph, so running the file says little. The planned graph is run in
float32 with every number rounded as float16 would at each edge, which is also what judges a variant before it is written.
fp32 stands for PEFT; q4f16 is compared with q4 with activations in float32.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepeft import runtime
from edgepeft.bundle import Bundle, read_bundle
from edgepeft.bundle.cache_names import as_pasts
from edgepeft.data import read_examples
from edgepeft.pipeline import _halves, quantize
from edgepeft.pipeline._calibration_runs import feeds_of
from edgepeft.pipeline._half_runs import GraphFile, HalfRuns, text_feeds
from edgepeft.quantize.halves.plan import plan_halves
from edgepeft.quantize.halves.write import write_emulated
from edgepeft.runtime.generation.tokens import Tokens

#: Variants in half precision, and those that they are made of.
HALVES = {"fp16": "fp32", "q4f16": "q4"}
PROMPTS = (
    "The capital of France is", "def fibonacci(n):", "My laptop does not start.", "It is a truth universally acknowledged",
    "To boil an egg,", "The three laws of",
)  # fmt: skip


@contextmanager
def emulated(bundle: Bundle, variant: str) -> Iterator[tuple[HalfRuns, HalfRuns]]:
    """The variant in float32, and as float16 rounds it; what was planned is printed."""
    entry = bundle.manifest.variants[variant]
    files = [bundle.file(file) for file in (entry.file, entry.decoder_file) if file is not None]
    feeds, _ = text_feeds(bundle, {}, 64)
    with _halves._Work(files) as work:
        _, largest = _halves._measured(bundle, work, feeds, print)
        graphs = []
        for place, prepared in enumerate(work.prepared):
            cache = bundle.manifest.task == "text-generation"
            plan = plan_halves(
                ir.load(prepared).graph, work.floats[place], largest[place], _halves._slots(bundle), cache=cache
            )
            print(f"{prepared.name}: {len(plan.islands)} islands of {plan.total} nodes ({plan.share:.1%})")
            for name, reason in plan.islands.items():
                print(f"  {name}: {reason}")
            target = work.path(prepared, "emulated")
            write_emulated(prepared.with_name(f"{prepared.stem}_exact.onnx"), target, work.floats[place], plan)
            graphs.append(GraphFile(target))
        yield HalfRuns(bundle, [GraphFile(file) for file in work.exact]), HalfRuns(bundle, graphs)


def encoder(demo: Path, bundle: Bundle) -> None:
    """Labels and logits of held-out rows."""
    encode = runtime.open(bundle.path, variant="fp32").encode
    same = rows = 0
    worst = 0.0
    with emulated(bundle, "fp32") as (single, half):
        for name in bundle.manifest.adapters:
            texts = sorted(read_examples(demo / "data" / f"{name}.heldout.jsonl").texts, key=len)
            for start in range(0, len(texts), 32):
                inputs = encode(texts[start : start + 32])
                found, expected = (runs.use(name).forward(inputs)["logits"] for runs in (half, single))
                same += int((found.argmax(1) == expected.argmax(1)).sum())
                rows += len(found)
                worst = max(worst, float(np.abs(found - expected).max()))
    print(f"fp16: {same} of {rows} labels, logits within {worst:.1e}")


def greedy(runs: HalfRuns, bundle: Bundle, tokens: list[int], count: int) -> list[int]:
    """The likeliest tokens, through the graph's cache."""
    found: list[int] = []
    feeds = feeds_of(bundle, tokens)
    names = {value.name for value in bundle.manifest.inputs}
    while len(found) < count:
        outputs = runs.forward(feeds)
        found.append(int(outputs["logits"][0, -1].argmax()))
        width = len(tokens) + len(found)
        step = {
            "input_ids": np.array([found[-1:]]), "attention_mask": np.ones((1, width), np.int64),
            "position_ids": np.array([[width - 1]]),
        }  # fmt: skip
        feeds = {**{name: array for name, array in step.items() if name in names}, **as_pasts(outputs)}
    return found


def language(bundle: Bundle, asked: argparse.Namespace) -> None:
    """Greedy tokens after a few prompts, of the base and every adapter."""
    count, prompts = asked.tokens, PROMPTS[: asked.prompts]
    for name, variant in HALVES.items():
        if variant not in bundle.manifest.variants or name not in asked.variant:
            continue
        tokens = Tokens(bundle, bundle.text_of(None))
        with emulated(bundle, variant) as (single, half):
            for adapter in (None, *bundle.manifest.adapters):
                equal, first = 0, []
                for prompt in prompts:
                    ids = tokens.encode(prompt, special=False)
                    found, expected = (greedy(runs.use(adapter), bundle, ids, count) for runs in (half, single))
                    equal += found == expected
                    first.append(
                        next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), count)
                    )
                who = f"{name}, {adapter or 'the base'}"
                print(f"{who}: {equal} of {len(prompts)} answers of {count} tokens equal; others from {first}")


def main() -> None:
    """Parse and measure a copy of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", help="what `edgepeft demo` made")
    parser.add_argument("--language", type=Path, help="a language model's bundle")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--variant", nargs="+", choices=HALVES, default=list(HALVES))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for place, source in enumerate(filter(None, (asked.demo and asked.demo / "bundle", asked.language))):
            own = Path(shutil.copytree(source, Path(scratch) / str(place)))
            for variant, of in HALVES.items():
                if of not in read_bundle(own).manifest.variants or variant not in asked.variant:
                    continue
                done = quantize(own, variant, replace=True, announce=print)
                print(
                    f"{variant}: {done.bytes_after / 1e6:.1f} MB, {done.bytes_after / done.bytes_before:.3f} of {of}'s"
                )
            bundle = read_bundle(own)
            language(bundle, asked) if bundle.manifest.writes else encoder(asked.demo, bundle)


if __name__ == "__main__":
    main()
