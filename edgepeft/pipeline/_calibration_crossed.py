"""What an encoder-decoder runs to be calibrated: texts for its encoder, and what it writes about them for its decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import runtime as runtimes
from ..bundle import Bundle
from ..bundle.cache_names import as_pasts, grows
from ..data import Examples, evenly
from ..quantize.stages import Steps
from ..runtime.views import View
from ._calibration_runs import HELD_OUT, SHARED, SHIPPED, Runs, slot_tensors

#: Longest text, longest answer, and texts of the base and all adapters: what the decoder reads of each is held in memory.
READ, WRITTEN, TEXTS = 128, 32, 48
#: At most so many texts with their answers compare matrices: every matrix takes all of them.
PROBED_ANSWERS = 12

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class CrossedRuns(Runs):
    """Feeds of both graphs, and pairs of a text and its answer in tokens that are kept apart, by adapter (``None``: the base).

    Of the pairs kept apart, some compare matrices (``probed_pairs``), and the others judge the result.
    """

    decoder: tuple[Mapping[str, np.ndarray], ...] = ()
    answers: Mapping[str | None, tuple[Pair, ...]] | None = None
    probed_pairs: tuple[Steps, ...] = ()
    judged_pairs: tuple[Steps, ...] = ()

    def feeds_of(self, field: str) -> tuple[Mapping[str, np.ndarray], ...]:
        """What calibrates the encoder (``"file"``) or the decoder (``"decoder_file"``)."""
        return self.decoder if field == "decoder_file" else self.feeds

    def probed(self) -> tuple[Steps, ...]:
        """What compares matrices: feeds of the encoder, and of the decoder with what the fp32 encoder gives."""
        return self.probed_pairs

    def judged(self) -> tuple[Steps, ...]:
        """What the result is judged by, likewise."""
        return self.judged_pairs


def crossed_runs(bundle: Bundle, data: Mapping[str, Examples], *, rows: int) -> CrossedRuns:
    """The runs that calibrate an encoder-decoder's two fp32 graphs.

    Each adapter reads its texts (all there are where it has none; paragraphs that ship with edgepeft where nobody has), and the
    decoder is run on what the fp32 model writes about them, greedily, since that is what it will see.

    Args:
        bundle: The bundle.
        data: Texts by adapter (``"*"``: for all).
        rows: How many texts of each adapter are run.
    """
    everything = [text for each in data.values() for text in each.texts] or _shipped()
    encoder: list[Mapping[str, np.ndarray]] = []
    decoder: list[Mapping[str, np.ndarray]] = []
    counts: dict[str, int] = {}
    answers: dict[str | None, tuple[Pair, ...]] = {}
    probed: list[Steps] = []
    judged: list[Steps] = []
    adapters = bundle.manifest.adapters
    with runtimes.open(bundle.path, variant="fp32") as model:
        for name in (None, *adapters):
            view = model.base if name is None else model.adapter(name)
            own = data.get(name or "*", data.get("*"))
            texts = list(own.texts) if own is not None else everything
            most = max(4, TEXTS if name is None else TEXTS // max(1, len(adapters)))
            pairs = [_pair(view, texts[i]) for i in evenly(len(texts), min(rows, most))]
            apart = pairs[HELD_OUT - 1 :: HELD_OUT] or pairs[-1:]
            used = [pair for pair in pairs if pair not in apart] or pairs
            tensors = slot_tensors(bundle, name)
            for source, answer in used:
                read, written = _feeds(view, source, answer)
                encoder.append({**read, **tensors})
                decoder.append({**written, **tensors})
            answers[name] = tuple(apart[: 2 * SHARED])
            both = [tuple({**each, **tensors} for each in _feeds(view, *pair)) for pair in answers[name]]
            probed += both[::2]
            judged += both[1::2] or both
            counts[name or "*"] = len(used)
    return CrossedRuns(
        tuple(encoder), {}, counts, decoder=tuple(decoder), answers=answers,
        probed_pairs=tuple(probed[i] for i in evenly(len(probed), PROBED_ANSWERS)), judged_pairs=tuple(judged),
    )  # fmt: skip


def _shipped() -> list[str]:
    return [part for part in SHIPPED.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _pair(view: View, text: str) -> Pair:
    """A text's tokens, and those that the model writes about it."""
    ids = view.encode(text)["input_ids"][0]
    source = ids if len(ids) <= READ else np.concatenate([ids[: READ - 1], ids[-1:]])
    left = view.generator.prompts.left(len(source), 0)
    wanted = WRITTEN if left is None else max(1, min(WRITTEN, left))
    written = view.generate(source, temperature=0, max_new_tokens=wanted).tokens
    return tuple(int(token) for token in source), tuple(written)


def _feeds(
    view: View, source: Sequence[int], answer: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of the encoder and, with what that made of the text, of the decoder over the whole answer at once."""
    generator = view.generator
    read = {"input_ids": np.array([source], np.int64), "attention_mask": np.ones((1, len(source)), np.int64)}
    encoded = as_pasts(generator.graphs.run(read, view.active))
    empty = {
        value.name: np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
        for value in generator.graphs.decoder_session.get_inputs()
        if grows(value.name)
    }
    start = generator.defaults.start
    assert start is not None, "what wrote the answer begins with it"
    tokens = [start, *answer[:-1]]
    written = {
        "input_ids": np.array([tokens], np.int64),
        "encoder_attention_mask": read["attention_mask"],
        **encoded,
        **empty,
    }
    return read, written


def steps(view: View, source: Sequence[int], answer: Sequence[int]) -> Iterator[np.ndarray]:
    """Logits ``[vocabulary]`` from which each token of ``answer`` is chosen, the answer fed as it is."""
    decoder = view.decoder(1, len(answer) + 1)
    logits = decoder.prefill([list(source)])
    for place, token in enumerate(answer):
        yield np.array(logits[0])
        if place + 1 < len(answer):
            logits = decoder.step([token])
