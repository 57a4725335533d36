"""What a base runs to be calibrated: texts that ship with edgepeft or the user's own, with each adapter on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..bundle.cache_names import is_past
from ..data import Examples, evenly
from ..errors import DataError, InputError
from ..quantize.recipes import WHOLE
from ..quantize.stages import Steps
from ..runtime.active import read_tensors
from ..runtime.generation.tokens import Tokens
from ..runtime.per_text import PerText
from ..runtime.text import TextEncoder
from ._calibrate import check_texts, inputs_of

#: Tokens of one run, and at most how many are run in all: half of them by the base where there are adapters.
WINDOW, TOKENS = 256, 8192
#: One window of so many is kept apart: what was fitted is judged by it.
HELD_OUT = 5
#: How many runs compare matrices, and tokens of each, for language models; texts for encoders. Every matrix takes all of them.
PROBED, PROBED_TOKENS, PROBED_TEXTS = 3, 128, 32
#: Where an adapter has no texts of its own, it runs at most so many windows of those for all.
SHARED = 4

#: A text of many kinds that was written for this purpose.
SHIPPED = Path(__file__).parents[1] / "quantize" / "calibration.txt"


def shipped_paragraphs() -> list[str]:
    """That text by its paragraphs: texts for what reads one at a time."""
    return [part for part in SHIPPED.read_text(encoding="utf-8").split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Runs:
    """Feeds to calibrate with, and token windows kept apart by adapter (``None``: the base)."""

    feeds: tuple[Mapping[str, np.ndarray], ...]
    held_out: Mapping[str | None, tuple[tuple[int, ...], ...]]
    #: Texts or windows that each ran, by name; ``"*"`` is the base.
    counts: Mapping[str, int]
    #: Runs that nothing was fitted to: those by which matrices are compared (one of the base and of each adapter, at most
    #: ``PROBED`` in all; more and shorter ones of encoders), and others by which the result is judged.
    probes: tuple[Mapping[str, np.ndarray], ...] = ()
    apart: tuple[Mapping[str, np.ndarray], ...] = ()
    #: Tokens of those whose texts fill no second window, by name: nothing of them could be kept apart.
    short: Mapping[str, int] = field(default_factory=dict)

    def feeds_of(self, field: str) -> tuple[Mapping[str, np.ndarray], ...]:
        """What calibrates one graph, by its field of :class:`~edgepeft.bundle.Variant`."""
        return self.feeds

    def counted_of(self, field: str) -> tuple[int, ...] | None:
        """How many rows of each of these runs count; ``None`` for all."""
        return None

    def probed(self) -> tuple[Steps, ...]:
        """What compares matrices, as feeds of each graph in the order in which they run."""
        return tuple((feeds,) for feeds in self.probes)

    def judged(self) -> tuple[Steps, ...]:
        """What the result is judged by, likewise."""
        return tuple((feeds,) for feeds in self.apart)


def can_calibrate(bundle: Bundle, data: Collection[str]) -> str:
    """Why a bundle cannot be calibrated; empty where it can. ``data`` are the names that have texts, or rows of sound."""
    manifest = bundle.manifest
    if "tokenizer.json" not in manifest.files:
        return "it has no tokenizer.json, so no text can be run"
    if manifest.writes:
        return ""
    if manifest.hears:
        return "" if data else "it writes down speech, and no sounds are given: --data '*=FILE'"
    return "" if data else f"it is for {manifest.task}, and no texts are given: --data NAME=FILE"


def calibration_runs(bundle: Bundle, data: Mapping[str, Examples], *, rows: int) -> Runs:
    """The runs that calibrate a bundle's fp32 graph.

    Args:
        bundle: The bundle; :func:`can_calibrate` was empty.
        data: Texts by adapter (``"*"``: for all). A language model without any runs a text that ships with edgepeft.
        rows: How many texts of each adapter are run.

    Raises:
        DataError: The texts are too short for a window of two tokens.
        UnknownAdapterError: A name in ``data`` is no adapter.
    """
    if data:
        check_texts(bundle, data, language=bundle.manifest.writes)
    return _language(bundle, data, rows) if bundle.manifest.writes else _texts(bundle, data, rows)


def check_runs(bundle: Bundle, data: Mapping[str, Examples], *, rows: int) -> None:
    """Raise what :func:`calibration_runs` would of these texts, before anything is copied or run."""
    check_texts(bundle, data, language=bundle.manifest.writes)
    if not bundle.manifest.writes or bundle.manifest.variants[WHOLE].decoder_file is not None:
        return  # any text will do
    for name in (None, *bundle.manifest.adapters):
        tokens, count = Tokens(bundle, bundle.text_of(name)), 0
        for text in _chosen(data, name, rows):
            count += len(tokens.encode(text, special=False))
            if count > 1:
                break
        else:
            raise _too_short(name)


def _chosen(data: Mapping[str, Examples], name: str | None, rows: int) -> list[str]:
    """The texts that the base or an adapter runs: its own, those for all, or else all there are."""
    own = data.get(name or "*", data.get("*"))
    texts = list(own.texts) if own is not None else [text for each in data.values() for text in each.texts]
    return [texts[i] for i in evenly(len(texts), rows)]


def _too_short(name: str | None) -> DataError:
    return DataError(
        f"the texts for {name or 'the base'} hold no run of two tokens: nothing can be measured on them. Give longer ones"
    )


def _language(bundle: Bundle, data: Mapping[str, Examples], rows: int) -> Runs:
    manifest = bundle.manifest
    length = min(WINDOW, manifest.max_length or WINDOW)
    feeds: list[Mapping[str, np.ndarray]] = []
    held: dict[str | None, tuple[tuple[int, ...], ...]] = {}
    counts: dict[str, int] = {}
    probes: list[Mapping[str, np.ndarray]] = []
    kept_apart: list[Mapping[str, np.ndarray]] = []
    short: dict[str, int] = {}
    adapters = manifest.adapters
    for name in (None, *adapters):
        own = data.get(name or "*", data.get("*"))
        texts = _chosen(data, name, rows) if data else [SHIPPED.read_text(encoding="utf-8")]
        windows = list(_windows(Tokens(bundle, bundle.text_of(name)), texts, length))
        if not windows:
            raise _too_short(name)
        if len(windows) == 1:
            short[name or "*"] = len(windows[0])
        apart = windows[HELD_OUT - 1 :: HELD_OUT] or windows[-1:]
        used = [w for w in windows if w not in apart] or windows
        share = TOKENS if not adapters else TOKENS // 2 if name is None else TOKENS // (2 * len(adapters))
        most = max(1, share // length)
        used = [used[i] for i in evenly(len(used), min(most, SHARED) if name is not None and own is None else most)]
        tensors = slot_tensors(bundle, name)
        feeds += [{**feeds_of(bundle, window), **tensors} for window in used]
        probes.append({**feeds_of(bundle, apart[0][:PROBED_TOKENS]), **tensors})
        kept_apart += [{**feeds_of(bundle, window), **tensors} for window in apart[1:SHARED] or apart]
        held[name] = tuple(apart[:SHARED])
        counts[name or "*"] = len(used)
    return Runs(tuple(feeds), held, counts, tuple(probes[:PROBED]), tuple(kept_apart), short)


def _windows(tokens: Tokens, texts: Sequence[str], length: int) -> Iterator[tuple[int, ...]]:
    """The texts one after the other, in windows of at most ``length`` tokens; the last one may be shorter.

    Each begins as a prompt does: some models (Gemma) write at random without their first token.
    """
    begin = tokens.before
    room = max(2, length - len(begin))
    ids = [number for text in texts for number in tokens.encode(text, special=False)]
    for start in range(0, len(ids), room):
        if len(ids) - start > 1:
            yield (*begin, *ids[start : start + room])


def feeds_of(bundle: Bundle, window: Sequence[int]) -> dict[str, np.ndarray]:
    """Inputs of a language model's graph for one window, without a past."""
    ids = np.array([window], np.int64)
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "logits_from": np.zeros(1, np.int64),
    }
    feeds: dict[str, np.ndarray] = {}
    for value in bundle.manifest.inputs:
        if is_past(value.name):
            shape = [dim if isinstance(dim, int) else 1 if axis == 0 else 0 for axis, dim in enumerate(value.shape)]
            feeds[value.name] = np.zeros(shape, value.dtype)
        elif value.name in known:
            feeds[value.name] = known[value.name]
        elif not value.optional:
            raise InputError(f"input {value.name} of {bundle.path} is not fed by texts: use --method rtn")
    return feeds


