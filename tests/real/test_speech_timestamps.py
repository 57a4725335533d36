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


def test_times_are_those_of_the_speech(model: runtime.Runtime, waves: list[np.ndarray]) -> None:
    """45 s of two windows: a pause of two seconds before each sentence; Whisper's times are good for half a second here."""
    pause = np.zeros(2 * RATE, np.float32)
    order = [waves[0], waves[1], waves[0], waves[1], waves[0], waves[1]]
    begins, at = [], 0
    for wave in order:
        begins.append((at + len(pause) + int(np.flatnonzero(np.abs(wave) > 0.01)[0])) / RATE)
        at += len(pause) + len(wave)
    found = model.transcribe(
        np.concatenate([each for wave in order for each in (pause, wave)]), language="en", timestamps=True
    )
    assert len({id(segment.generation) for segment in found.segments}) > 1
    starts = np.array([segment.start for segment in found.segments])
    ends = np.array([segment.end for segment in found.segments])
    late = [
        np.abs(np.concatenate([starts, ends[:-1]]) - begin).min() for begin in begins
    ]  # a pause may be in either part
    assert np.median(late) < 0.5
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
