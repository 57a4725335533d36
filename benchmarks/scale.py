"""What exporting a model of 0.5 to 7 billion parameters takes: seconds, memory, disk.

    python benchmarks/scale.py WORK --size 0.5b 1b [--path straight two-steps] [--variant q4] [--rounds N] [--limit-gb GB]

A checkpoint with random numbers in a real shape, and two LoRA adapters, are written to ``WORK`` shard by shard (bfloat16, about
1 GB a shard) and stay there. ``straight`` is ``edgepeft export --variant V``; ``two-steps`` is ``export`` and then
``quantize --method rtn``, which writes fp32 on the way. Each run is a process of its own; with ``--rounds`` they alternate, and
ratios are stated of runs of one round. Memory is sampled from ``/proc/PID/status``, twenty times a second: ``anonymous`` is what no
file backs and the kernel cannot drop (``RssAnon``), ``file`` what it maps of files (``RssFile``). ``disk`` is what the process
wrote (``write_bytes``). With ``--limit-gb`` the process is killed at the first sample whose anonymous memory is more. ``ulimit``
would not be honest: ``-v`` counts the mapped checkpoint, ``-d`` the weights that ONNX Runtime maps from its file and what
allocators reserve.
``--forget`` drops the checkpoint when done. Random numbers say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: ``config.json`` of each shape, as published for these models.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {  # to try the script
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
    },
    "135m": {  # SmolLM2 135M
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
    "0.5b": {  # Qwen 2.5 0.5B
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
    "1b": {  # Llama 3.2 1B
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": True, "hidden_act": "silu",
    },
    "3b": {  # Llama 3.2 3B
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": True, "hidden_act": "silu",
    },
    "7b": {  # Qwen 2.5 7B
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
}  # fmt: skip
#: Bytes of one shard, about.
_SHARD = 1_000_000_000
#: Seconds between two samples of memory.
_EVERY = 0.05


def weights(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of a Llama or Qwen 2 by name, in the order in which they are published."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            shapes[f"{at}.{name}.weight"] = (rows, columns)
            if config["model_type"] == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj")):
                shapes[f"{at}.{name}.bias"] = (rows,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _numbers(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """Random bfloat16 numbers of a size that keeps activations near 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
    scale = 0.02 if "embed" in name or len(shape) == 1 else shape[-1] ** -0.5
    made = torch.empty(shape, dtype=torch.bfloat16)
    rows = made if len(shape) > 1 else made[None]
    step = max(1, 4_000_000 // rows.shape[-1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        part.copy_(torch.randn(part.shape, generator=generator) * scale)
    return made


def write_model(folder: Path, config: dict[str, Any]) -> int:
    """Write a sharded checkpoint, one shard in memory at a time; its bytes."""
    from safetensors.torch import save_file

    done = folder / "written.json"
    if done.is_file():
        return int(json.loads(done.read_text())["bytes"])
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    shapes, room = weights(config), _SHARD
    for name, shape in shapes.items():
        size = 2
        for dim in shape:
            size *= dim
        if size > room and shards[-1]:
            shards.append([])
            room = _SHARD
        shards[-1].append(name)
        room -= size
    where, total = {}, 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _numbers(name, shapes[name], len(where) + at) for at, name in enumerate(names)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(t.numel() * 2 for t in tensors.values())
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where}), encoding="utf-8"
    )
    _write_tokenizer(folder)
    written = {**config, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    done.write_text(json.dumps({"bytes": total}), encoding="utf-8")
    return total


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_adapter(folder: Path, model: Path, config: dict[str, Any], targets: list[str], rank: int, seed: int) -> None:
    """A LoRA checkpoint as PEFT saves it, with random numbers in both factors."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in weights(config).items():
        site = name.removesuffix(".weight")
        if name.endswith(".weight") and site.rpartition(".")[2] in targets:
            for factor, size in (("lora_A", (rank, shape[1])), ("lora_B", (shape[0], rank))):
                numbers = torch.randn(size, generator=generator) * (size[1] ** -0.5 if factor == "lora_A" else 0.05)
                tensors[f"base_model.model.{site}.{factor}.weight"] = numbers
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model), "r": rank,
        "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


@dataclass(frozen=True)
class Run:
    """One run: seconds on the clock and of all cores, and megabytes at their peak or in all."""

    seconds: float
    cpu_s: float
    anonymous_mb: float
    file_mb: float
    disk_mb: float
    result_mb: float


def _sample(pid: int) -> tuple[float, float, float]:
    """Anonymous and file-backed memory, and what was written, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssFile"))}
    written = next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
        if line.startswith("write_bytes")
    )
    return found["RssAnon"] * 1024 / 1e6, found["RssFile"] * 1024 / 1e6, written / 1e6


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(commands: list[list[str]], result: Path, limit_gb: float | None, log: Path) -> Run:
    """Run ``edgepeft`` commands one after the other; the peak is that of the largest."""
    anonymous = mapped = disk = 0.0
    started, spent = time.perf_counter(), _cpu_of_children()
    for command in commands:
        written = 0.0
        with log.open("ab") as output:
            child = subprocess.Popen(  # nosec - our own command line
                [sys.executable, "-m", "edgepeft", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            while child.poll() is None:
                try:
                    now = _sample(child.pid)
                except (OSError, StopIteration, KeyError):  # it has just ended
                    break
                anonymous, mapped, written = max(anonymous, now[0]), max(mapped, now[1]), max(written, now[2])
                if limit_gb is not None and now[0] > 1e3 * limit_gb:
                    child.kill()
                    child.wait()
                    raise SystemExit(f"edgepeft {command[0]} was killed at {now[0]:.0f} MB of its own; see {log}")
                time.sleep(_EVERY)
            if child.wait() != 0:
                raise SystemExit(f"edgepeft {command[0]} ended with {child.returncode}; see {log}")
        disk += written
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in result.rglob("*") if path.is_file())
    return Run(seconds, _cpu_of_children() - spent, anonymous, mapped, disk, size / 1e6)


def commands_of(path: str, model: Path, adapters: dict[str, Path], out: Path, variants: list[str]) -> list[list[str]]:
    """The command lines of a way to make ``variants``."""
    export = ["export", "--model", str(model), "--task", "text-generation", "--out", str(out)]
    for name, folder in adapters.items():
        export += ["--adapter", f"{name}={folder}"]
    if path == "straight":
        return [[*export, *(part for variant in variants for part in ("--variant", variant))]]
    quantize = [
        ["quantize", str(out), "--variant", each, *(("--method", "rtn") if each == "q4" else ()), "--no-measure"]
        for each in variants
        if each != "fp32"
    ]
    return [export, *quantize]


def main() -> None:
    """Parse, write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="A folder outside the repository with room for what is written.")
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=["0.5b"])
    parser.add_argument("--path", nargs="+", choices=["straight", "two-steps"], default=["straight"])
    parser.add_argument("--variant", nargs="+", default=["q4"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--forget", action="store_true", help="Remove the checkpoint of a size when it was measured.")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(
        "size    path       seconds  CPU s  anonymous MB   file MB   disk MB  result MB  checkpoint MB  anon/ckpt  disk/result"
    )
    for size in asked.size:
        folder, config = asked.work / size, SHAPES[size]
        checkpoint = write_model(folder / "model", config) / 1e6
        attention, everything = (
            ["q_proj", "v_proj"],
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        )
        write_adapter(folder / "small", folder / "model", config, attention, 8, 1)
        write_adapter(folder / "wide", folder / "model", config, everything, 16, 2)
        adapters = {"small": folder / "small", "wide": folder / "wide"}
        runs: dict[str, list[Run]] = {path: [] for path in asked.path}
        for number in range(asked.rounds):
            for path in asked.path if number % 2 == 0 else asked.path[::-1]:
                out = folder / f"bundle-{path}"
                shutil.rmtree(out, ignore_errors=True)
                lines = commands_of(path, folder / "model", adapters, out, asked.variant)
                run = measured(lines, out, asked.limit_gb, folder / f"{path}.log")
                runs[path].append(run)
                print(
                    f"{size:<7} {path:<10} {run.seconds:7.1f} {run.cpu_s:6.1f} {run.anonymous_mb:13.0f} {run.file_mb:9.0f} "
                    f"{run.disk_mb:9.0f} {run.result_mb:10.0f} {checkpoint:14.0f} {run.anonymous_mb / checkpoint:10.2f} "
                    f"{run.disk_mb / run.result_mb:12.2f}",
                    flush=True,
                )
                shutil.rmtree(out, ignore_errors=True)
        if len(runs) == 2:
            seconds, cpu, memory = (
                statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(*runs.values(), strict=True))
                for field in ("seconds", "cpu_s", "anonymous_mb")
            )
            print(
                f"{size:<7} {' / '.join(runs)}: {seconds:.2f}x the seconds, {cpu:.2f}x the CPU time, "
                f"{memory:.2f}x the anonymous memory"
            )
        if asked.forget:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
