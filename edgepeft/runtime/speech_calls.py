"""The call of a view that writes down speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args, overload

import numpy as np

from ..errors import InputError
from .active import ActiveAdapter
from .arrays import Adapters
from .described import Described
from .generation import GenerateOptions, Options
from .generation.fallback import Fallback
from .generation.generator import check_adapters, check_batch_size
from .generation.hearing import Manner
from .generation.speech import Transcriber
from .generation.speech_tokens import Task
from .sound import as_wave
from .transcription import Transcription, write_down


class SpeechCalls(Described):
    """``transcribe``: for bundles whose task is to write down speech."""

    __slots__ = ()

    @overload
    def transcribe(
        self, sound: np.ndarray, *, sampling_rate: int = 16_000, language: str | None = None, task: Task = "transcribe",
        timestamps: bool = False, fallback: Fallback | None = None, adapters: None = None, batch_size: int = 4,
        **options: Unpack[GenerateOptions],
    ) -> Transcription: ...  # fmt: skip

    @overload
    def transcribe(
        self, sound: Sequence[np.ndarray], *, sampling_rate: int = 16_000, language: str | None = None,
        task: Task = "transcribe", timestamps: bool = False, fallback: Fallback | None = None,
        adapters: Adapters | None = None, batch_size: int = 4, **options: Unpack[GenerateOptions],
    ) -> list[Transcription]: ...  # fmt: skip

    def transcribe(
        self, sound: Any, *, sampling_rate: int = 16_000, language: str | None = None, task: Task = "transcribe",
        timestamps: bool = False, fallback: Fallback | None = None, adapters: Adapters | None = None, batch_size: int = 4,
        **options: Unpack[GenerateOptions],
    ) -> Transcription | list[Transcription]:  # fmt: skip
        """Write down speech.

        Sound that is longer than the model's window (30 s) is cut at the quietest place of the last five seconds of each
        window, and the texts are joined. Where a window with timestamps ends in the middle of speech, the next one begins
        with that.

        Args:
            sound: Samples ``[samples]`` of one channel, floats of -1 to 1 or 16-bit integers; or a list of such arrays.
            sampling_rate: Samples a second. What is not the model's rate is resampled (``edgepeft[audio]``).
            language: The language that is spoken (``"en"``), by default the likeliest one of each window. A model of one language
                takes none.
            task: ``"transcribe"``, or ``"translate"`` into English.
            timestamps: Let the model write when what was said: segments are then parts of windows. Windows of one sound run one
                after the other.
            fallback: Which windows are written down again, at temperatures of 0.2 to 1 until one try holds: ``"loops"`` those
                whose text repeats itself, ``"all"`` also those that the model was not sure of (and where nobody speaks the text is
                empty), ``"off"`` none. By default ``"loops"``; ``"off"`` where ``temperature``, ``top_k`` or ``top_p`` is given, or
                the model's files ask for sampling. Another ``seed`` than 0 makes other tries.
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
        given = Options(**options)
        fallback = _fallback(fallback, given, writer.defaults.sample)
        if fallback != "off":
            given = replace(given, temperature=0)

        def adapted(sounds: Sequence[int]) -> ActiveAdapter:
            return view.active if adapters is None else view.engine.mixed([names[place] for place in sounds])

        manner = Manner(language, task, timestamps, fallback)
        results = write_down(writer, waves, names, adapted, manner, given, batch_size)
        return results[0] if single else results


def _fallback(wanted: Fallback | None, options: Options, samples: bool) -> Fallback:
    """Which windows get second tries, by what was asked for."""
    if wanted is not None and wanted not in get_args(Fallback):
        raise InputError(f"fallback must be one of {', '.join(get_args(Fallback))}, found {wanted!r:.80}")
    sampled = bool(options.temperature) or options.top_k is not None or options.top_p is not None
    if wanted is None:
        return "off" if sampled or samples or options.temperature is not None else "loops"
    if sampled and wanted != "off":
        raise InputError(
            f"fallback={wanted!r} begins greedily and chooses its temperatures; leave out temperature, top_k and top_p, or give "
            "fallback='off' with them"
        )
    return wanted
