"""What slots and adapters cost a causal language model at decode and prefill, as ratios to the same base without slots.

    python benchmarks/lm_overhead.py --model smollm2            # the pinned SmolLM2-135M
    python benchmarks/lm_overhead.py --model qwen2-0.5b         # random weights in Qwen2 0.5B's shape
    python benchmarks/lm_overhead.py --model smollm2 --genai    # with onnxruntime-genai's own LoRA route beside it
    python benchmarks/lm_overhead.py --model smollm2 --kernels  # with edgepeft's kernels beside ONNX Runtime's operators

Bundles are made once below ``--work`` (4-bit weights, slots at all linear sites, random LoRA of rank 8 and 16). Variants take
turns token by token in one process, at 128 tokens of context, through the decoder that ``Runtime.generate`` uses. Where a
session's weights lie in memory moves its speed by several percent, so everything is measured over ``--sets`` of fresh
sessions, opened in changing order; a set's ratio is the median over tokens of a variant's time divided by the slot-free base's
in the same turn, and the median over sets is printed with the range. Idle thread pools spin for a while after a run; with more
than one thread each step waits until the others have stopped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any, Protocol

import click
import numpy as np

from edgepeft import runtime
from edgepeft.cache import cache_dir
from edgepeft.demo import assets
from edgepeft.pipeline import add, export, quantize
from edgepeft.runtime.kernel_adapter import Factors
from edgepeft.runtime.kernels import UseKernels

CONTEXT = 128
RANKS = (8, 16)


class Engine(Protocol):
    def begin(self, prompt: list[int]) -> None: ...

    def step(self, token: int) -> None: ...


class Ours:
    """A bundle's variant and adapter in edgepeft's runtime."""

    def __init__(
        self, bundle: Path, variant: str, adapter: str | None, threads: int, kernels: UseKernels = "off",
        factors: Factors = "fp32",
    ) -> None:  # fmt: skip
        opened = runtime.open(bundle, variant=variant, threads=threads, kernels=kernels, factors=factors)
        self.model = opened.use(adapter)

    def begin(self, prompt: list[int]) -> None:
        self.decoder = self.model.decoder(1, len(prompt) + 64)
        self.decoder.prefill([prompt])

    def step(self, token: int) -> None:
        self.decoder.step([token])


class Genai:
    """onnxruntime-genai on a folder that its own builder wrote."""

    def __init__(self, folder: Path, adapter: Path | None, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.og, self.model = og, og.Model(config)
        self.adapters = og.Adapters(self.model)
        self.adapter = adapter
        if adapter is not None:
            self.adapters.load(str(adapter), "a")

    def begin(self, prompt: list[int]) -> None:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt) + 64, do_sample=False)
        self.generator = self.og.Generator(self.model, params)
        if self.adapter is not None:
            self.generator.set_active_adapter(self.adapters, "a")
        self.generator.append_tokens(prompt)

    def step(self, token: int) -> None:
        self.generator.generate_next_token()


def source(name: str, work: Path) -> Path:
    """The model's Hugging Face folder."""
    if name == "smollm2":
        return assets.smollm2()
    folder = work / name / "model"
    if not (folder / "config.json").is_file():
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864,
            vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=4096,
        )  # fmt: skip
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):  # any will do: tokens are drawn at random
            shutil.copy(assets.smollm2() / file, folder / file)
    return folder


def lora(model: Path, rank: int, out: Path) -> Path:
    """A random LoRA at all linear sites."""
    if not (out / "adapter_config.json").is_file():
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
        wrapped.save_pretrained(out)
    return out


def bundles(model: Path, folder: Path) -> tuple[Path, Path]:
    """The base without slots, and the base with slots at all linear sites and both adapters; both at 4 bits.

    Random weights are rounded without data, which takes seconds in place of minutes and no less time to run.
    """
    plain, slotted = folder / "plain", folder / "slotted"
    method = "mse" if model.is_relative_to(folder) else None
    if not (plain / "onnx" / "model_q4.onnx").is_file():
        export(model, {}, plain, task="text-generation")
        quantize(plain, "q4", method=method, replace=True)
    if not (slotted / "onnx" / "model_q4.onnx").is_file():
        loras = {f"r{rank}": lora(model, rank, folder / f"lora{rank}") for rank in RANKS}
        first, *others = loras
        export(model, {first: loras[first]}, slotted, task="text-generation", slots="all-linear")
        for name in others:
            add(slotted, name, loras[name])
        quantize(slotted, "q4", method=method, replace=True)
    return plain, slotted


