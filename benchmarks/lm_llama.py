"""Decoding with and without a LoRA: edgepeft's runtime against llama.cpp, on the same weights at 4 bits.

    pip install xllamacpp gguf                                  # llama.cpp's library; its quantizer is in another one:
    npm pack @node-llama-cpp/linux-x64; LLAMA_LIBRARY=…/libllama*.so python benchmarks/lm_llama.py

SmolLM2-135M with the bundles and the random LoRA (rank 8, every linear site) of ``lm_overhead.py``. llama.cpp gets the same
float32 weights, quantized by itself in each of ``--forms``, and the same factors in float32 as a GGUF. All engines read a
prompt of 128 tokens and then make a token in turn, 24 of them; a set opens everything afresh. A ratio is the median over tokens
of llama.cpp's time divided by ours in the same turn. Before that, the logits behind the prompt are compared, base and LoRA:
both compute the same model.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import click
import llama_library
import numpy as np
from lm_overhead import CONTEXT, Ours, bundles, lora, measure, ratio, source
from quantize_peers import gguf_of

from edgepeft.cache import cache_dir
from edgepeft.runtime.kernels import library_for

RANK = 8


class Mine(Ours):
    """edgepeft's runtime."""

    def logits(self, prompt: list[int]) -> np.ndarray:
        return self.model.decoder(1, len(prompt) + 64).prefill([prompt])


class Llama:
    """llama.cpp."""

    def __init__(self, path: Path, adapter: Path | None, threads: int) -> None:
        self.model = llama_library.Model(path, CONTEXT + 64, threads)
        if adapter is not None:
            self.model.use(adapter)

    def begin(self, prompt: list[int]) -> None:
        self.logits(prompt)

    def logits(self, prompt: list[int]) -> np.ndarray:
        self.model.forget()
        self.place = len(prompt)
        return self.model.next(prompt, 0)

    def step(self, token: int) -> None:
        self.model.next([token], self.place)
        self.place += 1


def lora_gguf(checkpoint: Path, heads: tuple[int, int], target: Path) -> Path:
    """A PEFT checkpoint's factors as llama.cpp's adapter, in float32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 999)
    for name, array in load_file(checkpoint / "adapter_model.safetensors").items():
        site, factor, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        to = names.get_name(f"{site}.weight", try_suffixes=(".weight",))
        count = {"q_proj": heads[0], "k_proj": heads[1]}.get(site.rsplit(".", 1)[-1])
        if factor == "lora_B" and count is not None:  # as gguf_of orders a weight's rows
            rows, columns = array.shape
            array = array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(
            f"{to}.{'lora_a' if factor == 'lora_A' else 'lora_b'}", np.ascontiguousarray(array, np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def files(model: Path, checkpoint: Path, folder: Path, forms: tuple[str, ...]) -> tuple[dict[str, Path], Path]:
    """The weights in each form, and the adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole.gguf"
    if not whole.exists():
        gguf_of(model, next((cache_dir() / "assets").glob("smollm2-gguf*/*.gguf")), whole)
    found = {form: folder / f"{form}.gguf" for form in forms}
    for form, path in found.items():
        if not path.exists():
            llama_library.quantize(whole, path, form, 1)
    config = json.loads((model / "config.json").read_text())
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    return found, lora_gguf(checkpoint, heads, folder / f"rank{RANK}.gguf")


def check(engines: dict[str, Any], prompt: list[int]) -> None:
    """Print how near the logits behind a prompt are to ours, base and LoRA, and how far the LoRA moves each engine's."""
    found = {name: np.ravel(engine.logits(prompt)).astype(np.float64) for name, engine in engines.items()}

    def cosine(one: str, two: str) -> str:
        return f"{float(found[one] @ found[two] / np.linalg.norm(found[one]) / np.linalg.norm(found[two])):.4f}"

    def moved(base: str, lora: str) -> str:
        return f"{np.linalg.norm(found[lora] - found[base]) / np.linalg.norm(found[base]):.1e}"

    print(f"logits: the LoRA moves ours by {moved('ours', 'ours, LoRA')} of their size; cosines over the vocabulary:")
    for name in found:
        if "LoRA Q" in name:
            base = name.replace(", LoRA", "")
            print(f"  the LoRA moves {base} by {moved(base, name)}")
        if name.startswith("llama.cpp"):
            mine = "ours, LoRA" if "LoRA" in name else "ours"
            print(f"  {name} and {mine}: {cosine(name, mine)}")


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=cache_dir() / "lm-overhead")
@click.option("--threads", type=int, multiple=True, default=(1,))
@click.option("--forms", multiple=True, default=("Q4_0", "Q4_1"), type=click.Choice(tuple(llama_library.FORMATS)))
@click.option("--rounds", type=int, default=2, help="Prompts in a set, 24 tokens after each.")
@click.option("--sets", type=int, default=5, help="Times everything is opened afresh.")
@click.option(
    "--cpu", is_flag=True, help="The process's CPU time in place of wall time: for one thread on a busy machine."
)
def main(work: Path, threads: tuple[int, ...], forms: tuple[str, ...], rounds: int, sets: int, cpu: bool) -> None:
    """Print a row for each engine."""
    model, folder = source("smollm2", work), work / "smollm2"
    _, slotted = bundles(model, folder)
    weights, adapter = files(model, lora(model, RANK, folder / f"lora{RANK}"), folder / "llama", forms)
    vocab = int(json.loads((model / "config.json").read_text())["vocab_size"])
    for count in threads:
        kernels = "off" if library_for("auto") is None else "require"
        ours = partial(Mine, slotted, "q4", threads=count, kernels=kernels)
        makers: dict[str, Callable[[], Any]] = {"ours": partial(ours, None), "ours, LoRA": partial(ours, f"r{RANK}")}
        if kernels == "require":
            makers["ours, LoRA in int8"] = partial(ours, f"r{RANK}", factors="int8")
        for form, path in weights.items():
            makers[f"llama.cpp {form}"] = partial(Llama, path, None, count)
            makers[f"llama.cpp, LoRA {form}"] = partial(Llama, path, adapter, count)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        pairs: dict[str, list[float]] = {}
        for number in range(sets):
            names = list(makers)
            engines = {name: makers[name]() for name in names[number % len(names) :] + names[: number % len(names)]}
            if not number:
                check(engines, [int(token) for token in np.random.default_rng(1).integers(5, vocab, CONTEXT)])
            found = measure(engines, vocab, rounds, 0.0 if count == 1 else 0.004, process_time if cpu else perf_counter)
            for name, (prefill, decode) in found.items():
                times[name].append((median(prefill), median(decode)))
            for name in found:
                if name.startswith("llama.cpp"):
                    for mine in ("ours, LoRA", "ours, LoRA in int8") if "LoRA" in name else ("ours",):
                        if mine in found:
                            pairs.setdefault(f"{mine} over {name}", []).append(ratio(found[name][1], found[mine][1]))
        print(f"{count} thread(s), kernels {kernels}, context {CONTEXT}, {sets} sets of {rounds} x 24 tokens")
        for name, rows in times.items():
            prefill, decode = (median(each) for each in zip(*rows, strict=True))
            print(f"  {name:24s} decode {1 / decode:6.1f} tokens/s, prompt {CONTEXT / prefill:6.1f}")
        for name, ratios in pairs.items():
            print(f"  {name}: {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
