"""Running the graph step by step on a GPU, with keys and values kept in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gpu import on_gpu, to_host
from ..gpu_attention import distance, tolerance
from ..gpu_session import GPU
from .decoder import CHUNK, Decoder, as_value, rows_of
from .signature import Signature

#: Tokens that are read at a time where the GPU computes attention over more of them wrongly.
SMALL_CHUNK = 16
#: Long enough that each way to compute attention that ONNX Runtime chooses by length is taken.
_CHECKED_TOKENS = 100
#: Of a large vocabulary every so many-th is looked at.
_CHECKED_LOGITS = 4096


class GpuDecoder(Decoder):
    """A :class:`Decoder` whose cache lies on the GPU; it comes back to this side only where rows move or it grows.

    Graphs that return a cache that is one step longer run as on the CPU: their cache crosses at each step.
    """

    def __init__(
        self, session: Any, signature: Signature, rows: int, feeds: Mapping[str, Any], capacity: int,
        cache: dict[str, np.ndarray] | None = None, prefix: Mapping[str, np.ndarray] | None = None, *, chunk: int = CHUNK,
    ) -> None:  # fmt: skip
        self._chunk = chunk
        super().__init__(session, signature, rows, feeds, capacity, cache, prefix)

    def __del__(self) -> None:
        with GPU:  # what lies in its memory is released with these
            self._held, self._feeds, self._binding = {}, {}, None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        if list(rows) != list(range(self.rows)):
            self._fetch()
        super().keep(rows)

    def _read_rows(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self._fetch()
        logits, read = [], []
        for row, prompt in enumerate(prompts):
            feeds = rows_of(self._feeds, [row], self.mixed)
            cache = {name: array[row : row + 1] for name, array in self._cache.items()}
            alone = GpuDecoder(
                self._session, self._signature, 1, feeds, self._capacity, cache, self._prefix, chunk=self.chunk
            )
            alone.options = self.options
            logits.append(alone.prefill([prompt]))
            alone._fetch()
            read.append(alone._cache)
        self._cache = {name: np.concatenate([each[name] for each in read]) for name in self._cache}
        self._bind()
        return logits

    def _grow(self, capacity: int) -> None:
        self._fetch()
        super()._grow(capacity)

    def _fetch(self) -> None:
        """Bring the cache back to this side, where arrays are moved and made longer; binding puts it on the GPU again."""
        if self._signature.shared and not self._cache:
            self._cache = {
                tensor.past: to_host(self._held[tensor.past], tensor.dtype) for tensor in self._signature.cache
            }

    def _cache_values(self) -> dict[str, Any]:
        values = {name: on_gpu(self._session, array) for name, array in self._cache.items()}
        self._cache = {}
        return values

    def _bind(self) -> None:
        with GPU:  # what is bound is copied there
            super()._bind()

    def _run_bound(self, fed: Mapping[str, np.ndarray], count: int, width: int) -> np.ndarray:
        with GPU:
            return super()._run_bound(fed, count, width)

    def _bind_fed(self, fed: Mapping[str, np.ndarray]) -> None:
        """Bind what changes from run to run: it is copied to the GPU as it is bound, not as it is run."""
        for name, array in fed.items():
            self._binding.bind_ortvalue_input(name, as_value(array))


def piece_size(session: Any, signature: Signature, slots: Mapping[str, Any], context: int | None) -> int:
    """How many tokens of a prompt are fed at a time.

    The base reads a prompt in one piece and in small ones, and the small ones are kept to where the two differ: of 32 tokens
    on, ONNX Runtime computes attention in another way on WebGPU, which gives wrong numbers on some (SwiftShader).
    """
    count = min(_CHECKED_TOKENS, context or _CHECKED_TOKENS)
    tokens = np.arange(count) % (signature.vocabulary or count)
    step = -(-(signature.vocabulary or 1) // _CHECKED_LOGITS)

    def read(chunk: int) -> np.ndarray:
        decoder = GpuDecoder(session, signature, 1, slots, len(tokens), chunk=chunk)
        pieces = [tokens[start : start + chunk].tolist() for start in range(0, len(tokens), chunk)]
        return np.concatenate([decoder.verify(piece)[:, ::step].astype(np.float32) for piece in pieces])

    half = signature.cache[0].dtype is np.float16
    return CHUNK if distance(read(CHUNK), read(SMALL_CHUNK)) <= tolerance(half) else SMALL_CHUNK
