"""What a model that writes down speech runs to be calibrated: sounds for its encoder, what is said in them for its decoder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import Bundle
from ..bundle.cache_names import grows, is_past
from ..data import evenly
from ..errors import DataError, InputError
from ..quantize.moments import Feeds
from ..quantize.recipes import WHOLE
from ..runtime import read_sound
from ..runtime.generation.log_mel import LogMel, read_log_mel
from ..runtime.generation.speech import SoundDecoder, Transcriber
from ..runtime.sound import Wave, as_wave, windows
from ..runtime.views import View
from ..validate.language_rows import LanguageRow, LanguageRows
from ._calibrate import check_names
from ._calibration_crossed import Arrays, CrossedRuns, answered_runs, written

#: Windows of sound in all, half of them the base's where there are adapters: the decoder has few places in each.
SOUNDS = 128
#: How many of these at most the encoder is fitted to, which has hundreds of places in each, and compare matrices, a run of it each.
ENCODED, PROBED = 24, 4
#: The longest answer that a model writes itself.
WRITTEN = 128
#: Frames that the encoder makes a place of, and seconds of the silence behind a sound that it is fitted to as well. Most of a
#: window is silence after a short sound, at places that hold no word: weights fitted to it too are further from fp32.
FRAMES, QUIET = 2, 0.5
#: Bytes of what decoders read of all windows, which are on disk: less than ``SOUNDS`` of a model with large states.
ROOM = 8_000_000_000


@dataclass(frozen=True, eq=False)
class AnsweredSound:
    """Log-mel frames ``[1, bins, frames]`` of a window, tokens before its answer, those of the answer, and places of its sound."""

    frames: np.ndarray
    before: tuple[int, ...]
    answer: tuple[int, ...]
    places: int

    def feeds(self, view: View) -> tuple[Arrays, Arrays]:
        """Those of :class:`~edgepeft.pipeline._calibration_crossed.Answered`."""
        read = {"input_features": self.frames}
        return read, written(view, read, [*self.before, *self.answer[:-1]])

    def steps(self, view: View) -> Iterator[np.ndarray]:
        """Those of :class:`~edgepeft.pipeline._calibration_crossed.Answered`; no token is suppressed."""
        writer = _writer(view)
        decoder = SoundDecoder(writer.graphs, view.active, writer, self.frames, self.before)
        decoder.read({"input_features": self.frames}, {})
        logits = decoder.feed(np.array([self.before], np.int64))
        for place, token in enumerate(self.answer):
            yield np.array(logits[0])
            if place + 1 < len(self.answer):
                logits = decoder.feed(np.array([[token]], np.int64))


@dataclass(frozen=True)
class SoundRuns(CrossedRuns):
    """Feeds of both graphs; the encoder is fitted to some of its own."""

    def feeds_of(self, field: str) -> tuple[Feeds, ...]:
        """What calibrates the encoder (``"file"``) or the decoder (``"decoder_file"``)."""
        return self.decoder if field == "decoder_file" else tuple(self.feeds[i] for i in self._encoded())

    def counted_of(self, field: str) -> tuple[int, ...] | None:
        """How many rows of each of these runs count."""
        places = self.places or ()
        return None if field == "decoder_file" else tuple(places[i] for i in self._encoded())

    def _encoded(self) -> list[int]:
        return evenly(len(self.feeds), ENCODED)


def sound_runs(bundle: Bundle, data: Mapping[str, LanguageRows], *, rows: int) -> SoundRuns:
    """The runs that calibrate the two fp32 graphs of a model that writes down speech.

    Each adapter hears its sounds (all there are where it has none), and the decoder is run on what is said in them; where that is
    not told, or a sound is longer than a window, on what the fp32 model writes of it. What the decoder reads of each window is on
    disk, beside the bundle's files.

    Args:
        bundle: The bundle.
        data: Rows of sound by adapter (``"*"``: for all).
        rows: How many rows of each adapter are run.

    Raises:
        DataError: A file holds no sound, or the model does not know its language; the message names the row.
    """
    check_names(bundle, data)
    mel, sounds = read_log_mel(bundle), min(SOUNDS, ROOM // _state_bytes(bundle))

    def answered(view: View) -> list[AnsweredSound]:
        most = _most(bundle, view.name, sounds)
        heard = _heard(_rows_of(data, view.name), min(rows, most), mel)
        return [_answered(view, wave, row, said) for wave, row, said in heard]

    found = answered_runs(bundle, answered, probed=PROBED, hold=partial(on_disk, folder=bundle.path))
    return SoundRuns(**vars(found))


def check_sounds(bundle: Bundle, data: Mapping[str, LanguageRows], *, rows: int) -> None:
    """Raise what :func:`sound_runs` would of the files, before anything is copied or run."""
    check_names(bundle, data)
    mel = read_log_mel(bundle)
    for name in (None, *bundle.manifest.adapters):
        for _ in _heard(_rows_of(data, name), min(rows, _most(bundle, name, SOUNDS)), mel):
            pass


def disk_bytes(bundle: Bundle, data: Mapping[str, LanguageRows], *, rows: int) -> int:
    """About what :func:`sound_runs` puts on disk, at most."""
    each = _state_bytes(bundle)
    sounds = min(SOUNDS, ROOM // each)
    return each * sum(min(rows, _most(bundle, name, sounds)) for name in (None, *bundle.manifest.adapters) if data)


def on_disk(arrays: Arrays, folder: Path) -> Arrays:
    """The same float32 arrays in a file without a name below ``folder``: pages are read as they are used.

    The file is gone when the last of the arrays is. Arrays of another type, and empty ones, stay as they are.
    """
    large = {name: array for name, array in arrays.items() if array.dtype == np.float32 and array.size}
    if not large:
        return arrays
    with tempfile.TemporaryFile(dir=folder) as file:
        for array in large.values():
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        stored = np.memmap(file, np.float32, mode="r")
    found, start = dict(arrays), 0
    for name, array in large.items():
        found[name] = stored[start : start + array.size].reshape(array.shape)
        start += array.size
    return found


def _rows_of(data: Mapping[str, LanguageRows], name: str | None) -> Sequence[LanguageRow]:
    """The rows that the base or an adapter hears: its own, those for all, or else all there are."""
    own = data.get(name or "*", data.get("*"))
    return own.rows if own is not None else [row for each in data.values() for row in each.rows]


def _most(bundle: Bundle, name: str | None, sounds: int) -> int:
    """How many windows the base or an adapter hears, of so many in all."""
    adapters = len(bundle.manifest.adapters)
    share = sounds if not adapters else sounds // 2 if name is None else sounds // (2 * adapters)
    return max(4, share)


def _heard(rows: Sequence[LanguageRow], most: int, mel: LogMel) -> Iterator[tuple[Wave, LanguageRow, str]]:
    """Windows of rows, at most about ``most`` in all, with what is said in them; nothing where that is not known."""
    chosen = [rows[i] for i in evenly(len(rows), most)]
    for row in chosen:
        try:
            wave = as_wave(*read_sound(str(row.prompt)), mel.rate, "the sound")
        except (DataError, InputError) as error:
            raise DataError(f"{row.where}: {error}") from error
        parts = list(windows(wave, mel.rate, mel.samples))
        for start, end in (parts[i] for i in evenly(len(parts), max(1, most // len(chosen)))):
            yield wave[start:end], row, row.answer if len(parts) == 1 else ""


def _answered(view: View, wave: Wave, row: LanguageRow, said: str) -> AnsweredSound:
    """A window with what is said in it, or what the model writes of it."""
    writer, language, tokens = _writer(view), row.language, list[int]()
    room = writer.prompts.left(len(writer.speech.before(None, "transcribe")), 0)
    try:
        if not said or (language is None and writer.speech.languages):
            longest = 1 if said else WRITTEN if room is None else min(WRITTEN, room)
            heard = view.transcribe(
                wave, sampling_rate=writer.log_mel.rate, language=language, temperature=0, max_new_tokens=longest
            )
            language, tokens = heard.language, list(heard.segments[0].generation.tokens)
        before = writer.speech.before(language, "transcribe")
    except InputError as error:
        raise DataError(f"{row.where}: {error}") from error
    if said:
        tokens = [*writer.tokens.encode(f" {said.strip()}", special=False), *sorted(writer.defaults.eos)[:1]]
    mel = writer.log_mel
    return AnsweredSound(
        frames=mel(wave)[None],
        before=tuple(token for token in before if token is not None),
        answer=tuple(tokens[:room]),
        places=-(-(len(wave) + int(QUIET * mel.rate)) // (FRAMES * mel.hop)),
    )


def _state_bytes(bundle: Bundle) -> int:
    """Bytes of what the decoder reads of one window."""
    file = bundle.manifest.variants[WHOLE].decoder_file
    assert file is not None, "the task is to write down speech"
    shapes = [
        value.shape
        for value in ir.load(bundle.file(file)).graph.inputs
        if is_past(value.name or "") and not grows(value.name or "")
    ]
    (frames,) = (int(value.shape[2]) for value in bundle.manifest.inputs if value.name == "input_features")
    # ``[rows, heads, places, width]``
    sizes = [(shape[1], shape[3]) for shape in shapes if shape is not None]
    width = sum(prod(size for size in each if isinstance(size, int)) for each in sizes)
    return 4 * width * frames // FRAMES


def _writer(view: View) -> Transcriber:
    writer = view.generator
    assert isinstance(writer, Transcriber), "the task is to write down speech"
    return writer
