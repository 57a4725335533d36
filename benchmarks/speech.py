"""What Whisper base's variants and an adapter get right, how large they are and how fast, on speech whose text is known.

    python benchmarks/speech.py build/speech                # 16 clips of each voice, 100 steps of training
    python benchmarks/speech.py build/speech --clips 12     # the tables of docs/speech.md

espeak-ng reads passages of Jane Austen's novels: in two voices that Whisper understands, and with a strong accent (English by the
rules of French). A LoRA (rank 8, q_proj and v_proj of both parts) is trained with PEFT on that accent, from other novels, and
added to the base's bundle; each variant writes down every clip, one thread, four clips at a time. The rows `fitted` are q4 fitted
to other sounds, 32 of all voices for the base and 32 of the accent for the adapter, from the novels that the adapter was trained
on; `fitted, N MB` has bits by what each matrix is worth. Texts are compared in the form that Whisper's English normalizer
gives them. The row `torch` is what transformers' `generate` writes in fp32, the adapter by PEFT.

Needs ``apt-get install espeak-ng`` and ``pip install 'edgepeft[demo,metrics,audio]'``. Times are CPU seconds. OUT keeps what was
made, and a second run uses it.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from speech_training import train

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.demo import assets
from edgepeft.demo.speech import SAMPLING_RATE, Voice, speak, speak_to_files
from edgepeft.metrics.intervals import percentile_interval
from edgepeft.metrics.measuring import Measured, Scored, measure
from edgepeft.metrics.registry import METRICS
from edgepeft.pipeline import Goal, add, export, quantize
from edgepeft.validate import read_language_rows
from edgepeft.validate.language_rows import LanguageRows

#: Voices that Whisper base understands, and the one that the adapter is trained on.
VOICES = {"American": Voice("en-us"), "British": Voice("en-gb"), "accent": Voice("fr")}
ACCENT, ADAPTER = "accent", "voice"
TRAINED_ON, JUDGED_ON = (
    ("emma", "mansfieldpark", "prideprejudice"),
    ("persuasion", "northangerabbey", "sensesensibility"),
)
VARIANTS = ("fp32", "q8", "q4", "int8")
#: Rows of q4 fitted to sound, with the options of each; each has a bundle of its own.
FITTED: dict[str, dict[str, Any]] = {
    "fitted": {},
    "fitted, 4-bit head": {"head_bits": 4},
    "fitted, 60 MB": {"goal": Goal(bytes=60_000_000)},
}
#: Sounds of all voices, and of the accent, that these are fitted to.
FITTED_TO = 32
#: Austen's spellings that nobody hears: they would count as mistakes.
OLD = re.compile(
    r"\b(every|any|some|no) (thing|body|one|where)|\b(for ever|to-day|my ?self)\b|shew|chuse|chose|sopha|stile|\bPrelude\b",
    re.I,
)


def passages(novels: Sequence[str], count: int, seed: int) -> list[str]:
    """Paragraphs of 10 to 18 words, which take 3 to 9 s to say, in today's spelling."""
    found = []
    for novel in novels:
        for text in (assets.austen() / f"{novel}.txt").read_text(encoding="utf-8").split("\n\n"):
            if 10 <= len(text.split()) <= 18 and re.fullmatch(r"[A-Za-z ,.;:!?'\"]+", text) and not OLD.search(text):
                found.append(text)
    return random.Random(seed).sample(sorted(set(found)), count)