def slot_tensors(bundle: Bundle, name: str | None) -> dict[str, np.ndarray]:
    """An adapter's tensors by slot; none for the base."""
    if name is None:
        return {}
    slots = bundle.manifest.slots.tensors()
    return {n: array for n, array in read_tensors(bundle, name, bundle.adapter(name)).items() if n in slots}


def _texts(bundle: Bundle, data: Mapping[str, Examples], rows: int) -> Runs:
    """Texts for a base that reads them, one at a time: a batch would bring padding into the measurement."""
    encoders = PerText(lambda own: TextEncoder(bundle, own))
    everything = [text for each in data.values() for text in inputs_of(each)]
    feeds: list[Mapping[str, np.ndarray]] = []
    kept_apart: list[Mapping[str, np.ndarray]] = []
    counts: dict[str, int] = {}
    for name in (None, *bundle.manifest.adapters):
        own = data.get(name or "*", data.get("*"))
        texts = inputs_of(own) if own is not None else everything
        chosen = [texts[i] for i in evenly(len(texts), rows)]
        tensors = slot_tensors(bundle, name)
        encoder = encoders.get(bundle.text_of(name))
        made = [{**encoder.encode([text]), **tensors} for text in chosen]
        kept_apart += made[HELD_OUT - 1 :: HELD_OUT]
        feeds += [each for place, each in enumerate(made) if (place + 1) % HELD_OUT]
        counts[name or "*"] = len(made) - len(made) // HELD_OUT
    apart = kept_apart or feeds
    probes = [apart[i] for i in evenly(len(apart), PROBED_TEXTS)]
    return Runs(tuple(feeds), {}, counts, tuple(probes), tuple(apart))
