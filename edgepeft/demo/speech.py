"""Speech whose text is known, spoken by the synthesizer espeak-ng: what a recognizer is judged by where no recordings are.

Its voices are robotic, so a good recognizer makes mistakes with them; it is no stand-in for recordings of people. The
same text gives the same samples in each run of one version of espeak-ng (1.51 is Debian 12's).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import AssetError, MissingExtraError
from ..runtime import read_sound

#: Samples a second, what Whisper and most recognizers take.
SAMPLING_RATE = 16_000


@dataclass(frozen=True)
class Voice:
    """How a text is spoken.

    ``name`` is one of ``espeak-ng --voices``, such as ``en-us`` or ``en-gb-scotland``, or another language's: the text
    is then read by that language's rules. ``+f3``, ``+croak`` and so on after it change the speaker. ``pace`` is in words a
    minute. ``snr_db`` adds white noise that many decibels below the speech; ``None`` adds none.
    """

    name: str = "en-us"
    pace: int = 175
    snr_db: float | None = None


def speak(text: str, voice: Voice = Voice()) -> np.ndarray:
    """The samples of ``text``, spoken.

    Args:
        text: what is said; punctuation makes pauses.
        voice: who says it, how fast and with how much noise.

    Returns:
        ``[samples]`` float32 in -1 to 1, at :data:`SAMPLING_RATE`, one channel. The noise depends on the text alone.

    Raises:
        MissingExtraError: without ``soxr``.
        AssetError: without espeak-ng, for a voice that it has not, and for a text that gives no sound.

    Example::

        samples = speak("The meeting starts at nine.", Voice("en-gb", snr_db=20))
    """
    try:
        import soxr
    except ImportError as error:
        raise MissingExtraError(
            "espeak-ng speaks at 22,050 Hz; 16,000 takes soxr, which is not installed: pip install 'edgepeft[audio]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="edgepeft-speech-") as scratch:
        file = Path(scratch) / "spoken.wav"
        _espeak(["-v", voice.name, "-s", str(voice.pace), "-w", str(file), "--stdin"], text, voice)
        if not file.is_file():
            raise AssetError(f"espeak-ng made no sound of {text!r} with the voice {voice.name!r}")
        spoken, rate = read_sound(file)
    samples = soxr.resample(spoken, rate, SAMPLING_RATE)
    if voice.snr_db is not None:
        loudness = np.sqrt(np.mean(samples**2)) * 10 ** (-voice.snr_db / 20)
        noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(len(samples), dtype=np.float32)
        samples = np.clip(samples + loudness * noise, -1, 1)
    return np.asarray(samples, dtype=np.float32)


def speak_to_files(texts: Sequence[str], folder: Path, voice: Voice = Voice()) -> list[Path]:
    """Speak each text to a file ``0000.wav``, ``0001.wav`` … of ``folder``: 16 kHz, one channel, 16 bits.

    Args:
        texts: what is said, a file each.
        folder: made where it is not there; files of the same names are replaced.
        voice: as for :func:`speak`, which says what is raised too.

    Returns:
        The files, in the order of ``texts``.

    Example::

        files = speak_to_files(["Hello.", "Good bye."], Path("speech"), Voice("en-gb"))
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04d}.wav" for number in range(len(texts))]
    for text, file in zip(texts, files, strict=True):
        samples = np.rint(speak(text, voice) * 32767).astype("<i2")
        with wave.open(str(file), "wb") as sink:
            sink.setnchannels(1)
            sink.setsampwidth(2)
            sink.setframerate(SAMPLING_RATE)
            sink.writeframes(samples.tobytes())
    return files


def _espeak(arguments: list[str], text: str, voice: Voice) -> None:
    if shutil.which("espeak-ng") is None:
        raise AssetError("speaking a text needs espeak-ng, which is not installed: apt-get install espeak-ng")
    done = subprocess.run(["espeak-ng", *arguments], input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise AssetError(
            f"espeak-ng failed with the voice {voice.name!r}: {done.stderr.strip() or done.returncode}. "
            "`espeak-ng --voices` lists what it has"
        )
