"""Prompt and decoding speed of a causal language model's bundle: our runtime against onnxruntime-genai on the same bundle.

    python benchmarks/lm_speed.py bundle --variant q4 --adapter support --threads 1

Both generate greedily from the same prompt with the same adapter, through what a user calls, text included. They take turns
in one process, prompt by prompt and token by token, and a ratio is taken within each round, so that a busy machine slows both.
On a busy machine --cpu counts the thread's CPU time instead, which is all there is with one thread.
Where ``llama-bench`` is on PATH (or given) and ``--gguf`` names the same weights at 4 bits, it is measured beside them, base
only.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import json
import shutil
import subprocess
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import mean, median
from time import perf_counter, thread_time

import click
import numpy as np
import onnxruntime_genai as og

from edgepeft import runtime
from edgepeft.runtime.generation.sampling import Sampler, Sampling
from edgepeft.runtime.generation.tokens import TextPieces
from edgepeft.runtime.kernels import UseKernels

TEXT = (
    "The harbour was quiet in the early morning, and the first boats had not yet come back. On the long stone wall an old man "
    "mended his nets and told his granddaughter how the town had looked when he was young, before the road was built and the "
    "railway came. There had been forty boats then, he said, each with a name painted in white, and every family knew the "
    "others by the sound of their oars. In winter the storms took the roofs from the sheds, and in summer the children swam out "
    "to the rock that people called the Chair. She listened, counted the gulls, and asked what had become of the boat that "
    "carried her mother's name. He looked at the water for a while before he went on. "
)


class Ours:
    """edgepeft's runtime: the steps of ``Runtime.generate``, from tokens."""

    def __init__(self, bundle: str, variant: str, threads: int, kernels: UseKernels) -> None:
        self.model = runtime.open(bundle, variant=variant, threads=threads, kernels=kernels)

    def begin(self, adapter: str | None, prompt: list[int], new: int) -> int:
        """Read the prompt; the first token."""
        view = self.model.adapter(adapter)
        self.decoder = view.decoder(1, len(prompt) + new)
        self.sampler = Sampler(Sampling(), 0, prompt)
        self.pieces = TextPieces(view.generator.tokens, prompt, ())
        return self._take(self.decoder.prefill([prompt]))

    def step(self, token: int) -> int:
        """The token after ``token``, decoded to text."""
        return self._take(self.decoder.step([token]))

    def _take(self, logits: np.ndarray) -> int:
        token = self.sampler.pick(logits[0])
        self.pieces.push(token)
        return token


class Genai:
    """onnxruntime-genai on the same files."""

    def __init__(self, bundle: str, variant: str, threads: int) -> None:
        manifest = json.loads((Path(bundle) / "edgepeft.json").read_text(encoding="utf-8"))
        config = og.Config(bundle)
        decoder = {
            "filename": manifest["variants"][variant]["file"],
            "session_options": {"intra_op_num_threads": threads},
        }
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self.model = og.Model(config)
        self.tokenizer = og.Tokenizer(self.model)
        self.adapters = og.Adapters(self.model)
        for name, entry in manifest["adapters"].items():
            self.adapters.load(str(Path(bundle) / entry["onnx_adapter"]), name)

    def begin(self, adapter: str | None, prompt: list[int], new: int) -> int:
        """Read the prompt; the first token."""
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt) + new, do_sample=False)
        self.generator = og.Generator(self.model, params)
        if adapter is not None:
            self.generator.set_active_adapter(self.adapters, adapter)
        self.stream = self.tokenizer.create_stream()
        self.generator.append_tokens(prompt)
        return self.step(0)

    def step(self, token: int) -> int:
        """The next token, decoded to text."""
        self.generator.generate_next_token()
        found = int(self.generator.get_next_tokens()[0])
        self.stream.decode(found)
        return found


