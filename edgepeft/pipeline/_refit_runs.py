"""What an adapter runs to be fitted to a rounded base, and what it is judged by afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..bundle import Bundle
from ..data import Examples, evenly
from ..errors import DataError
from ..metrics.intervals import ratio_of_sums
from ..runtime.generation.tokens import Tokens
from ..runtime.views import View
from ..validate.language_rows import LanguageRow, LanguageRows
from ..validate.likelihood import log_softmax, row_tokens
from ._calibrate import inputs_of
from ._calibration_crossed import AnsweredText, answered_text
from ._calibration_data import Data
from ._calibration_runs import HELD_OUT, SHIPPED, WINDOW, _windows, feeds_of, shipped_paragraphs
from ._quality import compare_window

#: Most tokens of a language model that are fitted to, and texts of others; most windows, texts or answers that judge.
TOKENS, TEXTS, JUDGED = 8192, 256, 32
#: Texts that an encoder-decoder answers: what its decoder reads of each is held in memory.
ANSWERED = 48

#: Of one text kept apart, over fp32 and the variant: answers, both negative log-likelihoods, divergence, equal choices.
Compare = Callable[[View, View], np.ndarray]


@dataclass(frozen=True)
class RefitRuns:
    """Feeds by graph (its field of a variant's entry), and comparisons over texts that were kept apart."""

    feeds: Mapping[str, tuple[Mapping[str, np.ndarray], ...]]
    apart: tuple[Compare, ...]


@dataclass(frozen=True)
class Loss:
    """How far an adapter on a variant is from the adapter on fp32.

    ``each`` holds, for each text kept apart, what :data:`Compare` gives, ``[texts, 5]``.
    """

    each: np.ndarray

    @property
    def mean(self) -> float:
        """Divergence in nats for each answer; of outputs that are no choices their root mean square."""
        return float(self.each[:, 3].sum() / self.each[:, 0].sum())

    def less_than(self, other: Loss) -> bool:
        """Whether it is smaller by more than twice the standard error of the difference, text by text."""
        difference, error = ratio_of_sums(other.each[:, 3] - self.each[:, 3], self.each[:, 0])
        return difference > 2 * (error or 0.0)

    @property
    def perplexities(self) -> tuple[float, float] | None:
        """Of fp32 and the variant; ``None`` for a model that writes nothing."""
        tokens, before, after = self.each[:, :3].sum(0)
        return (float(np.exp(before / tokens)), float(np.exp(after / tokens))) if before else None


def measure(runs: RefitRuns, whole: View, rounded: View) -> Loss:
    """Compare an adapter on a variant with itself on fp32."""
    return Loss(np.array([compare(whole, rounded) for compare in runs.apart]))


def refit_runs(view: View, data: Data | None) -> RefitRuns:
    """The runs of one adapter: most to be fitted to, and every fifth to judge by.

    Args:
        view: The adapter on fp32.
        data: Its texts; those that ship with edgepeft where there are none, for models that write.

    Raises:
        DataError: There are too few texts, or they are too short.
    """
    if view.manifest.task == "text2text-generation":
        return _crossed(view, data)
    if view.manifest.writes:
        return _language(view, data)
    return _texts(view, data)


def _split(found: Sequence[object], name: str | None) -> tuple[list[int], list[int]]:
    """Places to fit to, and places to judge by."""
    apart = list(range(len(found)))[HELD_OUT - 1 :: HELD_OUT]
    if len(apart) < 2:
        raise DataError(
            f"the texts for {name} make {len(found)} runs, and every fifth is kept to judge by: give at least {2 * HELD_OUT}, or "
            "longer texts"
        )
    used = [place for place in range(len(found)) if place not in set(apart)]
    return used, [apart[i] for i in evenly(len(apart), JUDGED)]


def _language(view: View, data: Data | None) -> RefitRuns:
    length = min(WINDOW, view.manifest.max_length or WINDOW)
    windows = list(_language_windows(view, data, length))
    used, apart = _split(windows, view.name)
    share = max(1, TOKENS // max(1, int(np.mean([len(windows[place][0]) for place in used]))))
    feeds = tuple(feeds_of(view.bundle, windows[used[i]][0]) for i in evenly(len(used), share))

    def judge(window: Sequence[int], first: int) -> Compare:
        return lambda whole, rounded: compare_window(whole, rounded, window, first)

    return RefitRuns({"file": feeds}, tuple(judge(*windows[place]) for place in apart))


def _language_windows(view: View, data: Data | None, length: int) -> Iterator[tuple[Sequence[int], int]]:
    """Runs of tokens, each with the place from which on it is judged: rows with a prompt by themselves, texts in a row cut."""
    rows = list(data.rows) if isinstance(data, LanguageRows) else []
    texts = [row.answer for row in rows if row.prompt is None]
    if isinstance(data, Examples):
        texts = list(data.texts)
    if data is None:
        texts = [SHIPPED.read_text(encoding="utf-8")]
    tokens = Tokens(view.bundle, view.bundle.text_of(view.name))
    for window in _windows(tokens, texts, length):
        yield window, 0
    for row in rows:
        if row.prompt is not None:
            ids, start = _answer(view, row, length)
            if start < len(ids):
                yield ids, start - 1


def _answer(view: View, row: LanguageRow, length: int) -> tuple[list[int], int]:
    ids, start = row_tokens(view, row)
    return ids[:length], start


def _crossed(view: View, data: Data | None) -> RefitRuns:
    texts = _plain(data) or shipped_paragraphs()
    pairs = [answered_text(view, texts[i]) for i in evenly(len(texts), ANSWERED)]
    used, apart = _split(pairs, view.name)
    both = [pairs[place].feeds(view) for place in used]

    def judge(pair: AnsweredText) -> Compare:
        return lambda whole, rounded: sum(
            (
                _chosen(one, two, token)
                for token, one, two in zip(pair.answer, pair.steps(whole), pair.steps(rounded), strict=True)
            ),
            np.zeros(5),
        )

    return RefitRuns(
        {"file": tuple(read for read, _ in both), "decoder_file": tuple(written for _, written in both)},
        tuple(judge(pairs[place]) for place in apart),
    )


def _texts(view: View, data: Data | None) -> RefitRuns:
    if data is None:
        raise DataError(
            f"adapter {view.name} is for {view.task}, and no texts are given to fit it to: --data {view.name}=FILE"
        )
    texts = inputs_of(data) if isinstance(data, Examples) else _plain(data)
    encoded = [view.encode(texts[i]) for i in evenly(len(texts), TEXTS)]
    used, apart = _split(encoded, view.name)

    def judge(inputs: Mapping[str, np.ndarray]) -> Compare:
        return lambda whole, rounded: _outputs(whole.forward(inputs), rounded.forward(inputs))

    return RefitRuns({"file": tuple(encoded[place] for place in used)}, tuple(judge(encoded[place]) for place in apart))


def _plain(data: Data | None) -> list[str]:
    if isinstance(data, LanguageRows):
        return [row.answer if row.prompt is None else str(row.prompt) for row in data.rows]
    return list(data.texts) if data is not None else []


def _outputs(whole: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far one text's outputs are apart: choices by divergence, numbers by their squares."""
    if "logits" in whole and whole["logits"].shape[-1] > 1:
        one, two = (found["logits"].reshape(-1, found["logits"].shape[-1]) for found in (whole, rounded))
        return sum((_chosen(first, second) for first, second in zip(one, two, strict=True)), np.zeros(5))
    squares = [np.square(array.astype(np.float64) - rounded[name]) for name, array in whole.items()]
    return np.array([sum(each.size for each in squares), 0, 0, sum(float(each.sum()) for each in squares), 0])


def _chosen(one: np.ndarray, two: np.ndarray, token: int | None = None) -> np.ndarray:
    """One choice by logits ``[choices]`` of fp32 and of the variant."""
    first, second = log_softmax(one), log_softmax(two)
    possible = np.isfinite(first)  # a forced first token leaves no choice
    divergence = float(np.exp(first[possible]) @ (first[possible] - second[possible]))
    likelihoods = (0.0, 0.0) if token is None else (-float(first[token]), -float(second[token]))
    return np.array([1, *likelihoods, divergence, one.argmax() == two.argmax()])


def cannot_refit(bundle: Bundle, name: str) -> str:
    """Why an adapter cannot be fitted to a rounded base; empty where it can."""
    entry = bundle.adapter(name)
    if entry.prefix_length:
        return "it puts states before the sequence and has no factors"
    factored = {slot.b for slot in bundle.manifest.slots.linear}
    if not any(tensor in factored and shape[1] for tensor, shape in entry.tensors.items()):
        return "it has no low-rank factors at a linear layer"
    return ""
