"""Writing down a batch of windows: all of them at once, then one by one those whose answer does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np

from ..active import ActiveAdapter
from .fallback import TEMPERATURES, Confidence, Fallback, compression_ratio, judges, kept_answer
from .loop import Generation, Plan, Run
from .options import Options
from .speech import SoundDecoder, Transcriber
from .speech_tokens import Task
from .timestamps import Part, parts_of


@dataclass(frozen=True)
class Manner:
    """How windows are written down: the language that is spoken (``None``: what is heard), what to write, whether answers hold
    timestamps, and which of them get second tries.
    """

    language: str | None = None
    task: Task = "transcribe"
    timestamps: bool = False
    fallback: Fallback = "off"


@dataclass(frozen=True)
class Heard:
    """What was written of one window.

    With timestamps the answer has ``parts``, and where ``rest`` is a number of samples, the window ends in the middle of speech
    that begins there. ``silent``: nobody spoke, and what was written is void.
    """

    generation: Generation
    language: str | None
    confidence: Confidence
    parts: tuple[Part, ...] = ()
    rest: int | None = None
    silent: bool = False


class Hearing:
    """Windows of sound to be written down together.

    Args:
        writer: What a bundle transcribes with.
        waves: Samples ``[samples]`` of each window.
        numbers: The number of each window in its sound: with the seed it makes a second try the same wherever the window runs.
        manner: How.
        options: How tokens are chosen; second tries choose their own temperatures.
        active: The adapter, or one for each row.
        adapters: Its name for each row.
    """

    def __init__(
        self, writer: Transcriber, waves: Sequence[np.ndarray], numbers: Sequence[int], manner: Manner, options: Options,
        active: ActiveAdapter, adapters: Sequence[str | None],
    ) -> None:  # fmt: skip
        self._started = perf_counter()
        self._manner, self._adapters, self._numbers = manner, adapters, numbers
        self._seed = options.seed or 0
        self._bundle = writer.graphs.variant, writer.graphs.bundle.path
        before = writer.speech.before(manner.language, manner.task, manner.timestamps)
        self._prompts = [[writer.speech.start] * len(before) for _ in waves]
        writers = [writer.graphs.generator_of(active.text_of(row)) for row in range(len(waves))]
        self._plans = [replace(each.plan(self._prompts, options), scored=True) for each in writers]
        self._timestamps = writer.speech.timestamps if manner.timestamps else None
        features = np.stack([writer.log_mel(wave) for wave in waves])
        self._decoder = SoundDecoder(
            writer.graphs, active, writer, features, before, self._timestamps, repeatable=manner.fallback != "off"
        )

    def results(self) -> list[Heard]:
        """What is written of each window; call it once."""
        run = self._run(self._decoder, self._prompts, self._plans, self._adapters, self._started)
        found = []
        for row, (generation, logprob) in enumerate(zip(run.results(), run.mean_logprobs(), strict=True)):
            first = self._heard(row, generation, logprob, self._plans[row].sampling.temperature)
            if judges(self._manner.fallback, first.confidence):
                kept = kept_answer(first, partial(self._again, row))
                found.append(replace(kept, silent=kept.confidence.silent))
            else:
                found.append(first)
        return found

    def _run(
        self, decoder: SoundDecoder, prompts: Sequence[Sequence[int]], plans: Sequence[Plan],
        adapters: Sequence[str | None], started: float, first_row: int = 0,
    ) -> Run:  # fmt: skip
        variant, path = self._bundle
        run = Run(
            decoder, prompts, plans, adapters, started, first_row=first_row, continues=False, variant=variant, path=path
        )
        for _ in run:
            pass
        return run

    def _again(self, row: int, number: int) -> Heard:
        """The answer of a second try, by its number from 1 on."""
        plan, temperature = self._plans[row], TEMPERATURES[number - 1]
        plan = replace(plan, sampling=replace(plan.sampling, temperature=temperature, seed=self._seed))
        drawn = self._numbers[row] * (1 + len(TEMPERATURES)) + number
        run = self._run(
            self._decoder.again(row), self._prompts[:1], [plan], self._adapters[row : row + 1], perf_counter(), drawn
        )
        return self._heard(row, run.results()[0], run.mean_logprobs()[0], temperature)

    def _heard(self, row: int, generation: Generation, logprob: float, temperature: float) -> Heard:
        language = self._decoder.languages[row]
        ratio = compression_ratio(generation.text)
        sure = Confidence(temperature, logprob, ratio, self._decoder.no_speech[row])
        if self._timestamps is None:
            return Heard(generation, language, sure)
        decode = self._plans[row].tokens.decode
        ended = generation.finish_reason == "eos"
        parts, rest = parts_of(generation.tokens[: -1 if ended else None], self._timestamps, decode)
        if generation.finish_reason == "stop":
            parts = up_to(parts, len(generation.text))
        return Heard(generation, language, sure, tuple(parts), rest if ended else None)


def up_to(parts: Sequence[Part], length: int) -> list[Part]:
    """Parts whose texts together have ``length`` characters at most: the stop string, and what is behind it, is cut off."""
    found = []
    for part in parts:
        text = part.text[:length]
        length -= len(text)
        if text:
            found.append(replace(part, text=text))
    return found
