"""What was said in sounds, and writing it down window after window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .active import ActiveAdapter
from .generation import Generation, Options
from .generation.fallback import Confidence
from .generation.hearing import Heard, Hearing, Manner
from .generation.speech import Transcriber
from .sound import Wave, windows
from .subtitles import SubtitleForm, subtitles

#: In less time, in seconds, nothing is said: a window that ends in the middle of speech is gone on with where it leaves more.
_LEAST = 0.2


@dataclass(frozen=True)
class Segment:
    """What was said from ``start`` to ``end``, in seconds of the whole sound: in one window, or with timestamps in a part of one.

    ``text`` has no timestamps and no space around it, ``tokens`` are as they were written. Segments of one window share its
    ``language``, ``generation`` and ``confidence``; ``generation`` is what the decoder wrote, also where ``text`` is empty because
    nobody spoke.
    """

    start: float
    end: float
    text: str
    language: str | None
    tokens: tuple[int, ...]
    generation: Generation
    confidence: Confidence

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {**vars(self), "tokens": list(self.tokens)}
        del own["generation"], own["confidence"]
        return {**self.generation.as_dict(), **vars(self.confidence), **own}


@dataclass(frozen=True)
class Transcription:
    """What was said in one sound.

    ``language`` is that of the first window (``None`` for a model of one language), ``seconds`` the length of the sound. A window
    whose ``generation.finish_reason`` is ``"length"`` was not written to its end.
    """

    text: str
    language: str | None
    seconds: float
    adapter: str | None
    segments: tuple[Segment, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "segments": [segment.as_dict() for segment in self.segments]}

    def subtitles(self, form: SubtitleForm) -> str:
        """The segments as the content of a file of subtitles; write them down with ``timestamps=True``.

        Args:
            form: ``"srt"`` (SubRip) or ``"vtt"`` (WebVTT).

        Returns:
            The whole file. Segments without text are left out.

        Raises:
            InputError: The form is another.

        Example:
            >>> found = model.transcribe(wave, sampling_rate=rate, timestamps=True)
            >>> Path("talk.srt").write_text(found.subtitles("srt"), encoding="utf-8")
        """
        return subtitles(((segment.start, segment.end, segment.text) for segment in self.segments), form)


def write_down(
    writer: Transcriber,
    waves: Sequence[Wave],
    names: Sequence[str | None],
    adapted: Callable[[Sequence[int]], ActiveAdapter],
    manner: Manner,
    options: Options,
    batch_size: int,
) -> list[Transcription]:
    """Write down sounds, windows of several in one run.

    Without timestamps it is known beforehand where sounds are cut. With them a window begins where the one before has ended, which
    that one says; so windows of one sound run one after the other.

    Args:
        writer: What a bundle transcribes with.
        waves: Samples ``[samples]`` of each sound, at the model's rate.
        names: The name of each sound's adapter.
        adapted: Gives the adapters of a run, by the places of its sounds.
        manner: How.
        options: How tokens are chosen.
        batch_size: Windows in one run.
    """
    rate, most = writer.log_mel.rate, writer.log_mel.samples
    waiting: deque[tuple[int, int, int]] = deque()
    for place, wave in enumerate(waves):
        cuts = [(place, start, end) for start, end in windows(wave, rate, most)]
        waiting += cuts[:1] if manner.timestamps else cuts
    found: list[list[Segment]] = [[] for _ in waves]
    texts: list[list[str]] = [[] for _ in waves]
    begun = [0] * len(waves)
    while waiting:
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        numbers = []
        for place, _, _ in batch:
            numbers.append(begun[place])
            begun[place] += 1
        places = [place for place, _, _ in batch]
        parts = [waves[place][start:end] for place, start, end in batch]
        hearing = Hearing(writer, parts, numbers, manner, options, adapted(places), [names[place] for place in places])
        for (place, start, end), heard in zip(batch, hearing.results(), strict=True):
            found[place] += _segments(heard, start, end, rate)
            texts[place].append("" if heard.silent else heard.generation.text.strip())
            if manner.timestamps and (begin := _goes_on(heard, start, end, rate)) < len(waves[place]):
                _, length = next(windows(waves[place][begin:], rate, most))
                waiting.append((place, begin, begin + length))
    return [
        Transcription(
            text=" ".join(filter(None, texts[place])),
            language=found[place][0].language,
            seconds=len(wave) / rate,
            adapter=names[place],
            segments=tuple(found[place]),
        )
        for place, wave in enumerate(waves)
    ]


def _segments(heard: Heard, start: int, end: int, rate: int) -> list[Segment]:
    """A window's segments; it lasts from sample ``start`` to ``end``, and no part of it longer."""

    def segment(begin: int, stop: int, text: str, tokens: tuple[int, ...]) -> Segment:
        shown = text.strip()
        return Segment(begin / rate, stop / rate, shown, heard.language, tokens, heard.generation, heard.confidence)

    if heard.silent:
        return [segment(start, end, "", ())]
    if not heard.parts:
        return [segment(start, end, heard.generation.text, heard.generation.tokens)]
    return [
        segment(
            min(start + part.start, end),
            end if part.end is None else min(start + part.end, end),
            part.text,
            part.tokens,
        )
        for part in heard.parts
    ]


def _goes_on(heard: Heard, start: int, end: int, rate: int) -> int:
    """Where the next window begins: behind this one, or where this one ends in the middle of speech."""
    least = int(_LEAST * rate)
    if heard.silent or heard.rest is None or heard.rest < least or end - start - heard.rest < least:
        return end
    return start + heard.rest
