"""edgepeft.demo.speech with espeak-ng, and what it says without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepeft.demo import speech
from edgepeft.demo.speech import SAMPLING_RATE, Voice, speak, speak_to_files
from edgepeft.errors import AssetError
from edgepeft.runtime import read_sound

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng: apt-get install espeak-ng")
TEXT = "The meeting starts at nine."


@needs_espeak
def test_files_hold_what_speak_gives_at_sixteen_thousand_samples_a_second(tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    files = speak_to_files([TEXT, "Hello."], tmp_path / "made")
    assert [file.name for file in files] == ["0000.wav", "0001.wav"]
    samples, rate = read_sound(files[0])
    spoken = speak(TEXT)
    assert rate == SAMPLING_RATE
    assert 1 < len(spoken) / rate < 4  # five words at 175 a minute are 1.7 s
    np.testing.assert_allclose(samples, spoken, rtol=0, atol=1e-4)  # 16 bits: half a step is 1.5e-5, and 32767 / 32768
    assert len(read_sound(files[1])[0]) < len(samples)


@needs_espeak
def test_voices_differ_and_noise_is_as_loud_as_asked_and_the_same_each_time() -> None:
    pytest.importorskip("soxr")
    clean, noisy = speak(TEXT), speak(TEXT, Voice(snr_db=10))
    noise = noisy - clean
    ratio_db = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
    assert ratio_db == pytest.approx(10, abs=0.3)  # the noise's own power over 27,000 samples varies by under 1 %
    np.testing.assert_array_equal(noisy, speak(TEXT, Voice(snr_db=10)))
    assert len(speak(TEXT, Voice(pace=300))) < 0.8 * len(clean)
    assert not np.array_equal(speak(TEXT, Voice("en-gb"))[:8000], clean[:8000])


@needs_espeak
def test_an_unknown_voice_is_named() -> None:
    pytest.importorskip("soxr")
    with pytest.raises(AssetError, match=r"voice 'klingon-x'.*--voices"):
        speak(TEXT, Voice("klingon-x"))


def test_without_espeak_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("soxr")
    monkeypatch.setattr(speech.shutil, "which", lambda _: None)
    with pytest.raises(AssetError, match="apt-get install espeak-ng"):
        speak(TEXT)
