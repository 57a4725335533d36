"""Prompt and decoding speed of a causal language model's bundle: our runtime against onnxruntime-genai on the same bundle.

    python benchmarks/lm_speed.py bundle --variant q4 --adapter support --threads 1 --threads 2

Both generate greedily from the same prompt with the same adapter, through what a user calls, text included. Each measurement is
a fresh process; processes alternate A B B A, and a ratio is taken within each round. Where ``llama-bench`` is on PATH (or given)
and ``--gguf`` names the same weights at 4 bits, it is measured beside them, base only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

TEXT = (
    "The harbour was quiet in the early morning, and the first boats had not yet come back. On the long stone wall an old man "
    "mended his nets and told his granddaughter how the town had looked when he was young, before the road was built and the "
    "railway came. There had been forty boats then, he said, each with a name painted in white, and every family knew the "
    "others by the sound of their oars. In winter the storms took the roofs from the sheds, and in summer the children swam out "
    "to the rock that people called the Chair. She listened, counted the gulls, and asked what had become of the boat that "
    "carried her mother's name. He looked at the water for a while before he went on. "
)


def _prompt(bundle: str, length: int) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(bundle) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokens: list[int] = tokenizer.encode(TEXT * (1 + length // 100)).ids
    return tokens[:length]


def ours(bundle: str, variant: str, adapter: str | None, threads: int, prompt: list[int], new: int) -> dict[str, Any]:
    """One request through edgepeft's runtime."""
    from edgepeft import runtime
    from edgepeft.runtime.generation.loop import Plan, Run
    from edgepeft.runtime.generation.sampling import Sampling

    model = runtime.open(bundle, variant=variant, threads=threads).use(adapter)
    generator = model.generator

    def request(count: int) -> Any:
        plan = Plan(sampling=Sampling(), max_new_tokens=count, stops=(), eos=frozenset())
        active = model.snapshot()
        started = perf_counter()
        decoder = generator.decoder(active, 1, len(prompt) + count)
        run = Run(decoder, [prompt], plan, generator.tokens, [adapter], started)
        for _ in run:
            pass
        return run.results()[0]

    request(4)
    found = [request(new) for _ in range(3)]
    return {
        "first_ms": median(each.first_token_ms for each in found),
        "tokens_per_s": median(each.tokens_per_second for each in found),
        "tokens": list(found[0].tokens),
    }


def genai(bundle: str, variant: str, adapter: str | None, threads: int, prompt: list[int], new: int) -> dict[str, Any]:
    """One request through onnxruntime-genai."""
    import onnxruntime_genai as og

    config = og.Config(bundle)
    file = json.loads((Path(bundle) / "edgepeft.json").read_text(encoding="utf-8"))["variants"][variant]["file"]
    config.overlay(
        json.dumps({"model": {"decoder": {"filename": file, "session_options": {"intra_op_num_threads": threads}}}})
    )
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    adapters = og.Adapters(model)
    if adapter is not None:
        adapters.load(str(Path(bundle) / "adapters" / f"{adapter}.onnx_adapter"), adapter)

    def request(count: int) -> tuple[float, float, list[int]]:
        started = perf_counter()
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + count, do_sample=False)
        generator = og.Generator(model, params)
        if adapter is not None:
            generator.set_active_adapter(adapters, adapter)
        stream = tokenizer.create_stream()
        generator.append_tokens(prompt)
        tokens: list[int] = []
        first = started
        while len(tokens) < count and not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            stream.decode(token)
            tokens.append(token)
            if len(tokens) == 1:
                first = perf_counter()
        return (first - started) * 1e3, (len(tokens) - 1) / (perf_counter() - first), tokens

    request(4)
    found = [request(new) for _ in range(3)]
    return {
        "first_ms": median(each[0] for each in found),
        "tokens_per_s": median(each[1] for each in found),
        "tokens": found[0][2],
    }


ENGINES = {"ours": ours, "genai": genai}


def _spawn(engine: str, job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, job["bundle"], "--worker", json.dumps({"engine": engine, **job})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{engine}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


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
@click.option("--threads", multiple=True, type=int, default=(1, 2))
@click.option("--context", default=128, help="Tokens of the prompt.")
@click.option("--tokens", default=48, help="Tokens to generate.")
@click.option("--rounds", default=3, help="A B B A rounds.")
@click.option("--llama-bench", default=None, help="llama.cpp's llama-bench, if it is not on PATH.")
@click.option("--gguf", default=None, help="The same weights at 4 bits, for llama-bench.")
@click.option("--worker", hidden=True, default=None)
def main(
    bundle: str, variant: str, adapter: tuple[str, ...], threads: tuple[int, ...], context: int, tokens: int, rounds: int,
    llama_bench: str | None, gguf: str | None, worker: str | None,
) -> None:  # fmt: skip
    if worker is not None:
        job = json.loads(worker)
        engine = ENGINES[job.pop("engine")]
        print(json.dumps(engine(**job)))
        return
    prompt = _prompt(bundle, context)
    binary = llama_bench or shutil.which("llama-bench")
    for count in threads:
        for name in (None, *adapter):
            job = {
                "bundle": bundle,
                "variant": variant,
                "adapter": name,
                "threads": count,
                "prompt": prompt,
                "new": tokens,
            }
            ratios: dict[str, list[float]] = {"prompt": [], "decode": []}
            runs: dict[str, list[dict[str, Any]]] = {"ours": [], "genai": []}
            for number in range(rounds):
                order = ("ours", "genai", "genai", "ours") if number % 2 == 0 else ("genai", "ours", "ours", "genai")
                found = [(engine, _spawn(engine, job)) for engine in order]
                for engine, result in found:
                    runs[engine].append(result)
                mine, theirs = ([r for e, r in found if e == engine] for engine in ("ours", "genai"))
                ratios["prompt"].append(sum(r["first_ms"] for r in theirs) / sum(r["first_ms"] for r in mine))
                ratios["decode"].append(sum(r["tokens_per_s"] for r in mine) / sum(r["tokens_per_s"] for r in theirs))
            if len(runs["ours"][0]["tokens"]) != tokens or len(runs["genai"][0]["tokens"]) != tokens:
                raise click.ClickException("the model ended before the tokens were made; choose fewer --tokens")
            same = all(r["tokens"] == runs["ours"][0]["tokens"] for each in runs.values() for r in each)
            for what, unit in (("prompt", "first_ms"), ("decode", "tokens_per_s")):
                mine, theirs = (
                    median(context * 1e3 / r[unit] if what == "prompt" else r[unit] for r in runs[engine])
                    for engine in ("ours", "genai")
                )
                low, high = min(ratios[what]), max(ratios[what])
                print(
                    f"{count} threads, {name or '(base)'}, {what} at {context}: ours {mine:.1f} tokens/s, genai {theirs:.1f}, "
                    f"ratio {median(ratios[what]):.3f} ({low:.3f} to {high:.3f} in {rounds} rounds)"
                    + ("" if what == "prompt" else f", tokens {'the same' if same else 'DIFFER'}"),
                    flush=True,
                )
        if binary is None or gguf is None:
            print("llama.cpp: not measured (needs llama-bench and --gguf)")
        else:
            at_prompt, at_decode = _llama(binary, gguf, count, context, tokens)
            print(f"{count} threads, llama.cpp: prompt {at_prompt:.1f} tokens/s, decode {at_decode:.1f}", flush=True)


if __name__ == "__main__":
    main()
