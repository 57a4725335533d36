"""Many adapters in one bundle: how long it takes to open, and what memory does when each is used in turn.

    python benchmarks/residents.py [--adapters N] [--resident N] [--rounds N] [--rank R]

Makes a tiny random Llama (hidden size 512, 6 layers) with one adapter, and the same bundle with N adapters of the same size,
each with numbers of its own. Times are of fresh processes, imports not counted, the two bundles in turns; the ratio is the
geometric mean of ratios in one round. Memory is the resident set after each adapter was used once, and generated with. Exits
with 1 where opening takes more than 1.2 times as long, or where memory grows from twice as many adapters as stay in it to the
last one by more than an adapter's size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CHILD = """
import json, os, sys, time
import onnxruntime, tokenizers
from edgepeft.runtime import open as open_bundle
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
started = time.perf_counter()
model = open_bundle(sys.argv[1], threads=1, resident=int(sys.argv[2]))
opened = time.perf_counter() - started
found = {"open_ms": opened * 1e3, "opened_mb": memory(), "used_mb": [], "first_use_ms": []}
for name in model.adapters if sys.argv[3] == "use" else ():
    started = time.perf_counter()
    model.use(name)
    found["first_use_ms"].append((time.perf_counter() - started) * 1e3)
    model.generate("hi", max_new_tokens=2, chat=False)
    found["used_mb"].append(memory())
print(json.dumps(found))
"""


def make(folder: Path, rank: int, count: int) -> tuple[Path, Path, float]:
    """A bundle with one adapter, one with ``count``, and the bytes of an adapter's file in MB."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from edgepeft.bundle import read_bundle
    from edgepeft.pipeline import add, export

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["a film"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=len(words.get_vocab()),
            max_position_embeddings=256,
            eos_token_id=0,
        )
    )
    base = folder / "base"
    model.save_pretrained(base)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))

    def checkpoint(seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(folder / "adapter")
        return folder / "adapter"

    one, many = folder / "one", folder / "many"
    for out in (one, many):
        export(base, {"a0": checkpoint(0)}, out)
    for seed in range(1, count):
        add(many, f"a{seed}", checkpoint(seed))
    entry = read_bundle(one).adapter("a0")
    return one, many, read_bundle(one).size([entry.onnx_adapter]) / 1e6


def measure(bundle: Path, resident: int, what: str) -> dict[str, float | list[float]]:
    """One process: opening, and with ``what`` ``"use"`` each adapter once."""
    command = [sys.executable, "-c", _CHILD, str(bundle), str(resident), what]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    found: dict[str, float | list[float]] = json.loads(done.stdout)
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=41)
    parser.add_argument("--resident", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", type=int, default=64)
    arguments = parser.parse_args()
    resident = arguments.resident
    if not 0 < 2 * resident < arguments.adapters:
        parser.error("--resident must be at least 1 and less than half of --adapters")
    with tempfile.TemporaryDirectory() as scratch:
        one, many, size = make(Path(scratch), arguments.rank, arguments.adapters)
        time.sleep(3)  # a file that was just written is hashed in any case
        for bundle in (one, many):
            measure(bundle, resident, "use")  # hashes every file once, as the first use on a device does
        opens: dict[Path, list[float]] = {one: [], many: []}
        for turn in range(arguments.rounds):
            for bundle in (one, many) if turn % 2 == 0 else (many, one):
                opens[bundle].append(float(measure(bundle, resident, "open")["open_ms"]))  # type: ignore[arg-type]
        logs = [math.log(b / a) for a, b in zip(opens[one], opens[many], strict=True)]
        ratio = math.exp(statistics.fmean(logs))
        used = measure(many, resident, "use")
    memory, first = list(used["used_mb"]), list(used["first_use_ms"])  # type: ignore[arg-type]
    print(f"adapters of {size:.1f} MB; {arguments.rounds} rounds, processes of the two bundles in turns")
    for bundle, count in ((one, 1), (many, arguments.adapters)):
        print(f"  open with {count:3} adapters: {statistics.median(opens[bundle]):7.1f} ms")
    print(f"  ratio {ratio:.2f}x, at most 1.2x")
    print(f"  first use of an adapter: {statistics.median(first):.1f} ms")
    print(f"memory with {resident} resident, after each was used once:")
    places = (resident, 2 * resident, len(memory))
    after = "; ".join(f"after {place}: {memory[place - 1]:.0f} MB" for place in places)
    print(f"  opened {used['opened_mb']:.0f} MB; {after}; most {max(memory):.0f} MB")
    flat = memory[-1] - memory[2 * resident - 1] <= size
    return 0 if ratio <= 1.2 and flat else 1


if __name__ == "__main__":
    sys.exit(main())
