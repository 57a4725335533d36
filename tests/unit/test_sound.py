"""Files of sound, rates, and where long sound is cut."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import numpy as np
import pytest

from edgepeft.errors import DataError
from edgepeft.runtime import read_sound
from edgepeft.runtime.generation.log_mel import LogMel
from edgepeft.runtime.sound import as_wave, windows

RATE = 16_000


def tone(seconds: float = 0.1, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    """A sine, ``[samples]`` float32."""
    found: np.ndarray = (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)
    return found


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1)])
def test_wav_of_every_width(tmp_path: Path, width: int, channels: int) -> None:
    samples = np.stack([tone(), 0.5 * tone(hertz=700.0)][:channels], axis=1)
    whole = np.round(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (whole + 128).astype("u1") if width == 1 else whole.astype("<i4")
    data = raw.tobytes() if width in {1, 4} else raw.view("u1").reshape(*samples.shape, 4)[..., :width].tobytes()
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(RATE)
        out.writeframes(data)
    found, rate = read_sound(tmp_path / "a.wav")
    assert rate == RATE
    assert found.dtype == np.float32
    assert np.abs(found - samples.mean(axis=1)).max() < 2.0 ** -(8 * width - 2) + 1e-6


def test_flac(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.stack([tone(), tone()], axis=1), 22_050)
    found, rate = read_sound(tmp_path / "a.flac")
    assert rate == 22_050
    assert np.abs(found - tone()).max() < 1e-4


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"plain text"])
def test_what_holds_no_sound(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("soundfile")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match="holds no sound"):
        read_sound(tmp_path / "a.wav")


def test_resampling_keeps_the_tone() -> None:
    pytest.importorskip("soxr")
    found = as_wave(tone(0.5, rate=44_100), 44_100, RATE, "sound")
    assert len(found) == RATE // 2
    inner = slice(1000, -1000)
    assert np.abs(found[inner] - tone(0.5)[inner]).max() < 1e-3


def test_windows_hold_all_and_none_is_too_long() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 99, 100, 101, 1234, 5000):
        wave_ = rng.standard_normal(length).astype(np.float32)
        parts = [*windows(wave_, 10, 100)]
        assert parts[0][0] == 0
        assert parts[-1][1] == length
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(parts))
        assert all(0 < end - start <= 100 for start, end in parts)


def test_windows_are_cut_where_it_is_quiet() -> None:
    loud = np.ones(1000, np.float32)
    loud[80:90] = 0
    (_, cut), *_ = windows(loud, 10, 100)
    assert 80 < cut <= 90


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_equals_transformers(bins: int) -> None:
    """Whisper's feature extractor in transformers is the reference; it computes in float64 and rounds."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
    mine = LogMel(RATE, 2 * RATE, bins, 400, 160)
    noise = np.random.default_rng(1).standard_normal(RATE).astype(np.float32) * 0.1
    for sound in (noise, tone(1.9), np.zeros(400, np.float32)):
        theirs = reference(sound, sampling_rate=RATE, return_tensors="np").input_features[0]
        assert theirs.shape == mine(sound).shape == (bins, 200)
        assert np.abs(mine(sound) - theirs).max() < 1e-4
