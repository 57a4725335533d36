"""What 4 bits cost SmolLM2-135M in edgepeft and its peers: size, divergence from fp32 and same top token on the same tokens.

    python benchmarks/quantize.py --only gptq                     # makes build/quantize/off-grid/bundle and the weights
    python benchmarks/quantize_peers.py build/quantize/off-grid   # what is installed takes part:
    pip install onnxruntime-genai gguf; npm pack @node-llama-cpp/linux-x64    # LLAMA_LIBRARY=…/libllama*.so of the latter

Every engine is compared with the same fp32 weights. ONNX Runtime's quantizers are applied to edgepeft's fp32 graph; the builder
of onnxruntime-genai starts from the Hugging Face folder; llama.cpp from a GGUF file with these weights, and is compared with what
it computes of them in fp32 itself. Windows of 512 tokens of Python's manual and of Emma. edgepeft comes last, at the size of each
peer that is smaller than ``LARGEST_MB``. Seconds are those of all cores together.

``slow`` measures one layer of ONNX Runtime's GPTQ, which would take too long for a whole model, and multiplies.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from quantize import WINDOW, windows

from edgepeft.bundle import Bundle, read_bundle
from edgepeft.cache import cache_dir
from edgepeft.demo import assets
from edgepeft.pipeline import Goal, quantize
from edgepeft.pipeline._calibration_runs import calibration_runs, feeds_of
from edgepeft.quantize.weights import matrices
from edgepeft.runtime.sessions import open_session

#: Engines in the order in which they are measured: edgepeft knows its peers' sizes then.
KINDS = ("builder", "quantizers", "slow", "llama", "ours")
Logits = Callable[[list[int]], np.ndarray]
#: llama.cpp's threads wait by spinning: more of them than there are free cores take many times as long.
THREADS = 1
#: Peers beyond it have parts in fp32: no goal is set by their size.
LARGEST_MB = 150
#: The layer that stands for all.
LAYER = 10


def cpu_seconds() -> float:
    """What this process and those that it ran took of all cores."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def logarithms(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, ``[tokens, vocabulary]``."""
    wide = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def compare(reference: Logits, other: Logits, parts: list[list[int]]) -> str:
    """Perplexity's change, divergence and same top token over the windows."""
    sums = np.zeros(5)
    for window in parts:
        one, two = logarithms(reference(window))[:-1], logarithms(other(window))[:-1]
        places, targets = np.arange(len(one)), np.array(window[1:])
        sums += (
            len(one),
            -one[places, targets].sum(),
            -two[places, targets].sum(),
            (np.exp(one) * (one - two)).sum(),
            (one.argmax(1) == two.argmax(1)).sum(),
        )
    tokens, before, after, divergence, same = sums
    return f"{np.exp((after - before) / tokens) - 1:+.1%}, {divergence / tokens:.3f}, {same / tokens:.3f}"


def remembered(run: Logits) -> Logits:
    """``run``, once for each window: a reference is compared with many."""
    known: dict[tuple[int, ...], np.ndarray] = {}

    def again(window: list[int]) -> np.ndarray:
        key = tuple(window)
        if key not in known:
            known[key] = run(window)
        return known[key]

    return again


def graph(bundle: Any, file: Path) -> Logits:
    """A graph with the inputs of a bundle's."""
    session = open_session(file)
    return lambda window: session.run(["logits"], feeds_of(bundle, window))[0]


def built(folder: Path) -> Logits:
    """A graph of onnxruntime-genai's builder: it takes a cache, empty here, and a mask."""
    session = open_session(folder / "model.onnx")
    width = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"]

    def run(window: list[int]) -> np.ndarray:
        feeds: dict[str, np.ndarray] = {}
        for value in session.get_inputs():
            if value.name == "input_ids":
                feeds[value.name] = np.array([window], np.int64)
            elif value.name == "attention_mask":
                feeds[value.name] = np.ones((1, len(window)), np.int64)
            elif value.name == "position_ids":
                feeds[value.name] = np.arange(len(window), dtype=np.int64)[None]
            else:
                feeds[value.name] = np.zeros((1, int(value.shape[1]), 0, width), np.float32)
        found: np.ndarray = session.run(["logits"], feeds)[0]
        return found

    return run