def compare(
    ours: Ours, genai: Genai, adapter: str | None, prompt: list[int], new: int, rounds: int, clock: Callable[[], float]
) -> list[str]:
    """In each round both read the prompt twice, A B B A, and then make tokens in turn, A B, B A, A B, …"""
    prompt_ms: list[tuple[float, float]] = []
    token_ms: list[tuple[float, float]] = []
    same = True
    for number in range(rounds + 1):  # the first one warms up
        engines = (ours, genai) if number % 2 else (genai, ours)
        times: dict[object, list[float]] = {ours: [], genai: []}
        last: dict[object, int] = {}
        for engine in (*engines, *engines[::-1]):
            start = clock()
            last[engine] = engine.begin(adapter, prompt, new)
            times[engine].append((clock() - start) * 1e3)
        same &= last[ours] == last[genai]
        steps: dict[object, list[float]] = {ours: [], genai: []}
        for place in range(new - 1):
            for engine in engines if place % 2 else engines[::-1]:
                start = clock()
                last[engine] = engine.step(last[engine])
                steps[engine].append((clock() - start) * 1e3)
            same &= last[ours] == last[genai]
        if number:
            prompt_ms.append((mean(times[ours]), mean(times[genai])))
            token_ms.append((median(steps[ours]), median(steps[genai])))
    lines = []
    for what, pairs, tokens in (("prompt", prompt_ms, len(prompt)), ("decode", token_ms, 1)):
        mine, theirs = (tokens * 1e3 / median(side) for side in zip(*pairs, strict=True))
        ratios = [log(b / a) for a, b in pairs]
        low, high = _interval(ratios)
        lines.append(
            f"{what}: ours {mine:.1f} tokens/s, genai {theirs:.1f}, ratio {exp(median(ratios)):.3f} "
            f"(95 % of the median {exp(low):.3f} to {exp(high):.3f}, {rounds} rounds)"
        )
    return [*lines, f"greedy tokens: {'the same' if same else 'DIFFERENT'}"]


def _interval(values: list[float]) -> tuple[float, float]:
    """A bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, size=(4000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def _llama(binary: str, gguf: str, threads: int, context: int, new: int) -> tuple[float, float]:
    """llama-bench's prompt and decoding tokens a second (decoding at a depth of ``context``)."""
    command = [binary, "-m", gguf, "-t", str(threads), "-p", str(context), "-n", "0", "-r", "3", "-o", "json"]
    prompt = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    command = [
        binary,
        "-m",
        gguf,
        "-t",
        str(threads),
        "-p",
        "0",
        "-n",
        str(new),
        "-d",
        str(context),
        "-r",
        "3",
        "-o",
        "json",
    ]
    decode = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(prompt[0]["avg_ts"]), float(decode[0]["avg_ts"])


@click.command()
@click.argument("bundle")
@click.option("--variant", default="q4")
@click.option("--adapter", multiple=True, help="Adapters to measure beside the base.")
@click.option("--threads", default=1)
@click.option("--context", default=128, help="Tokens of the prompt.")
@click.option("--tokens", default=24, help="Tokens to generate.")
@click.option("--rounds", default=10, help="Rounds of four prompts and twice --tokens tokens.")
@click.option("--cpu", is_flag=True, help="CPU time of one thread in place of time.")
@click.option("--kernels", type=click.Choice(["auto", "require", "off"]), default="auto", help="Our slots' operators.")
@click.option("--llama-bench", default=None, help="llama.cpp's llama-bench, if it is not on PATH.")
@click.option("--gguf", default=None, help="The same weights at 4 bits, for llama-bench.")
def main(
    bundle: str, variant: str, adapter: tuple[str, ...], threads: int, context: int, tokens: int, rounds: int, cpu: bool,
    kernels: UseKernels, llama_bench: str | None, gguf: str | None,
) -> None:  # fmt: skip
    ours, genai = Ours(bundle, variant, threads, kernels), Genai(bundle, variant, threads)
    prompt = (ours.model.generator.tokens.encode(TEXT * (1 + context // 100), special=True))[:context]
    if cpu and threads != 1:
        raise click.UsageError("--cpu counts the time of one thread: --threads 1")
    for name in (None, *adapter):
        for line in compare(ours, genai, name, prompt, tokens, rounds, thread_time if cpu else perf_counter):
            print(f"{threads} threads, {name or '(base)'}, {context} tokens of context, {line}", flush=True)
    binary = llama_bench or shutil.which("llama-bench")
    if binary is None or gguf is None:
        print("llama.cpp: not measured (needs llama-bench and --gguf)")
    else:
        at_prompt, at_decode = _llama(binary, gguf, threads, context, tokens)
        print(f"{threads} threads, llama.cpp: prompt {at_prompt:.1f} tokens/s, decode {at_decode:.1f}")


if __name__ == "__main__":
    main()
