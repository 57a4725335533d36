"""Sound: files as waves, waves at the rate of a model, and long ones cut where it is quiet."""

from __future__ import annotations

import wave as wav
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, InputError, MissingExtraError

Wave = npt.NDArray[np.float32]
#: Bytes of a sample in a WAV file, and how NumPy reads it; three bytes are widened.
_PCM = {1: "u1", 2: "<i2", 4: "<i4"}
#: The last part of a window in which a quiet place is looked for, and the length that is looked at, in seconds.
_LOOK_BACK, _QUIET = 5.0, 0.2
_FORMATS = (
    "WAV in 8 to 32 bits is read as it is; FLAC, MP3, OGG and WAV of other kinds need: pip install 'edgepeft[audio]'"
)


def read_sound(file: str | Path) -> tuple[Wave, int]:
    """A file of sound as one channel (the mean of several).

    Args:
        file: PCM in a WAV file; with ``edgepeft[audio]`` whatever libsndfile reads (FLAC, MP3, OGG).

    Returns:
        Samples ``[samples]`` of -1 to 1, and how many there are a second.

    Raises:
        DataError: There is no such file, or it holds no sound.
        MissingExtraError: Its format needs ``edgepeft[audio]``.

    Example:
        >>> wave, rate = read_sound("question.wav")
        >>> wave.shape, rate
        ((48000,), 16000)
    """
    path = Path(file)
    try:
        channels, rate = _read_wav(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (wav.Error, EOFError, KeyError) as error:
        channels, rate = _read_any(path, error)
    if not channels.size or rate < 1:
        raise DataError(f"{path} holds no sound: {len(channels)} samples at {rate} a second")
    return channels.mean(axis=1, dtype=np.float32), rate


def _read_wav(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    with wav.open(str(path), "rb") as opened:
        width, count, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
        raw = opened.readframes(opened.getnframes())
    whole = len(raw) - len(raw) % (width * count)
    if width == 3:
        parts = np.frombuffer(raw[:whole], np.uint8).reshape(-1, 3)
        numbers = np.pad(parts, ((0, 0), (1, 0))).view("<i4").reshape(-1, count)
        return (numbers / np.float32(2**31)).astype(np.float32), rate
    found = np.frombuffer(raw[:whole], _PCM[width]).reshape(-1, count).astype(np.float32)
    return (found - 128) / np.float32(128) if width == 1 else found / np.float32(2 ** (8 * width - 1)), rate


def _read_any(path: Path, why: Exception) -> tuple[npt.NDArray[np.float32], int]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError(f"{path} is no WAV file of PCM ({why}). {_FORMATS}") from error
    try:
        found, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path} holds no sound that libsndfile can read: {error}") from error
    return found, int(rate)


def as_wave(sound: Any, given: int, wanted: int, what: str) -> Wave:
    """Samples of one channel at the rate of a model.

    Args:
        sound: Samples ``[samples]`` of -1 to 1, or of 16-bit integers.
        given: How many there are a second.
        wanted: How many the model takes a second.
        what: Names the sound, for messages.

    Raises:
        InputError: It is no such array, is empty, or holds NaN or infinity.
        MissingExtraError: The rates differ, and resampling needs ``edgepeft[audio]``.
    """
    array = np.asarray(sound)
    if array.ndim != 1 or not array.size or array.dtype not in {np.dtype(t) for t in ("f2", "f4", "f8", "i2")}:
        raise InputError(
            f"{what} is an array [samples] of floats of -1 to 1 or of 16-bit integers, one channel; found {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    if type(given) is not int or given < 1:
        raise InputError(f"sampling_rate is a whole number of samples a second, found {given!r:.80}")
    found = array.astype(np.float32) / np.float32(32768) if array.dtype == np.int16 else array.astype(np.float32)
    if not np.isfinite(found).all():
        raise InputError(f"{what} holds NaN or infinity at sample {int(np.flatnonzero(~np.isfinite(found))[0])}")
    if given == wanted:
        return found
    try:
        import soxr
    except ImportError as error:
        raise MissingExtraError(
            f"{what} has {given} samples a second and the model takes {wanted}; resampling needs: pip install 'edgepeft[audio]'"
        ) from error
    resampled: Wave = soxr.resample(found, given, wanted)
    return resampled


def windows(wave: Wave, rate: int, most: int) -> Iterator[tuple[int, int]]:
    """Where a wave is cut into parts of at most ``most`` samples: at the quietest place of the last five seconds of each.

    Example:
        >>> [*windows(np.zeros(50), 10, 40)]
        [(0, 40), (40, 50)]
    """
    start = 0
    while len(wave) - start > most:
        length = max(1, int(_QUIET * rate))
        first = start + max(most - int(_LOOK_BACK * rate), most // 2)
        powers = np.convolve(np.square(wave[first : start + most], dtype=np.float64), np.ones(length), "valid")
        quiet = powers.min() if len(powers) else 0.0
        end = start + most if not len(powers) else first + int(np.flatnonzero(powers <= quiet)[-1]) + length // 2
        end = start + most if quiet == powers.max(initial=0.0) else end  # one place is as quiet as any other
        yield start, end
        start = end
    yield start, len(wave)
