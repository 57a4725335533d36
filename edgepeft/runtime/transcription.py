"""What was said: the call of a view over a bundle that writes down speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack, overload

import numpy as np

from ..errors import InputError
from .arrays import Adapters
from .described import Described
from .generation import GenerateOptions, Generation, Options
from .generation.generator import check_adapters, check_batch_size
from .generation.speech import Task, Transcriber
from .sound import as_wave, windows


@dataclass(frozen=True)
class Segment:
    """One window of sound, ``start`` to ``end`` in seconds, and what was written of it."""

    start: float
    end: float
    language: str | None
    generation: Generation

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"start": self.start, "end": self.end, "language": self.language, **self.generation.as_dict()}


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


class SpeechCalls(Described):
    """``transcribe``: for bundles whose task is to write down speech."""

    __slots__ = ()

    @overload
    def transcribe(
        self, sound: np.ndarray, *, sampling_rate: int = 16_000, language: str | None = None, task: Task = "transcribe",
        adapters: None = None, batch_size: int = 4, **options: Unpack[GenerateOptions],
    ) -> Transcription: ...  # fmt: skip

    @overload
    def transcribe(
        self, sound: Sequence[np.ndarray], *, sampling_rate: int = 16_000, language: str | None = None,
        task: Task = "transcribe", adapters: Adapters | None = None, batch_size: int = 4,
        **options: Unpack[GenerateOptions],
    ) -> list[Transcription]: ...  # fmt: skip

    def transcribe(
        self, sound: Any, *, sampling_rate: int = 16_000, language: str | None = None, task: Task = "transcribe",
        adapters: Adapters | None = None, batch_size: int = 4, **options: Unpack[GenerateOptions],
    ) -> Transcription | list[Transcription]:  # fmt: skip
        """Write down speech.

        Sound that is longer than the model's window (30 s) is cut at the quietest place of the last five seconds of each
        window, and the texts are joined.

        Args:
            sound: Samples ``[samples]`` of one channel, floats of -1 to 1 or 16-bit integers; or a list of such arrays.
            sampling_rate: Samples a second. What is not the model's rate is resampled (``edgepeft[audio]``).
            language: The language that is spoken (``"en"``), by default the likeliest one of each window. A model of one language
                takes none.
            task: ``"transcribe"``, or ``"translate"`` into English.
            adapters: An adapter for each sound of a list; ``None`` is the base.
            batch_size: Windows in one run.
            **options: Those of :meth:`generate` that are not about prompts: ``max_new_tokens``, ``temperature``, ``stop``, ….

        Returns:
            A :class:`Transcription`, or a list of them for a list.

        Raises:
            InputError: The bundle's task is another, or the sound, the language or an option cannot be meant.
            MissingExtraError: Resampling needs ``edgepeft[audio]``.

        Example:
            >>> wave, rate = runtime.read_sound("question.wav")
            >>> model.adapter("clinic").transcribe(wave, sampling_rate=rate, language="en").text
            'How often should I take it?'
        """
        view, bundle = self.view, self.bundle
        if not bundle.manifest.hears:
            raise InputError(
                f"{bundle.path} is for {bundle.manifest.task}; transcribing needs a model that writes down speech"
            )
        writer = view.engine.generator_of(view.active.text)
        assert isinstance(writer, Transcriber)
        check_batch_size(batch_size)
        single = not isinstance(sound, (list, tuple))
        sounds = [sound] if single else list(sound)
        if not sounds:
            raise InputError("no sounds were given")
        names: list[str | None] = [view.name] * len(sounds)
        if adapters is not None:
            check_adapters(adapters)
            if single or len(adapters) != len(sounds):
                said = "one sound" if single else f"{len(sounds)} sounds"
                raise InputError(
                    f"{len(adapters)} adapters for {said}; give a list of sounds and one for each, None for the base"
                )
            names = list(adapters)
        rate = writer.log_mel.rate
        waves = [as_wave(each, sampling_rate, rate, f"sound {place + 1}") for place, each in enumerate(sounds)]
        parts = [
            (place, start, end)
            for place, wave in enumerate(waves)
            for start, end in windows(wave, rate, writer.log_mel.samples)
        ]
        found: list[list[Segment]] = [[] for _ in waves]
        for first in range(0, len(parts), batch_size):
            batch = parts[first : first + batch_size]
            chosen = [names[place] for place, _, _ in batch]
            active = view.active if adapters is None else view.engine.mixed(chosen)
            run, decoder = writer.hear(
                [waves[place][start:end] for place, start, end in batch],
                Options(**options),
                active,
                chosen,
                language,
                task,
            )
            for _ in run:
                pass
            for (place, start, end), written, heard in zip(batch, run.results(), decoder.languages, strict=True):
                found[place].append(Segment(start / rate, end / rate, heard, written))
        results = [
            Transcription(
                text=" ".join(filter(None, (segment.generation.text.strip() for segment in segments))),
                language=segments[0].language,
                seconds=len(wave) / rate,
                adapter=name,
                segments=tuple(segments),
            )
            for wave, segments, name in zip(waves, found, names, strict=True)
        ]
        return results[0] if single else results
