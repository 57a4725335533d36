"""Half precision by emulation: sizes, labels and logits of an encoder, greedy tokens of a language model.

    python benchmarks/halves.py demo-out                    # after `edgepeft demo`
    python benchmarks/halves.py --language LM [--variant q4f16] [--tokens 32] [--prompts 6]   # a bundle with fp32 (and q4)
    python benchmarks/halves.py --language LM --device webgpu     # there, through ONNX Runtime's plugin (edgepeft[webgpu])

ONNX Runtime's CPU widens float16 over whole stretches of a graph, so running the file says little. The planned graph is run in
float32 with every number rounded as float16 would at each edge, which is also what judges a variant before it is written.
fp32 stands for PEFT; q4f16 is compared with q4 with activations in float32. With ``--device webgpu`` the variant's own file runs
on the GPU, or on what stands for one, prompts 16 tokens at a time.

Where two answers part, it says at which margin: how far apart the two likeliest tokens are without halves, and how far halves
moved the difference of the two that were chosen. A token whose margin is less than that is one that half precision cannot tell.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
from edgepeft.pipeline._half_runs import GraphFile, HalfRuns, data_feeds
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
    feeds, _ = data_feeds(bundle, {}, 64)
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


#: What answers: an adapter, a prompt's tokens and a count → the likeliest tokens, and the logits behind each place.
Answer = Callable[[str | None, list[int], int], tuple[list[int], list[np.ndarray]]]


def through_the_cache(runs: HalfRuns, bundle: Bundle) -> Answer:
    """Answers of graphs that are run by hand."""
    names = {value.name for value in bundle.manifest.inputs}

    def answer(adapter: str | None, tokens: list[int], count: int) -> tuple[list[int], list[np.ndarray]]:
        runs.use(adapter)
        found: list[int] = []
        logits: list[np.ndarray] = []
        feeds = feeds_of(bundle, tokens)
        while len(found) < count:
            outputs = runs.forward(feeds)
            logits.append(np.array(outputs["logits"][0, -1], np.float64))
            found.append(int(logits[-1].argmax()))
            width = len(tokens) + len(found)
            step = {
                "input_ids": np.array([found[-1:]]), "attention_mask": np.ones((1, width), np.int64),
                "position_ids": np.array([[width - 1]]),
            }  # fmt: skip
            feeds = {**{name: array for name, array in step.items() if name in names}, **as_pasts(outputs)}
        return found, logits

    return answer


#: Tokens of a prompt that are fed at once where a GPU computes.
PIECE = 16


def on_a_gpu(model: runtime.Runtime) -> Answer:
    """Answers of a variant as it is, on the GPU."""

    def answer(adapter: str | None, tokens: list[int], count: int) -> tuple[list[int], list[np.ndarray]]:
        decoder = model.adapter(adapter).decoder(1, len(tokens) + count)
        for start in range(0, len(tokens), PIECE):
            row = decoder.prefill([tokens[start : start + PIECE]])[0]
        found: list[int] = []
        logits: list[np.ndarray] = []
        while len(found) < count:
            logits.append(row.astype(np.float64))
            found.append(int(logits[-1].argmax()))
            row = decoder.step(found[-1:])[0]
        return found, logits

    return answer


def compare(half: Answer, single: Answer, bundle: Bundle, asked: argparse.Namespace, name: str) -> None:
    """Greedy tokens after a few prompts, of the base and every adapter; where they part, at which margin."""
    count, prompts = asked.tokens, PROMPTS[: asked.prompts]
    tokens = Tokens(bundle, bundle.text_of(None))
    for adapter in (None, *bundle.manifest.adapters):
        equal, said, moved = 0, [], []
        for prompt in prompts:
            ids = tokens.encode(prompt, special=False)
            (found, halves), (expected, exact) = (answers(adapter, ids, count) for answers in (half, single))
            part = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), count)
            equal += part == count
            moved += [np.abs(h - e).max() for h, e in zip(halves[: part + 1], exact[: part + 1], strict=True)]
            if part < count:
                mine, theirs = found[part], expected[part]
                gap = exact[part][theirs] - exact[part][mine]
                shift = gap - (halves[part][theirs] - halves[part][mine])
                said.append(f"token {part}: {gap:.3f} apart, moved by {shift:.3f}")
        who = f"{name}, {adapter or 'the base'}"
        print(
            f"{who}: {equal} of {len(prompts)} answers of {count} tokens equal; logits move by {np.median(moved):.3f}"
        )
        for line in said:
            print(f"  others part at {line}", flush=True)


def language(bundle: Bundle, asked: argparse.Namespace) -> None:
    """Every variant in half precision against the one that it was made of."""
    for name, variant in HALVES.items():
        if variant not in bundle.manifest.variants or name not in asked.variant:
            continue
        if asked.device == "webgpu":
            with (
                runtime.open(bundle.path, variant=name, device="webgpu") as half,
                runtime.open(bundle.path, variant=variant, device="webgpu") as single,
            ):
                print(half.placement)
                compare(on_a_gpu(half), on_a_gpu(single), bundle, asked, f"{name} on WebGPU")
            continue
        with emulated(bundle, variant) as (half_runs, single_runs):
            compare(
                through_the_cache(half_runs, bundle),
                through_the_cache(single_runs, bundle),
                bundle,
                asked,
                f"{name}, emulated",
            )


def main() -> None:
    """Parse and measure a copy of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", help="what `edgepeft demo` made")
    parser.add_argument("--language", type=Path, help="a language model's bundle")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--variant", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--device", choices=["emulated", "webgpu"], default="emulated")
    parser.add_argument("--kept", action="store_true", help="take the bundle's own variants in half precision")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for place, source in enumerate(filter(None, (asked.demo and asked.demo / "bundle", asked.language))):
            own = Path(shutil.copytree(source, Path(scratch) / str(place)))
            for variant, of in HALVES.items():
                if asked.kept and variant in read_bundle(own).manifest.variants:
                    continue
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
