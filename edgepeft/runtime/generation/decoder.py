"""Running the graph step by step, with keys and values kept where ONNX Runtime left them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .signature import Signature

#: A prompt is fed in pieces of this many tokens, so that attention scores take heads x 512 x length floats and a
#: cancelled prompt stops soon.
CHUNK = 512
#: Rows are read together while their padded tokens are at most ``CHUNK``, and the logits that this computes beyond each row's
#: last token at most this many; otherwise one after the other.
LOGITS = 64
#: The logits of runs over at most so many tokens keep their memory: those of the largest such run.
KEPT_LOGITS = 16


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens, padded on the right, and their mask: int64, ``[rows, longest]``."""
    mask = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
    ids = np.zeros_like(mask)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    return ids, mask


class Decoder:
    """A batch of sequences under way: its cache, its mask and the adapter's tensors.

    Rows are padded on the right: a row's own tokens have ones in the mask, padding zeros, and what is generated follows
    at the end of the mask for all rows. ``feeds`` are the adapter's slot tensors, bound once: ONNX Runtime ignores the
    adapters of ``RunOptions`` in a run with IO binding. ``options`` are the ``RunOptions`` of the run under way. ``cache``, by
    input name and with room for ``capacity`` tokens, is used where it is given. ``prefix`` are states that every row begins
    with, ``[1, heads, length, head_dim]`` by input name; a ``cache`` holds them already.
    """

    #: In pieces of how many tokens a prompt is fed at most, where that is not ``CHUNK``.
    _chunk: int | None = None
    #: Whether each row has an adapter of its own, so that ``feeds`` lead with the rows; else they serve every row, whatever they
    #: lead with.
    mixed = False

    def __init__(
        self, session: Any, signature: Signature, rows: int, feeds: Mapping[str, Any], capacity: int,
        cache: dict[str, np.ndarray] | None = None, prefix: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        self._session = session
        self._signature = signature
        self._feeds = dict(feeds)
        self.options: Any = None
        self._prefix = prefix or {}
        self._before = next((int(states.shape[2]) for states in self._prefix.values()), 0)
        #: The mask, grown in place: ``_taken`` of its columns are of tokens that were run.
        self._masks = np.zeros((rows, max(capacity, self._before)), np.int64)
        self._masks[:, : self._before] = 1
        self._taken = self._before
        self._lengths = np.full(rows, self._before, np.int64)
        self._capacity = max(capacity, self._before) if signature.shared else 0
        self._cache = cache or self._begun(rows)
        self._grown: dict[str, Any] = {}
        #: The logits that are bound, and the memory behind those of a few tokens: drafts change their number at each run.
        self._logits: np.ndarray | None = None
        self._room = np.empty(0, signature.logits_dtype)
        self._held: dict[str, Any] = {}
        self._bound: dict[str, np.ndarray] = {}
        if signature.shared:
            self._bind()
        else:
            self._grown = {name: as_value(array) for name, array in self._cache.items()}

    @property
    def chunk(self) -> int:
        """A prompt is fed in pieces of at most so many tokens."""
        return self._chunk or CHUNK

    @property
    def rows(self) -> int:
        """Sequences in the batch."""
        return len(self._lengths)

    @property
    def width(self) -> int:
        """Places of the cache that tokens have taken, padding included."""
        return self._taken - self._before

    def _begun(self, rows: int) -> dict[str, np.ndarray]:
        """A cache that holds the prefix, with room for the tokens."""
        cache = {t.past: t.zeros(rows, self._capacity or self._before) for t in self._signature.cache}
        for name, states in self._prefix.items():
            cache[name][:, :, : self._before] = states
        return cache

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Feed each row's tokens (at least one each); logits after each row's last token, ``[rows, vocabulary]``.

        One row may have a past; several rows start together. The result is overwritten by the next call.
        """
        if self.rows == 1:
            (tokens,) = prompts
            for start in range(0, len(tokens), self.chunk):
                part = np.array(tokens[start : start + self.chunk], np.int64)[None]
                logits = self._run(part, np.ones_like(part), part.shape[1] - 1)
            return logits[:, -1]
        lengths = np.array([len(prompt) for prompt in prompts])
        longest, spread = int(lengths.max()), int(lengths.max() - lengths.min()) + 1
        if self._signature.shared and (self._before or self.rows * longest > self.chunk or self.rows * spread > LOGITS):
            # GroupQueryAttention also takes several tokens after a past, a prefix, for one row only.
            return self._prefill_each(prompts, lengths)
        ids, mask = padded(prompts)
        first = int(lengths.min()) - 1
        logits = self._run(ids, mask, first)
        return logits[np.arange(self.rows), lengths - 1 - first]

    def _prefill_each(self, prompts: Sequence[Sequence[int]], lengths: np.ndarray) -> np.ndarray:
        """Read each row by itself, into its own part of the cache."""
        longest = int(lengths.max())
        if self._before + longest > self._capacity:
            self._grow(self._before + longest)
        logits = self._read_rows(prompts)
        self._extended((np.arange(longest) < lengths[:, None]).astype(np.int64))
        self._taken += longest
        self._lengths = self._lengths + lengths
        return np.concatenate(logits)

    def _read_rows(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Each row's logits ``[1, vocabulary]``, with its keys and values in the cache."""
        logits = []
        for row, prompt in enumerate(prompts):
            feeds = rows_of(self._feeds, [row], self.mixed)
            # A row of a buffer lies in one piece, so ONNX Runtime writes into it in place.
            cache = {name: array[row : row + 1] for name, array in self._cache.items()}
            alone = Decoder(self._session, self._signature, 1, feeds, self._capacity, cache, self._prefix)
            alone.options = self.options
            logits.append(alone.prefill([prompt]))
        return logits

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``, overwritten by the next call."""
        column = np.array(tokens, np.int64)[:, None]
        return self._run(column, np.ones_like(column), 0)[:, 0]

    @property
    def most_at_once(self) -> int:
        """Tokens that :meth:`verify` takes: GroupQueryAttention takes several after a past for one row only."""
        return self.chunk if self.rows == 1 else 1

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed several tokens of the one row; the logits behind each, ``[tokens, vocabulary]``, overwritten by the next call."""
        row = np.array(tokens, np.int64)[None]
        return self._run(row, np.ones_like(row), 0)[0]

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens that the one row was fed since its prompt."""
        if not count:
            return
        self._taken -= count
        self._lengths = self._lengths - count
        if not self._signature.shared:
            self._grown = {name: as_value(_copy(value.numpy()[:, :, :-count])) for name, value in self._grown.items()}

    def feed(self, tokens: np.ndarray, mask: np.ndarray, first: int, positions: np.ndarray) -> np.ndarray:
        """Logits ``[rows, tokens - first, vocabulary]`` of new tokens ``[rows, tokens]`` at these positions."""
        return self._run(tokens, mask, first, positions)

    def count(self, tokens: int) -> None:
        """Say how many of the places in the cache are tokens; the others are masked out."""
        self._lengths[:] = tokens + self._before

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens (and what stands before them), of rows without padding among them."""
        width += self._before
        self._taken = min(self._taken, width)
        self._lengths[:] = width
        if not self._signature.shared:
            self._grown = {name: as_value(_copy(value.numpy()[:, :, :width])) for name, value in self._grown.items()}

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order. Rows that keep their places or move forward cost no new memory."""
        index = list(rows)
        if index == list(range(self.rows)):
            return
        self._masks, self._lengths = self._masks[index], self._lengths[index]
        self._feeds = rows_of(self._feeds, index, self.mixed)
        if self._signature.shared:
            self._cache = {name: moved(array, index, self._taken) for name, array in self._cache.items()}
            self._bind()
        else:
            self._grown = {name: as_value(_copy(value.numpy()[index])) for name, value in self._grown.items()}

    def _run(self, tokens: np.ndarray, mask: np.ndarray, first: int, positions: np.ndarray | None = None) -> np.ndarray:
        """Logits ``[rows, tokens - first, vocabulary]`` of new tokens ``[rows, tokens]``."""
        whole = self._extended(mask)
        signature = self._signature
        fed = {"input_ids": tokens, "attention_mask": whole}
        if signature.positions:
            # Padding takes the position of the row's last token: any that the model knows will do, it is masked.
            ahead = np.minimum(np.arange(tokens.shape[1]), mask.sum(axis=1, keepdims=True) - 1)
            fed["position_ids"] = self._lengths[:, None] + ahead if positions is None else positions + self._before
        if signature.logits_from:
            fed["logits_from"] = np.array([first], np.int64)
        count = tokens.shape[1] - (first if signature.logits_from else 0)
        run = self._run_bound if signature.shared else self._run_grown
        logits = run(fed, count, whole.shape[1])
        # Only now: a run that failed or was cancelled leaves the past as it was.
        self._taken += tokens.shape[1]
        self._lengths = self._lengths + mask.sum(axis=1)
        return logits if signature.logits_from else logits[:, first:]

    def _extended(self, mask: np.ndarray) -> np.ndarray:
        """The mask with these columns behind those of the tokens that were run, which stay the same until ``_taken`` moves."""
        width = self._taken + mask.shape[1]
        if width > self._masks.shape[1]:
            grown = np.zeros((self.rows, 2 * width), np.int64)
            grown[:, : self._taken] = self._masks[:, : self._taken]
            self._masks = grown
        self._masks[:, self._taken : width] = mask
        return self._masks[:, :width]

    def _run_bound(self, fed: Mapping[str, np.ndarray], count: int, width: int) -> np.ndarray:
        if width > self._capacity:
            self._grow(max(width, 2 * self._capacity))
        if self._logits is None or self._logits.shape[1] != count:
            self._logits = self._bind_logits(count)
        self._bind_fed(fed)
        self._session.run_with_iobinding(self._binding, self.options)
        return self._logits

    def _bind_fed(self, fed: Mapping[str, np.ndarray]) -> None:
        """Bind what changes from run to run."""
        for name, array in fed.items():
            bound = self._bound.get(name)
            if bound is not None and bound.shape == array.shape:
                bound[...] = array  # the memory that is bound: from token to token only the mask changes its shape
                continue
            # The mask of one row lies in memory that lives here. Others are bound as copies, which change from token to token.
            alone = name == "attention_mask" and array.flags.c_contiguous
            self._bound[name] = array if alone else array.copy()
            self._held[name] = as_value(self._bound[name])
            self._binding.bind_ortvalue_input(name, self._held[name])

    def _bind_logits(self, count: int) -> np.ndarray:
        shape = (self.rows, count, self._signature.vocabulary or 0)
        size = math.prod(shape)
        if count > KEPT_LOGITS:  # a prompt's, which come once
            found = np.empty(size, self._signature.logits_dtype)
        else:
            if self._room.size < size:
                self._room = np.empty(size, self._signature.logits_dtype)
            found = self._room[:size]
        found = found.reshape(shape)
        self._held["logits"] = as_value(found)
        self._binding.bind_ortvalue_output("logits", self._held["logits"])
        return found

    def _run_grown(self, fed: Mapping[str, np.ndarray], count: int, width: int) -> np.ndarray:
        values = {name: as_value(array) for name, array in fed.items()}
        names = ["logits", *(tensor.present for tensor in self._signature.cache)]
        logits, *present = self._session.run_with_ort_values(
            names, {**values, **self._grown, **self._feeds}, self.options
        )
        self._grown = {tensor.past: value for tensor, value in zip(self._signature.cache, present, strict=True)}
        found: np.ndarray = logits.numpy()
        return found

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        for tensor in self._signature.cache:
            grown = tensor.zeros(self.rows, capacity)
            grown[:, :, : self._taken] = self._cache[tensor.past][:, :, : self._taken]
            self._cache[tensor.past] = grown
        self._bind()

    def _bind(self) -> None:
        """Bind what stays the same from step to step: cache, adapter. Values point into arrays that live here."""
        self._binding = self._session.io_binding()
        self._logits = None
        self._bound = {}
        self._held = self._cache_values()
        for tensor in self._signature.cache:
            self._binding.bind_ortvalue_input(tensor.past, self._held[tensor.past])
            self._binding.bind_ortvalue_output(tensor.present, self._held[tensor.past])
        for name, value in self._feeds.items():
            self._binding.bind_ortvalue_input(name, value)

    def _cache_values(self) -> dict[str, Any]:
        """The cache as values to bind, by input name."""
        return {name: as_value(array) for name, array in self._cache.items()}


def as_value(array: np.ndarray) -> Any:
    """An OrtValue over the array's own memory."""
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _copy(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


def moved(cache: np.ndarray, rows: Sequence[int], taken: int) -> np.ndarray:
    """These rows of a cache ``[rows, heads, capacity, head_dim]``, the first ``taken`` places of which are filled.

    The result lies in the same memory where each row moves forward or stays, which is how the loop asks for them: at 8 rows of
    SmolLM2-135M a new cache is 80 MB, and its pages alone take as long to map as several tokens.
    """
    if any(source < place for place, source in enumerate(rows)):
        return cache[list(rows)]
    for place, source in enumerate(rows):
        if source != place:
            cache[place, :, :taken] = cache[source, :, :taken]
    return cache[: len(rows)]


def rows_of(feeds: Mapping[str, Any], rows: Sequence[int], mixed: bool) -> dict[str, Any]:
    """An adapter's slot tensors for some rows of a batch.

    Where the rows are ``mixed``, those that lead with more than one have values for each row. Else none do: the factors of an
    embedding lead with its tokens, and with a rank.
    """
    if not mixed:
        return dict(feeds)
    index = list(rows)
    return {name: value if value.shape()[0] == 1 else as_value(value.numpy()[index]) for name, value in feeds.items()}