def spoken(texts: Sequence[str], voice: Voice) -> list[np.ndarray]:
    return [speak(text, voice) for text in texts]


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, or what it returned before, in JSON."""
    if not file.is_file():
        content = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def heard(bundle: Path, variant: str, adapter: str | None, waves: Sequence[np.ndarray]) -> dict[str, Any]:
    """What one variant writes, and the CPU seconds that it takes."""
    bundle, variant = place_of(bundle, variant)
    model = runtime.open(bundle, variant=variant, threads=1)
    view = model.adapter(adapter) if adapter else model.base
    view.transcribe(waves[0], sampling_rate=SAMPLING_RATE, language="en")  # first touch of the weights
    begin = time.process_time()
    found = view.transcribe(list(waves), sampling_rate=SAMPLING_RATE, language="en")
    return {"texts": [each.text for each in found], "cpu_s": time.process_time() - begin}


def heard_by_torch(adapter: Path | None, waves: Sequence[np.ndarray]) -> dict[str, Any]:
    """What transformers' ``generate`` writes with PEFT's model in fp32."""
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(1)
    processor = WhisperProcessor.from_pretrained(assets.whisper_base())
    model = WhisperForConditionalGeneration.from_pretrained(assets.whisper_base()).eval()
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()
    texts: list[str] = []
    begin = time.process_time()
    with torch.no_grad():
        for first in range(0, len(waves), 4):
            frames = processor(list(waves[first : first + 4]), sampling_rate=SAMPLING_RATE, return_tensors="pt")[
                "input_features"
            ]
            tokens = model.generate(input_features=frames, language="en", task="transcribe")
            texts += [
                text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)
            ]  # as the runtime does
    return {"texts": texts, "cpu_s": time.process_time() - begin}


def word_errors(
    texts: Sequence[str], answers: Sequence[str], variant: str, adapter: str | None, voice: str
) -> Measured:
    """The word error rate of normalized texts, with its interval over clips."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalized = EnglishTextNormalizer({})
    scored = Scored(
        adapter, variant, voice, "text",
        np.array([normalized(text) for text in texts]), np.array([normalized(text) for text in answers]),
    )  # fmt: skip
    (found,) = measure(scored, metrics=[metric for metric in METRICS if metric.name == "wer"])
    return found


def files_mb(bundle: Path, variant: str) -> float:
    """Megabytes of a variant's files."""
    bundle, variant = place_of(bundle, variant)
    chosen = read_bundle(bundle).manifest.variants[variant]
    files = {chosen.file, chosen.decoder_file, *chosen.data} - {None}
    return sum((bundle / str(file)).stat().st_size for file in files) / 1e6


def change(before: Measured, after: Measured) -> str:
    """How much a word error rate moved on the same clips, in points, with its 95 % interval."""
    moved = percentile_interval(after.value - before.value, after.draws - before.draws, 0.95)
    return f"{100 * moved.estimate:+.2f} ({100 * moved.lower:+.2f} to {100 * moved.upper:+.2f})"


def place_of(bundle: Path, row: str) -> tuple[Path, str]:
    """The bundle and the variant of a row of the tables."""
    return (bundle.with_name(re.sub(r"\W+", "-", row)), "q4") if row in FITTED else (bundle, row)


def bundle_of(out: Path, variants: Sequence[str]) -> Path:
    """The base with slots at every linear layer, for adapters to come, and each variant."""
    bundle = out / "bundle"
    if not bundle.is_dir():
        export(assets.whisper_base(), {}, bundle, slots="all-linear")
    for variant in variants:
        if variant not in FITTED and variant not in read_bundle(bundle).manifest.variants:
            quantize(bundle, variant, measure=False)
    return bundle


def sounds_of(out: Path) -> dict[str, LanguageRows]:
    """What q4 is fitted to: sounds of all voices, and of the accent for its adapter."""
    drawn = passages(TRAINED_ON, 2 * FITTED_TO, seed=2)
    found = {}
    for name, texts in (("*", drawn[:FITTED_TO]), (ADAPTER, drawn[FITTED_TO:])):
        folder = out / f"sounds-{'all' if name == '*' else name}"
        voices = list(VOICES) if name == "*" else [ACCENT]
        rows = []
        for place, text in enumerate(texts):
            voice = voices[place % len(voices)]
            (file,) = speak_to_files([text], folder / str(place), VOICES[voice])
            rows.append({"audio": file.relative_to(folder).as_posix(), "text": text, "language": "en"})
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        found[name] = read_language_rows(folder / "rows.jsonl", sounds=True)
    return found


def fit_rows(out: Path, bundle: Path, rows: Sequence[str]) -> None:
    """A bundle with the adapter and a q4 fitted to sound for each of these rows."""
    for row in rows:
        own, _ = place_of(bundle, row)
        if row not in FITTED or own.is_dir():
            continue
        shutil.copytree(bundle, work := own.with_name(f"{own.name}.work"), dirs_exist_ok=True)
        begin = time.process_time()
        done = quantize(work, "q4", data=sounds_of(out), replace=True, **FITTED[row])
        spent = time.process_time() - begin
        told = "; ".join(f"{q.adapter or 'base'} {q.divergence:.4f} nats, {q.same_top:.1%}" for q in done.quality)
        print(f"{row}: {done.bytes_after / 1e6:.1f} MB, {spent:.0f} CPU s; {told}", flush=True)
        work.rename(own)


