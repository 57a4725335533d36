"""What timestamps and second tries do for Whisper base, on speech whose text and times are known.

    python benchmarks/speech.py build/speech --clips 12          # makes the bundle and its variants
    python benchmarks/speech_times.py build/speech --clips 12    # the figures of docs/speech.md

It reads the bundle that ``benchmarks/speech.py`` made in OUT, and the same clips of three voices.

1. How many clips get the tokens that transformers' ``generate(return_timestamps=True)`` writes in fp32, base and adapter.
2. The clips of the voices that Whisper understands in one sound, half a second between them: how far the nearest begin of a segment
   is from where each passage begins, and what timestamps cost in CPU time.
3. Second tries by variant: how many windows repeat themselves or are unlikely, the word error rate without second tries and with
   ``fallback="all"``, its change on the same clips with a 95 % interval, and what they cost in CPU time. Clips are heard as they
   are, and with white noise as loud as the speech. The last column says how many texts are the same by default and with "off".

4. Loops: six clips at a time joined to windows of 29 s, with noise as loud as the speech. How many windows repeat themselves
   without second tries and by default, and the word error rates.

``--part`` chooses. CPU seconds of one thread. Needs ``apt-get install espeak-ng`` and
``pip install 'edgepeft[demo,metrics,audio]'``.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from speech import ACCENT, ADAPTER, JUDGED_ON, VOICES, change, passages, print_row, spoken, word_errors

from edgepeft import runtime
from edgepeft.demo import assets
from edgepeft.demo.speech import SAMPLING_RATE
from edgepeft.runtime import Runtime, Transcription, View

#: Between passages, in seconds, and the loudness that is speech.
PAUSE, LOUD = 0.5, 0.01
#: Clips that make a long window.
JOINED = 6
PARTS = ("tokens", "times", "tries", "loops")


def as_transformers(model: Runtime, name: str | None, adapter: Path | None, waves: Sequence[np.ndarray]) -> int:
    """How many clips get transformers' tokens with timestamps."""
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(1)
    processor = WhisperProcessor.from_pretrained(assets.whisper_base())
    reference = WhisperForConditionalGeneration.from_pretrained(assets.whisper_base()).eval()
    reference = reference if adapter is None else PeftModel.from_pretrained(reference, adapter).eval()
    end, same = processor.tokenizer.eos_token_id, 0
    for wave in waves:
        frames = processor(wave, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            found = reference.generate(
                input_features=frames, language="en", task="transcribe", return_timestamps=True,
                force_unique_generate_call=True, return_dict_in_generate=True,
            )  # fmt: skip
        theirs = found.sequences[0, 3:].tolist()  # behind start, language and task
        mine = model.adapter(name).transcribe(wave, language="en", timestamps=True)
        same += list(mine.segments[0].generation.tokens) == theirs[: theirs.index(end) + 1]
    return same


def timed(view: View | Runtime, waves: Any, **options: Any) -> tuple[Any, float]:
    """What is written, and the CPU seconds that it takes."""
    begin = time.process_time()
    found = view.transcribe(waves, sampling_rate=SAMPLING_RATE, language="en", **options)
    return found, time.process_time() - begin


def print_times(out: Path, variant: str, waves: Sequence[np.ndarray]) -> None:
    """The second part."""
    begins, parts, at = [], [], 0
    for wave in waves:
        begins.append((at + int(np.flatnonzero(np.abs(wave) > LOUD)[0])) / SAMPLING_RATE)
        parts += [wave, np.zeros(int(PAUSE * SAMPLING_RATE), np.float32)]
        at += sum(map(len, parts[-2:]))
    long = np.concatenate(parts)
    model = runtime.open(out / "bundle", variant=variant, threads=1)
    timed(model, waves[0])  # first touch of the weights
    plain: list[float] = []
    marked: list[float] = []
    for _ in range(2):
        plain.append(timed(model, long)[1])
        found, spent = timed(model, long, timestamps=True)
        marked.append(spent)
    starts = np.array([segment.start for segment in found.segments])
    late = [float(np.abs(starts - begin).min()) for begin in begins]
    print(
        f"\n{variant}, {found.seconds:.0f} s of {len(waves)} passages: {len(found.segments)} segments; the nearest begin is "
        f"{np.median(late):.2f} s away (median; 90 %: {np.quantile(late, 0.9):.2f} s, worst {max(late):.2f} s); "
        f"CPU {sum(marked) / sum(plain):.2f} of that without timestamps",
        flush=True,
    )


def print_tries(
    out: Path, variant: str, waves: Mapping[str, Sequence[np.ndarray]], texts: Mapping[str, Sequence[str]], first: bool
) -> None:
    """A row of the third part for each loudness of noise."""
    model = runtime.open(out / "bundle", variant=variant, threads=1)
    timed(model, next(iter(waves.values()))[0])
    answers = [text for each in texts.values() for text in each]

    def rate(found: Sequence[Transcription], what: str) -> Any:
        return word_errors(answers, [each.text for each in found], what, None, "all")

    for noise in (None, 0.0):
        heard = [hissing(wave, noise) for each in waves.values() for wave in each]
        once, cost = timed(model, heard, fallback="off")
        again, dearer = timed(model, heard, fallback="all")
        same = ""
        if noise is None:
            by_default, _ = timed(model, heard)
            same = f"{sum(a.text == b.text for a, b in zip(by_default, once, strict=True))} of {len(heard)}"
        sure = [segment.confidence for each in once for segment in each.segments]
        row = {
            "variant": variant,
            "noise": "none" if noise is None else "as loud",
            "loops": str(sum(each.repeats for each in sure)),
            "unlikely": str(sum(each.fails and not each.repeats for each in sure)),
            "no speech": str(sum(each.silent for each in sure)),
            "WER, off": f"{100 * rate(once, 'off').value:.1f}",
            "WER, all": f"{100 * rate(again, 'all').value:.1f}",
            "change": change(rate(once, "off"), rate(again, "all")),
            "CPU, all": f"{dearer / cost:.2f}x",
            "texts, default": same,
        }
        print_row(row, first=first and noise is None)


def print_loops(
    out: Path, variant: str, waves: Mapping[str, Sequence[np.ndarray]], texts: Mapping[str, Sequence[str]]
) -> None:
    """The fourth part, with timestamps and without."""
    model = runtime.open(out / "bundle", variant=variant, threads=1)
    clips = [wave for each in waves.values() for wave in each]
    answers = [text for each in texts.values() for text in each]
    firsts = range(0, len(clips), JOINED)
    long = [np.concatenate(clips[first : first + JOINED])[: 29 * SAMPLING_RATE] for first in firsts]
    said = [" ".join(answers[first : first + JOINED]) for first in firsts]
    heard = [hissing(wave, 0.0) for wave in long]
    for timestamps in (False, True):
        once, cost = timed(model, heard, fallback="off", timestamps=timestamps)
        kept, dearer = timed(model, heard, timestamps=timestamps)
        rates = [word_errors(said, [each.text for each in found], variant, None, "all").value for found in (once, kept)]
        before, after = (
            sum(each.repeats for each in {id(s.generation): s.confidence for t in found for s in t.segments}.values())
            for found in (once, kept)
        )
        marks = "on" if timestamps else "off"
        print(
            f"{variant}, timestamps {marks}: of {len(heard)} windows {before} repeat themselves, {after} by default; "
            f"word error rate {100 * rates[0]:.0f} and {100 * rates[1]:.0f} %, CPU {dearer / cost:.2f}x",
            flush=True,
        )


def hissing(wave: np.ndarray, snr_db: float | None) -> np.ndarray:
    """A wave with white noise so many decibels below it."""
    if snr_db is None:
        return wave
    loudness = np.sqrt(np.mean(wave**2)) * 10 ** (-snr_db / 20)
    noise = np.random.default_rng(len(wave)).standard_normal(len(wave), dtype=np.float32)
    return np.asarray(np.clip(wave + loudness * noise, -1, 1), dtype=np.float32)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=12, show_default=True, help="Of each voice.")
