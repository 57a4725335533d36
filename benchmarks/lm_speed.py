"""Prompt and decoding speed of a causal language model's bundle: our runtime against onnxruntime-genai on the same bundle.

    python benchmarks/lm_speed.py bundle --variant q4 --adapter support --threads 1

Both generate greedily from the same prompt with the same adapter, through what a user calls, text included. Requests alternate
A B B A in one process, seconds apart, and a ratio is taken within each round, so that a busy machine slows both sides. Where
``llama-bench`` is on PATH (or given) and ``--gguf`` names the same weights at 4 bits, it is measured beside them, base only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import click
import numpy as np
import onnxruntime_genai as og

from edgepeft import runtime
from edgepeft.runtime.generation.loop import Plan, Run
from edgepeft.runtime.generation.sampling import Sampling

TEXT = (
    "The harbour was quiet in the early morning, and the first boats had not yet come back. On the long stone wall an old man "
    "mended his nets and told his granddaughter how the town had looked when he was young, before the road was built and the "
    "railway came. There had been forty boats then, he said, each with a name painted in white, and every family knew the "
    "others by the sound of their oars. In winter the storms took the roofs from the sheds, and in summer the children swam out "
    "to the rock that people called the Chair. She listened, counted the gulls, and asked what had become of the boat that "
    "carried her mother's name. He looked at the water for a while before he went on. "
)


@dataclass(frozen=True)
class Request:
    """Time to the first token, tokens a second after it, and the tokens."""

    first_ms: float
    tokens_per_s: float
    tokens: list[int]


class Ours:
    """edgepeft's runtime: what ``Runtime.generate`` does, from tokens."""

    def __init__(self, bundle: str, variant: str, threads: int) -> None:
        self.model = runtime.open(bundle, variant=variant, threads=threads)

    def request(self, adapter: str | None, prompt: list[int], new: int) -> Request:
        plan = Plan(sampling=Sampling(), max_new_tokens=new, stops=(), eos=frozenset())
        generator = self.model.use(adapter).generator
        started = perf_counter()
        decoder = generator.decoder(self.model.snapshot(), 1, len(prompt) + new)
        run = Run(decoder, [prompt], plan, generator.tokens, [adapter], started)
        for _ in run:
            pass
        (found,) = run.results()
        return Request(found.first_token_ms, found.tokens_per_second or 0.0, list(found.tokens))


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

    def request(self, adapter: str | None, prompt: list[int], new: int) -> Request:
        started = perf_counter()
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt) + new, do_sample=False)
        generator = og.Generator(self.model, params)
        if adapter is not None:
            generator.set_active_adapter(self.adapters, adapter)
        stream = self.tokenizer.create_stream()
        generator.append_tokens(prompt)
        tokens: list[int] = []
        first = started
        while len(tokens) < new and not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            stream.decode(token)
            tokens.append(token)
            if len(tokens) == 1:
                first = perf_counter()
        return Request((first - started) * 1e3, (len(tokens) - 1) / (perf_counter() - first), tokens)


def compare(ours: Ours, genai: Genai, adapter: str | None, prompt: list[int], new: int, rounds: int) -> list[str]:
    """Requests in turn, A B B A and B A A B: speeds are medians, ratios are taken within a round."""
    found: dict[str, list[Request]] = {"ours": [], "genai": []}
    ratios: dict[str, list[float]] = {"prompt": [], "decode": []}
    for engine in (ours, genai):
        engine.request(adapter, prompt, 4)
    for number in range(rounds):
        now: dict[str, list[Request]] = {"ours": [], "genai": []}
        for name in ("ours", "genai", "genai", "ours") if number % 2 == 0 else ("genai", "ours", "ours", "genai"):
            now[name].append((ours if name == "ours" else genai).request(adapter, prompt, new))
        mine, theirs = now["ours"], now["genai"]
        ratios["prompt"].append(exp(mean(log(r.first_ms) for r in theirs) - mean(log(r.first_ms) for r in mine)))
        ratios["decode"].append(
            exp(mean(log(r.tokens_per_s) for r in mine) - mean(log(r.tokens_per_s) for r in theirs))
        )
        for name, requests in now.items():
            found[name] += requests
    if any(len(request.tokens) != new for requests in found.values() for request in requests):
        raise click.ClickException("the model ended before the tokens were made; choose fewer --tokens")
    same = len({tuple(request.tokens) for requests in found.values() for request in requests}) == 1
    lines = []
    for what, values in ratios.items():
        speeds = [
            median(len(prompt) * 1e3 / r.first_ms if what == "prompt" else r.tokens_per_s for r in found[name])
            for name in ("ours", "genai")
        ]
        interval = [exp(x) for x in _interval([log(value) for value in values])]
        lines.append(
            f"{what}: ours {speeds[0]:.1f} tokens/s, genai {speeds[1]:.1f}, ratio {median(values):.3f} "
            f"(95 % of the median {interval[0]:.3f} to {interval[1]:.3f}, {rounds} rounds)"
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
@click.option("--rounds", default=10, help="Rounds of four requests.")
@click.option("--llama-bench", default=None, help="llama.cpp's llama-bench, if it is not on PATH.")
@click.option("--gguf", default=None, help="The same weights at 4 bits, for llama-bench.")
def main(
    bundle: str, variant: str, adapter: tuple[str, ...], threads: int, context: int, tokens: int, rounds: int,
    llama_bench: str | None, gguf: str | None,
) -> None:  # fmt: skip
    ours, genai = Ours(bundle, variant, threads), Genai(bundle, variant, threads)
    prompt = (ours.model.generator.tokens.encode(TEXT * (1 + context // 100), special=True))[:context]
    for name in (None, *adapter):
        for line in compare(ours, genai, name, prompt, tokens, rounds):
            print(f"{threads} threads, {name or '(base)'}, {context} tokens of context, {line}", flush=True)
    binary = llama_bench or shutil.which("llama-bench")
    if binary is None or gguf is None:
        print("llama.cpp: not measured (needs llama-bench and --gguf)")
    else:
        at_prompt, at_decode = _llama(binary, gguf, threads, context, tokens)
        print(f"{threads} threads, llama.cpp: prompt {at_prompt:.1f} tokens/s, decode {at_decode:.1f}")


if __name__ == "__main__":
    main()