def genai_route(model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """The peer's builder: its base, its base with LoRA inputs, and the adapter in ONNX Runtime's format."""
    plain, with_lora = folder / "genai", folder / "genai-lora"
    options = ["int4_accuracy_level=4", "int4_block_size=32", "shared_embeddings=true"]
    for out, extra in ((plain, []), (with_lora, [f"adapter_path={lora(model, RANKS[0], folder / 'lora8')}"])):
        if not (out / "genai_config.json").is_file():
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-i", str(model)]
            command += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", tempfile.mkdtemp()]
            subprocess.run([*command, "--extra_options", *options, *extra], check=True, capture_output=True)
    adapter = next(with_lora.glob("*.onnx_adapter"), None)
    return plain, with_lora, adapter or _peer_adapter(with_lora, folder / "lora8")


def _peer_adapter(built: Path, checkpoint: Path) -> Path:
    """Random factors of the checkpoint's rank under the names that the builder's graph takes."""
    import onnx_ir as ir
    import onnxruntime as ort

    graph = ir.load(built / "model.onnx").graph
    rank = json.loads((checkpoint / "adapter_config.json").read_text())["r"]
    rng = np.random.default_rng(0)
    values = {}
    for value in graph.inputs:
        if "lora" in (value.name or "").lower():
            shape = [d if isinstance(d, int) and d > 0 else rank for d in value.shape or ()]
            array = rng.standard_normal(shape).astype(np.float32) * 0.01
            values[value.name] = ort.OrtValue.ortvalue_from_numpy(array)
    form = ort.AdapterFormat()
    form.set_parameters(values)
    form.set_model_version(1)
    form.set_adapter_version(1)
    path = built / "peer.onnx_adapter"
    form.export_adapter(str(path))
    return path


def measure(
    engines: dict[str, Engine], vocab: int, rounds: int, pause: float, clock: Callable[[], float] = perf_counter
) -> dict[str, tuple[list[float], list[float]]]:
    """Prefill and decode times of each engine in seconds, taken in turns."""
    rng = np.random.default_rng(0)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in engines}
    for number in range(rounds + 1):  # the first one warms up
        prompt = [int(token) for token in rng.integers(5, vocab, CONTEXT)]
        order = list(engines) if number % 2 else list(engines)[::-1]
        for name in order:
            start = clock()
            engines[name].begin(prompt)
            if number:
                times[name][0].append(clock() - start)
        for place in range(24):
            for name in order if place % 2 else order[::-1]:
                sleep(pause)
                start = clock()
                engines[name].step(7)
                if number:
                    times[name][1].append(clock() - start)
    return times


def ratio(mine: list[float], base: list[float]) -> float:
    """Median of the paired ratios."""
    return median(a / b for a, b in zip(mine, base, strict=True))


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(["smollm2", "qwen2-0.5b"]), default="smollm2")
@click.option("--work", type=click.Path(path_type=Path), default=cache_dir() / "lm-overhead")
@click.option("--threads", type=int, multiple=True, default=(1, 2))
@click.option("--rounds", type=int, default=2, help="Prompts in a set, 24 tokens after each.")
@click.option("--sets", type=int, default=5, help="Times everything is opened afresh.")
@click.option("--genai", is_flag=True, help="Measure onnxruntime-genai's own LoRA route beside it.")
@click.option(
    "--kernels", is_flag=True, help="Measure edgepeft's kernels beside it, with factors in fp32, fp16 and int8."
)
@click.option("--cpu", is_flag=True, help="CPU time of one thread in place of time, on a busy machine.")
def main(
    model: str, work: Path, threads: tuple[int, ...], rounds: int, sets: int, genai: bool, kernels: bool, cpu: bool
) -> None:
    if cpu and threads != (1,):
        raise click.UsageError("--cpu counts the time of one thread: --threads 1")
    folder = work / model
    path = source(model, work)
    plain, slotted = bundles(path, folder)
    vocab = int(json.loads((path / "config.json").read_text())["vocab_size"])
    for count in threads:
        makers: dict[str, Callable[[], Any]] = {
            "slot-free base": partial(Ours, plain, "q4", None, count),
            "slots, empty": partial(Ours, slotted, "q4", None, count),
            **{f"slots, rank {rank}": partial(Ours, slotted, "q4", f"r{rank}", count) for rank in RANKS},
        }
        if kernels:
            with_kernels = partial(Ours, slotted, "q4", threads=count, kernels="require")
            makers["kernels, slot-free"] = partial(Ours, plain, "q4", None, count, "require")
            makers["kernels, empty"] = partial(with_kernels, None)
            for rank in RANKS:
                makers[f"kernels, rank {rank}"] = partial(with_kernels, f"r{rank}")
                for factors in ("fp16", "int8"):
                    makers[f"kernels, {rank}, {factors}"] = partial(with_kernels, f"r{rank}", factors=factors)
        if genai:
            peer, peer_lora, adapter = genai_route(path, folder)
            makers["genai base"] = partial(Genai, peer, None, count)
            makers["genai LoRA rank 8"] = partial(Genai, peer_lora, adapter, count)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in makers}
        peers: list[float] = []
        over: dict[str, list[tuple[float, float]]] = {name: [] for name in makers if name.startswith("kernels")}
        for number in range(sets):
            names = list(makers)
            names = names[number % len(names) :] + names[: number % len(names)]
            engines = {name: makers[name]() for name in names}
            times = measure(engines, vocab, rounds, 0.0 if count == 1 else 0.004, thread_time if cpu else perf_counter)
            base = times["slot-free base"]
            for name, (prefill, decode) in times.items():
                found[name].append((median(decode) * 1e3, ratio(decode, base[1]), ratio(prefill, base[0])))
            for name, rows in over.items():
                own, here = times["kernels, slot-free"], times[name]
                rows.append((ratio(here[1], own[1]), ratio(here[0], own[0])))
            if genai:
                peers.append(ratio(times["genai LoRA rank 8"][1], times["genai base"][1]))
            del engines
        print(
            f"{model}, q4, {count} thread(s), context {CONTEXT}, {sets} sets of fresh sessions, {rounds} x 24 tokens each"
        )
        for name, each in found.items():
            decode_ms, ratios, prefills = zip(*each, strict=True)
            print(
                f"  {name:18s} decode {median(decode_ms):6.2f} ms  {median(ratios):.3f}x ({min(ratios):.3f} to {max(ratios):.3f})"
                f"   prefill {median(prefills):.3f}x"
            )
        for name, rows in over.items():
            ratios, prefills = zip(*rows, strict=True)
            print(
                f"  {name:18s} over kernels, slot-free: decode {median(ratios):.3f}x ({min(ratios):.3f} to {max(ratios):.3f})"
                f"   prefill {median(prefills):.3f}x"
            )
        if genai:
            print(
                f"  genai LoRA rank 8 over genai base: decode {median(peers):.3f}x ({min(peers):.3f} to {max(peers):.3f})"
            )


if __name__ == "__main__":
    main()