@click.option("--steps", default=100, show_default=True, help="Of the adapter's training.")
@click.option(
    "--variant", "variants", multiple=True, default=("fp32", "q4"), show_default=True, help="May be repeated."
)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="All; may be repeated.")
def main(out: Path, clips: int, steps: int, variants: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """Print the parts."""
    drawn = passages(JUDGED_ON, clips * len(VOICES), seed=0)
    texts = {name: drawn[place * clips : (place + 1) * clips] for place, name in enumerate(VOICES)}
    waves = {name: spoken(texts[name], voice) for name, voice in VOICES.items()}
    if "tokens" in parts:
        whole = runtime.open(out / "bundle", variant="fp32", threads=1)
        every = [wave for each in waves.values() for wave in each]
        print(f"tokens as transformers, base: {as_transformers(whole, None, None, every)} of {len(every)}", flush=True)
        adapter = out / f"adapter-{steps}"
        print(f"with the adapter: {as_transformers(whole, ADAPTER, adapter, waves[ACCENT])} of {clips}", flush=True)
    for place, variant in enumerate(variants):
        if "times" in parts:
            print_times(out, variant, [wave for name, each in waves.items() if name != ACCENT for wave in each])
        if "tries" in parts:
            print_tries(out, variant, waves, texts, first=place == 0)
        if "loops" in parts:
            print_loops(out, variant, waves, texts)


if __name__ == "__main__":
    main()
