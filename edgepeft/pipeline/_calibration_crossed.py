"""What an encoder-decoder runs to be calibrated: texts for its encoder, and what it writes about them for its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from .. import runtime as runtimes
from ..bundle import Bundle
from ..bundle.cache_names import as_pasts, grows
from ..data import Examples, evenly
from ..quantize.stages import Steps
from ..runtime.views import View
from ._calibration_runs import HELD_OUT, SHARED, Runs, shipped_paragraphs, slot_tensors

#: Longest text, longest answer, and texts of the base and all adapters: what the decoder reads of each is held in memory.
READ, WRITTEN, TEXTS = 128, 32, 48
#: At most so many texts with their answers compare matrices: every matrix takes all of them.
PROBED_ANSWERS = 12

Arrays = dict[str, np.ndarray]


class Answered(Protocol):
    """What an encoder reads, and the tokens that are written about it."""

    @property
    def answer(self) -> Sequence[int]:
        """Tokens of the answer, without those that it begins with."""

    @property
    def places(self) -> int | None:
        """How many places of the encoder hold what was read; ``None`` for all."""

    def feeds(self, view: View) -> tuple[Arrays, Arrays]:
        """Inputs of the encoder and, with what that makes of its own, of the decoder over the whole answer at once."""

    def steps(self, view: View) -> Iterator[np.ndarray]:
        """Logits ``[vocabulary]`` from which each token of the answer is chosen, the answer fed as it is."""


class AnsweredText(NamedTuple):
    """A text and its answer, in tokens."""

    source: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def places(self) -> None:
        """All: texts are run without padding."""
        return None

    def feeds(self, view: View) -> tuple[Arrays, Arrays]:
        """Those of :class:`Answered`."""
        generator = view.generator
        read = {
            "input_ids": np.array([self.source], np.int64),
            "attention_mask": np.ones((1, len(self.source)), np.int64),
        }
        start = generator.defaults.start
        assert start is not None, "what wrote the answer begins with it"
        return read, {
            **written(view, read, [start, *self.answer[:-1]]),
            "encoder_attention_mask": read["attention_mask"],
        }

    def steps(self, view: View) -> Iterator[np.ndarray]:
        """Those of :class:`Answered`."""
        decoder = view.decoder(1, len(self.answer) + 1)
        logits = decoder.prefill([list(self.source)])
        for place, token in enumerate(self.answer):
            yield np.array(logits[0])
            if place + 1 < len(self.answer):
                logits = decoder.step([token])


@dataclass(frozen=True)
class CrossedRuns(Runs):
    """Feeds of both graphs, and what was read with its answer that is kept apart, by adapter (``None``: the base).

    Of the answers kept apart, some compare matrices (``probed_pairs``), and the others judge the result.
    """

    decoder: tuple[Mapping[str, np.ndarray], ...] = ()
    answers: Mapping[str | None, tuple[Answered, ...]] | None = None
    probed_pairs: tuple[Steps, ...] = ()
    judged_pairs: tuple[Steps, ...] = ()
    #: How many places of each of the encoder's runs count; ``None`` for all.
    places: tuple[int, ...] | None = None

    def feeds_of(self, field: str) -> tuple[Mapping[str, np.ndarray], ...]:
        """What calibrates the encoder (``"file"``) or the decoder (``"decoder_file"``)."""
        return self.decoder if field == "decoder_file" else self.feeds

    def counted_of(self, field: str) -> tuple[int, ...] | None:
        """How many rows of each of these runs count."""
        return None if field == "decoder_file" else self.places

    def probed(self) -> tuple[Steps, ...]:
        """What compares matrices: feeds of the encoder, and of the decoder with what the fp32 encoder gives."""
        return self.probed_pairs

    def judged(self) -> tuple[Steps, ...]:
        """What the result is judged by, likewise."""
        return self.judged_pairs


def crossed_runs(bundle: Bundle, data: Mapping[str, Examples], *, rows: int) -> CrossedRuns:
    """The runs that calibrate the two fp32 graphs of an encoder-decoder that reads texts.

    Each adapter reads its texts (all there are where it has none; paragraphs that ship with edgepeft where nobody has), and the
    decoder is run on what the fp32 model writes about them, greedily, since that is what it will see.

    Args:
        bundle: The bundle.
        data: Texts by adapter (``"*"``: for all).
        rows: How many texts of each adapter are run.
    """
    everything = [text for each in data.values() for text in each.texts] or shipped_paragraphs()
    adapters = bundle.manifest.adapters

    def answered(view: View) -> list[Answered]:
        own = data.get(view.name or "*", data.get("*"))
        texts = list(own.texts) if own is not None else everything
        most = max(4, TEXTS if view.name is None else TEXTS // max(1, len(adapters)))
        return [answered_text(view, texts[i]) for i in evenly(len(texts), min(rows, most))]

    return answered_runs(bundle, answered, probed=PROBED_ANSWERS)


def answered_runs(
    bundle: Bundle,
    answered: Callable[[View], Sequence[Answered]],
    *,
    probed: int,
    hold: Callable[[Arrays], Arrays] = lambda arrays: arrays,
) -> CrossedRuns:
    """The runs over what the base and each adapter have answered, every fifth kept apart.

    Args:
        bundle: The bundle.
        answered: What a view of the fp32 variant has read and answered.
        probed: At most so many of what is kept apart compare matrices.
        hold: Where the decoder's inputs are until they are run; as they are by default.
    """
    encoder: list[Mapping[str, np.ndarray]] = []
    decoder: list[Mapping[str, np.ndarray]] = []
    filled: list[int | None] = []
    counts: dict[str, int] = {}
    answers: dict[str | None, tuple[Answered, ...]] = {}
    compared: list[Steps] = []
    judged: list[Steps] = []
    with runtimes.open(bundle.path, variant="fp32") as model:
        for name in (None, *bundle.manifest.adapters):
            view = model.base if name is None else model.adapter(name)
            found = answered(view)
            apart = found[HELD_OUT - 1 :: HELD_OUT] or found[-1:]
            used = [each for each in found if each not in apart] or found
            tensors = slot_tensors(bundle, name)
            for each in used:
                read, fed = each.feeds(view)
                encoder.append({**read, **tensors})
                filled.append(each.places)
                decoder.append({**hold(fed), **tensors})
            answers[name] = tuple(apart[: 2 * SHARED])
            both = []
            for each in answers[name]:
                read, fed = each.feeds(view)
                both.append(({**read, **tensors}, {**hold(fed), **tensors}))
            compared += both[::2]
            judged += both[1::2] or both
            counts[name or "*"] = len(used)
    return CrossedRuns(
        tuple(encoder), {}, counts, decoder=tuple(decoder), answers=answers,
        probed_pairs=tuple(compared[i] for i in evenly(len(compared), probed)), judged_pairs=tuple(judged),
        places=None if None in filled else tuple(each for each in filled if each is not None),
    )  # fmt: skip


def answered_text(view: View, text: str) -> AnsweredText:
    """A text's tokens, and those that the model writes about it."""
    ids = view.encode(text)["input_ids"][0]
    source = ids if len(ids) <= READ else np.concatenate([ids[: READ - 1], ids[-1:]])
    left = view.generator.prompts.left(len(source), 0)
    wanted = WRITTEN if left is None else max(1, min(WRITTEN, left))
    tokens = view.generate(source, temperature=0, max_new_tokens=wanted).tokens
    return AnsweredText(tuple(int(token) for token in source), tuple(tokens))


def written(view: View, read: Mapping[str, np.ndarray], tokens: Sequence[int]) -> Arrays:
    """Inputs of the decoder that feed ``tokens`` at once, behind an empty cache, with what the encoder makes of ``read``."""
    graphs = view.generator.graphs
    empty = {
        value.name: np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
        for value in graphs.decoder_session.get_inputs()
        if grows(value.name)
    }
    return {"input_ids": np.array([tokens], np.int64), **as_pasts(graphs.run(read, view.active)), **empty}
