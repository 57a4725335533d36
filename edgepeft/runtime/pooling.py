"""From hidden states to embeddings, by the bundle's own graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..bundle import Bundle, OwnEmbedding
from ..bundle.embedding import EMBEDDING, HIDDEN, MASK, PROMPT_LENGTH
from ..errors import BundleError, InputError
from .sessions import open_graph_session


class EmbeddingGraphs:
    """Sessions over the graphs of embeddings, each opened when it is first used. Threads share them."""

    def __init__(self, bundle: Callable[[], Bundle], threads: int | None) -> None:
        self._bundle, self._threads = bundle, threads
        #: By the hash of the graph: one that is opened stays what it is when the bundle is read again.
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Give up the sessions."""
        with self._lock:
            self._sessions.clear()

    def _session(self, embedding: OwnEmbedding) -> Any:
        with self._lock:
            found = self._sessions.get(embedding.sha256)
            if found is None:
                found = self._sessions[embedding.sha256] = self._open(embedding)
            return found

    def _open(self, embedding: OwnEmbedding) -> Any:
        bundle, says = self._bundle(), embedding.says
        entry = bundle.manifest.files.get(says.graph)
        if entry is None or entry.sha256 != embedding.sha256:
            raise InputError(
                f"{bundle.path}: {says.graph} was replaced since this view was made, before it embedded a text; make the view again"
            )
        found = open_graph_session(bundle, says.graph, threads=self._threads)
        names = {value.name for value in found.get_inputs()}
        wanted = {HIDDEN, MASK} | (set() if says.include_prompt else {PROMPT_LENGTH})
        if names != wanted or [value.name for value in found.get_outputs()] != [EMBEDDING]:
            raise BundleError(
                f"{bundle.file(says.graph)} takes {', '.join(sorted(names))[:200]}; an embedding's graph takes "
                f"{', '.join(sorted(wanted))} and gives {EMBEDDING}. Export the bundle again."
            )
        return found

    def pooled(
        self, embedding: OwnEmbedding | None, states: np.ndarray, mask: np.ndarray, prompt_length: int
    ) -> np.ndarray:
        """Embeddings ``[rows, dimension]`` of hidden states ``[rows, tokens, hidden]``, padded where ``mask`` is 0.

        Without an ``embedding`` they are the means over the tokens.
        """
        states = states.astype(np.float32, copy=False)
        if embedding is None:
            weights = mask[:, :, None].astype(np.float32)
            return (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), np.float32(1e-9))
        where, says = self._bundle().file(embedding.says.graph), embedding.says
        feeds = {HIDDEN: states, MASK: mask}
        if not says.include_prompt:
            feeds[PROMPT_LENGTH] = np.array([prompt_length], np.int64)
        session = self._session(embedding)
        try:
            (found,) = session.run([EMBEDDING], feeds)
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(f"{where} cannot embed hidden states of shape {states.shape}: {error}") from error
        if found.shape != (len(states), says.dimension):
            raise BundleError(
                f"{where} gives shape {found.shape}; the manifest says {says.dimension} numbers "
                "a text. Export the bundle again."
            )
        result: np.ndarray = found
        return result