def adapter_of(out: Path, steps: int, bundle: Path) -> Path:
    """The adapter, trained and added to the bundle."""
    adapter = out / f"adapter-{steps}"
    if not adapter.is_dir():
        lessons, begin = passages(TRAINED_ON, 2 * steps, seed=1), time.process_time()
        losses = train(assets.whisper_base(), spoken(lessons, VOICES[ACCENT]), lessons, adapter, steps=steps)
        spent = time.process_time() - begin
        print(f"{steps} steps: loss {np.mean(losses[:10]):.2f} to {np.mean(losses[-10:]):.2f}, {spent:.0f} CPU s")
    if ADAPTER not in read_bundle(bundle).manifest.adapters:
        add(bundle, ADAPTER, adapter)
    return adapter


def print_row(row: dict[str, str], *, first: bool) -> None:
    """A row of a table, under its head where it is the first."""
    if first:
        print("\n| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
    print("| " + " | ".join(row.values()) + " |", flush=True)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=16, show_default=True, help="Of each voice.")
@click.option("--steps", default=100, show_default=True, help="Of training, two clips each.")
@click.option(
    "--variant", "variants", multiple=True, default=(*VARIANTS, *FITTED), show_default=True, help="May be repeated."
)
def main(out: Path, clips: int, steps: int, variants: tuple[str, ...]) -> None:
    """Print a table of variants, and one of what the adapter brings to each."""
    drawn = passages(JUDGED_ON, clips * len(VOICES), seed=0)
    texts = {name: drawn[place * clips : (place + 1) * clips] for place, name in enumerate(VOICES)}
    waves = {name: spoken(texts[name], voice) for name, voice in VOICES.items()}
    seconds = sum(len(wave) for each in waves.values() for wave in each) / SAMPLING_RATE
    print(
        f"{clips} clips of each of {len(VOICES)} voices: {seconds:.0f} s, {sum(len(text.split()) for text in drawn)} words"
    )
    bundle = bundle_of(out, [variant for variant in variants if variant != "fp32"])
    adapter = adapter_of(out, steps, bundle)
    fit_rows(out, bundle, variants)

    def answers(variant: str, name: str | None, voice: str, folder: str, adapter: Path | None = None) -> dict[str, Any]:
        torch = partial(heard_by_torch, adapter)
        hear = torch if variant == "torch" else partial(heard, bundle, variant, name)
        return kept(out / folder / f"{variant}-{voice}.json", partial(hear, waves[voice]))

    wholes: dict[str, Measured] = {}
    accents: dict[str, Measured] = {}
    by_torch: list[str] = []
    for variant in ("torch", *variants):
        found = {voice: answers(variant, None, voice, f"base-{clips}") for voice in VOICES}
        rates = {voice: word_errors(texts[voice], found[voice]["texts"], variant, None, voice) for voice in VOICES}
        written = [text for voice in VOICES for text in found[voice]["texts"]]
        by_torch = by_torch or written  # the first row
        wholes[variant], accents[variant] = word_errors(drawn, written, variant, None, "all"), rates[ACCENT]
        row = {
            "variant": variant,
            "MB": "" if variant == "torch" else f"{files_mb(bundle, variant):.1f}",
            **{voice: f"{100 * rates[voice].value:.1f}" for voice in VOICES},
            "all three": f"{100 * wholes[variant].value:.2f}",
            "change from torch": "" if variant == "torch" else change(wholes["torch"], wholes[variant]),
            "texts as torch": f"{sum(ours == theirs for ours, theirs in zip(written, by_torch, strict=True))} of {len(drawn)}",
            "CPU s / s": f"{sum(each['cpu_s'] for each in found.values()) / seconds:.3f}",
        }
        print_row(row, first=variant == "torch")

    by_torch = []
    for variant in ("torch", *variants):
        written = answers(variant, ADAPTER, ACCENT, f"adapter-{clips}-{steps}", adapter)["texts"]
        by_torch = by_torch or written
        tuned = word_errors(texts[ACCENT], written, variant, ADAPTER, ACCENT)
        row = {
            "variant": variant,
            f"{ACCENT}, base": f"{100 * accents[variant].value:.1f}",
            "adapter": f"{100 * tuned.value:.1f}",
            "change": change(accents[variant], tuned),
            "texts as torch": f"{sum(ours == theirs for ours, theirs in zip(written, by_torch, strict=True))} of {clips}",
        }
        print_row(row, first=variant == "torch")


if __name__ == "__main__":
    main()