def ours(base: Path, work: Path, sizes: Sequence[int]) -> Iterator[tuple[str, int, Logits]]:
    """edgepeft's default, and the best within each of ``sizes`` in bytes."""
    recipes: dict[str, dict[str, Any]] = {
        "default": {},
        **{f"--budget-mb {size / 1e6:.1f}": {"goal": Goal(bytes=size // 100_000 * 100_000)} for size in sizes},
    }
    for name, options in recipes.items():
        folder = work / "ours"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base / "bundle", folder)
        done = quantize(folder, "q4", measure=False, **options)
        yield (
            f"edgepeft, {name}",
            done.bytes_after,
            graph(done.bundle, folder / done.bundle.manifest.variants["q4"].file),
        )


def plain_graph(bundle: Bundle, work: Path) -> tuple[Path, list[str]]:
    """A copy of edgepeft's fp32 graph, since onnx refuses hard links, and the names of nodes that read slots."""
    copied = Path(shutil.copytree(bundle.path / "onnx", work / "fp32", dirs_exist_ok=True))
    source = copied / Path(bundle.manifest.variants["fp32"].file).name
    tensors = bundle.manifest.slots.tensors()
    read = (n for n in ir.load(source).graph if any(v is not None and v.name in tensors for v in n.inputs))
    return source, [node.name or "" for node in read]


def quantizers(base: Path, work: Path) -> Iterator[tuple[str, int, Logits]]:
    """ONNX Runtime's own quantizers of MatMul that need no texts. A tied head and embedding stay in fp32."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    bundle = read_bundle(base / "bundle")
    source, slots = plain_graph(bundle, work)
    configs: dict[str, dict[str, Any]] = {
        "default, asymmetric": {"is_symmetric": False, "block_size": 32, "accuracy_level": 4},
        "HQQ": {"algo_config": nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4, axis=1)},
        "k-quant": {"algo_config": nbits.KQuantWeightOnlyQuantConfig(), "block_size": 32, "accuracy_level": 4},
    }
    for name, options in configs.items():
        folder = work / "ort"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = nbits.MatMulNBitsQuantizer(onnx.load(source), nodes_to_exclude=slots, **options)
        made.process()
        made.model.save_model_to_file(str(folder / "model.onnx"), True)
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield f"ONNX Runtime {name}", size, graph(bundle, folder / "model.onnx")


def too_slow(base: Path, work: Path) -> Iterator[str]:
    """What ONNX Runtime's GPTQ takes for the matrices of one layer, and so for all layers.

    It runs the whole graph once for each value that matrices read and each text. It is given the texts that edgepeft calibrates on.
    """
    import onnx
    from onnxruntime.quantization.neural_compressor import gptq_quantize

    bundle = read_bundle(base / "bundle")
    source, _ = plain_graph(bundle, work)
    model = ir.load(source)
    inner = [each for each in matrices(model.graph, bundle.manifest.slots) if not each.tables]
    layer = [each for each in inner if f"layers.{LAYER}." in each.name]
    nodes = {node.name or "" for each in layer for node in each.linear}
    read = {node.inputs[0] for each in layer for node in each.linear}
    four = {"bits": 4, "group_size": 32, "scheme": "asym"}
    wanted = {node.name: dict(four) if node.name in nodes else "fp32" for node in model.graph}
    required = {value.name for value in model.graph.inputs} - set(model.graph.initializers)
    feeds = [
        {name: array for name, array in each.items() if name in required}
        for each in calibration_runs(bundle, {}, rows=64).feeds
    ]
    whole, begin = onnx.load(source), cpu_seconds()
    made = gptq_quantize(whole, ((each, None) for each in feeds), weight_config=wanted, n_samples=-1, accuracy_level=4)
    seconds = cpu_seconds() - begin
    count = sum(node.op_type == "MatMulNBits" for node in made.model.graph.node)
    yield (
        f"ONNX Runtime GPTQ: {seconds:.0f} CPU s for {count} matrices of one layer ({len(read)} inputs, {len(feeds)} windows), so "
        f"{seconds * len(inner) / len(layer):.0f} for all {len(inner)}"
    )


def builder(base: Path, work: Path) -> Iterator[tuple[str, int, Logits]]:
    """onnxruntime-genai's builder, its defaults for int4 on CPUs."""
    model = base / "model" if (base / "model").exists() else assets.smollm2()
    folder = work / "genai"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-p", "int4", "-e", "cpu"]
    subprocess.run(
        [*command, "-o", str(folder), "-c", str(work / "genai-cache")], check=True, capture_output=True, cwd=work
    )
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    yield "onnxruntime-genai's builder, int4", size, built(folder)


def gguf_of(model: Path, source: Path, target: Path) -> None:
    """``source``, a GGUF of the same architecture, with the numbers of a Hugging Face folder in float32."""
    import gguf
    from safetensors.numpy import load_file

    tensors = load_file(model / "model.safetensors")
    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in {"general.architecture", "general.file_type"}:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, inner)
    writer.add_file_type(0)
    heads = {"attn_q": reader.fields["llama.attention.head_count"].contents()}
    heads["attn_k"] = reader.fields["llama.attention.head_count_kv"].contents()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, reader.fields["llama.block_count"].contents())
    for name, array in tensors.items():
        if name == "lm_head.weight":
            continue
        to = names.get_name(name, try_suffixes=(".weight",))
        count = next((each for part, each in heads.items() if f".{part}." in to), None)
        if count is not None:  # llama.cpp pairs neighbours where Hugging Face pairs halves
            rows, columns = array.shape
            array = array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(to, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(base: Path, work: Path) -> Iterator[tuple[str, int, Logits, Logits]]:
    """llama.cpp's quantizations, with its own fp32 as the reference."""
    import llama_library

    source = next((cache_dir() / "assets").glob("smollm2-gguf*/*.gguf"))
    model = base / "model" if (base / "model").exists() else assets.smollm2()
    whole = work / "whole.gguf"
    if not whole.exists():
        gguf_of(model, source, whole)
    reference = remembered(llama_library.Model(whole, WINDOW, THREADS).logits)
    for name in ("Q4_0", "Q4_K_M", "Q4_1", "Q5_K_M"):
        path = work / f"{name}.gguf"
        llama_library.quantize(whole, path, name, THREADS)
        yield f"llama.cpp {name}", path.stat().st_size, llama_library.Model(path, WINDOW, THREADS).logits, reference


@click.command(help=__doc__)
@click.argument("base", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=2048, show_default=True, help="Of each text.")
@click.option("--only", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Engines; all by default.")
@click.option("--budget-mb", "budgets", multiple=True, type=float, help="Sizes for edgepeft besides its peers'.")
def main(base: Path, tokens: int, only: tuple[str, ...], budgets: tuple[float, ...]) -> None:
    """Print a row for each engine and recipe."""
    work = base / "peers"
    work.mkdir(exist_ok=True)
    texts = windows(base / "bundle", tokens)
    bundle = read_bundle(base / "bundle")
    fp32 = remembered(graph(bundle, base / "bundle" / bundle.manifest.variants["fp32"].file))
    sizes = [int(size * 1e6) for size in budgets]
    click.echo(
        f"{'engine and recipe':40s} {'MB':>6s} {'CPU s':>6s}  perplexity over fp32, KL divergence, same top token"
    )
    makers: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
        "builder": lambda: builder(base, work),
        "quantizers": lambda: quantizers(base, work),
        "llama": lambda: llama(base, work),
        "ours": lambda: ours(base, work, sorted({*sizes})),
    }
    for kind in KINDS:
        if kind not in only:
            continue
        try:
            if kind == "slow":
                for line in too_slow(base, work):
                    print(line, flush=True)
                continue
            begin = cpu_seconds()
            for name, size, run, *own in makers[kind]():
                seconds = cpu_seconds() - begin
                reference = own[0] if own else fp32
                found = "; ".join(f"{text} {compare(reference, run, parts)}" for text, parts in texts.items())
                print(f"{name:40s} {size / 1e6:6.1f} {seconds:6.0f}  {found}", flush=True)
                if kind != "ours" and size < LARGEST_MB * 1e6:
                    sizes.append(size)
                begin = cpu_seconds()
        except (ModuleNotFoundError, subprocess.CalledProcessError) as error:
            reason = error.stderr.decode()[-500:] if isinstance(error, subprocess.CalledProcessError) else error
            click.echo(f"{kind:40s}                left out: {reason}")


if __name__ == "__main__":
    main()
