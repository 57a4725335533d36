"""Whisper base with timestamps: tokens of transformers and PEFT on spoken sentences, and times near those of the speech.

The reference is ``generate(return_timestamps=True)`` in fp32, one call for a window.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_lora

from edgepeft import runtime
from edgepeft.demo import assets, speech
from edgepeft.pipeline import export

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng: apt-get install espeak-ng"),
]

RATE = speech.SAMPLING_RATE
SPOKEN = (
    ("Emma had always wanted to travel to the coast before the winter came.", speech.Voice("en-gb")),
    ("The meeting starts at nine. Bring the letters with you, and the two maps.", speech.Voice("en-us")),
    ("You have not been long enough in Bath to enjoy the evening parties of the place.", speech.Voice("fr")),
)


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    pytest.importorskip("soxr")
    return [speech.speak(text, voice) for text, voice in SPOKEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a random adapter, small enough that words come out, beside the adapter."""
    root = tmp_path_factory.mktemp("whisper")
    adapter = save_lora(
        root / "random", assets.whisper_base(), task="automatic-speech-recognition", scale=0.02, r=4,
        target_modules=["q_proj", "v_proj"], seed=1,
    )  # fmt: skip
    export(assets.whisper_base(), {"random": adapter}, root / "bundle")
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> runtime.Runtime:
    return runtime.open(folder / "bundle")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, "random"])
def test_tokens_are_those_of_transformers(
    folder: Path, model: runtime.Runtime, waves: list[np.ndarray], name: str | None
) -> None:
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(assets.whisper_base())
    reference: Any = WhisperForConditionalGeneration.from_pretrained(assets.whisper_base())
    if name is not None:
        reference = PeftModel.from_pretrained(reference, folder / name)
    reference.eval()
    end = processor.tokenizer.eos_token_id
    found = model.adapter(name).transcribe(waves, language="en", timestamps=True)
    for one, wave in zip(found, waves, strict=True):
        frames = processor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            written = reference.generate(
                input_features=frames, language="en", task="transcribe", return_timestamps=True,
                force_unique_generate_call=True, return_dict_in_generate=True,
            ).sequences[0, 3:].tolist()  # fmt: skip
        assert list(one.segments[0].generation.tokens) == written[: written.index(end) + 1]
        text = processor.decode(written, skip_special_tokens=True)
        assert one.text == text.strip()


#: Different sentences: Whisper base counts on whole seconds where it hears the same ones over and over.
LONG = (
    "There are four umbrellas up already, how I hate the sight of an umbrella.",
    "He is a happy man, said the general, with a look of very happy contempt.",
    "I wish your heart were independent, that would be enough for me.",
    "Well, my dear, said Mrs. Jennings, and how did you travel?",
    "You have not been long enough in Bath to enjoy the evening parties of the place.",
    "Now I rather suspect that my interest would do very little.",
    "Mrs. Dashwood again assured him that no alteration of the kind should be attempted.",
    "It is a beautiful country, he replied, but these bottoms must be dirty in winter.",
    "No, that he is not, he is of no profession at all.",
)


def test_times_are_those_of_the_speech(model: runtime.Runtime) -> None:
    """Some 40 s, two windows, half a second behind each sentence."""
    pytest.importorskip("soxr")
    begins, at, parts = [], 0, []
    for text in LONG:
        parts += [speech.speak(text, speech.Voice("en-us")), np.zeros(RATE // 2, np.float32)]
        begins.append((at + int(np.flatnonzero(np.abs(parts[-2]) > 0.01)[0])) / RATE)
        at += sum(map(len, parts[-2:]))
    found = model.transcribe(np.concatenate(parts), language="en", timestamps=True)
    assert len({id(segment.generation) for segment in found.segments}) > 1
    starts = np.array([segment.start for segment in found.segments])
    assert np.median([np.abs(starts - begin).min() for begin in begins]) < 0.3
    assert found.segments[-1].end <= found.seconds
    assert "<|" not in found.text


def test_nobody_speaks(model: runtime.Runtime) -> None:
    """Faint noise: Whisper base writes something all the same, and says that it heard no speech."""
    noise = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32) * 1e-3
    found = model.transcribe(noise, language="en", fallback="off")
    (sure,) = [segment.confidence for segment in found.segments]
    assert sure.no_speech is not None
    assert 0 <= sure.no_speech <= 1
    kept = model.transcribe(noise, language="en", fallback="all")
    assert (kept.text == "") == kept.segments[0].confidence.silent
