"""From hidden states to embeddings, by the bundle's own graphs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..bundle import Bundle, Embedding
from ..bundle.embedding import EMBEDDING, HIDDEN, MASK, PROMPT_LENGTH
from ..errors import BundleError
from .sessions import open_graph_session


class EmbeddingGraphs:
    """Sessions over the graphs of embeddings, each opened when it is first used. Threads share them."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._bundle, self._threads = bundle, threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Give up the sessions."""
        with self._lock:
            self._sessions.clear()

    def _session(self, embedding: Embedding) -> Any:
        with self._lock:
            found = self._sessions.get(embedding.graph)
            if found is None:
                found = open_graph_session(self._bundle, embedding.graph, threads=self._threads)
                names = {value.name for value in found.get_inputs()}
                wanted = {HIDDEN, MASK} | (set() if embedding.include_prompt else {PROMPT_LENGTH})
                if names != wanted or [value.name for value in found.get_outputs()] != [EMBEDDING]:
                    raise BundleError(
                        f"{self._bundle.file(embedding.graph)} takes {', '.join(sorted(names))[:200]}; an embedding's graph takes "
                        f"{', '.join(sorted(wanted))} and gives {EMBEDDING}. Export the bundle again."
                    )
                self._sessions[embedding.graph] = found
            return found

    def pooled(
        self, embedding: Embedding | None, states: np.ndarray, mask: np.ndarray, prompt_length: int
    ) -> np.ndarray:
        """Embeddings ``[rows, dimension]`` of hidden states ``[rows, tokens, hidden]``, padded where ``mask`` is 0.

        Without an ``embedding`` they are the means over the tokens.
        """
        states = states.astype(np.float32, copy=False)
        if embedding is None:
            weights = mask[:, :, None].astype(np.float32)
            return (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), np.float32(1e-9))
        feeds = {HIDDEN: states, MASK: mask}
        if not embedding.include_prompt:
            feeds[PROMPT_LENGTH] = np.array([prompt_length], np.int64)
        session = self._session(embedding)
        try:
            (found,) = session.run([EMBEDDING], feeds)
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(
                f"{self._bundle.file(embedding.graph)} cannot embed hidden states of shape {states.shape}: {error}"
            ) from error
        if found.shape != (len(states), embedding.dimension):
            raise BundleError(
                f"{self._bundle.file(embedding.graph)} gives shape {found.shape}; the manifest says {embedding.dimension} numbers "
                "a text. Export the bundle again."
            )
        result: np.ndarray = found
        return result
