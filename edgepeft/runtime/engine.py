"""The engine: one variant of a bundle in ONNX Runtime. It has no state that a call changes, so threads share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle import Bundle, Manifest, head_of
from ..bundle.manifest import MAX_THREADS
from ..errors import InputError, UnknownAdapterError
from .active import ActiveAdapter, read_tensors, scaled_adapter
from .arrays import Inputs, check_arrays
from .blend import blend, describe
from .buffers import as_values
from .generation import Generator, generator_for
from .mixed import hide_padding, mixed_adapter
from .once import Once
from .pooling import EmbeddingGraphs
from .prefix import after_prefix
from .resident import ResidentAdapters
from .sessions import check_session, open_graph_session, run_values
from .text import TextEncoder


class Engine:
    """Sessions, slots, tokenizer and resident adapters of one variant of a bundle.

    What a run computes depends on its arguments alone: the arrays and an :class:`ActiveAdapter`, which the caller holds until
    the run has ended. No lock is held while a graph runs.
    """

    def __init__(self, bundle: Bundle, variant: str | None, threads: int | None) -> None:
        self.bundle = bundle
        self.variant, self._entry = bundle.variant(variant)
        if threads is None:
            # A bundle made for a target knows how many threads it has there.
            threads = bundle.manifest.target_threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise InputError(
                f"threads must be a whole number of at least 1 and at most {MAX_THREADS}, found {threads!r:.80}"
            )
        self.threads: int | None = threads
        # Opening a graph verifies it and its weights; a decoder, opened when it is first used, is verified here all the same.
        opened = {self._entry.file, *(() if self._entry.decoder_file is not None else self._entry.data)}
        bundle.check(name for name in bundle.loaded_files(self.variant) if name not in opened)
        for name, adapter in bundle.manifest.adapters.items():
            read_tensors(bundle, name, adapter)
        self._session: Any = open_graph_session(bundle, self._entry.file, threads=threads)
        if self._entry.decoder_file is None:
            check_session(self._session, bundle.file(self._entry.file), bundle.manifest)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._slots = {value.name for value in self._session.get_overridable_initializers()}
        self._decoder_session = Once(self._open_decoder)
        self._encoder = Once(lambda: TextEncoder(bundle))
        self._encoders: dict[int | None, Once[TextEncoder]] = {bundle.manifest.max_length: self._encoder}
        self.embeddings = EmbeddingGraphs(bundle, self.threads)
        self._generator = Once(lambda: generator_for(self))
        self.resident = ResidentAdapters(bundle)
        self.base = ActiveAdapter(
            name="", scale=1.0, labels=bundle.manifest.labels, head=head_of(bundle.manifest, None)
        )

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._session is None

    @property
    def session(self) -> Any:
        """The session of the variant's graph (of an encoder-decoder: its encoder); :class:`InputError` once closed."""
        session = self._session
        if session is None:
            raise InputError(f"{self.bundle.path} was closed; open it again with runtime.open")
        return session

    @property
    def decoder_session(self) -> Any:
        """The session of an encoder-decoder's decoder, opened at its first use; :class:`InputError` without one."""
        self.check_open()
        return self._decoder_session.get()

    @property
    def encoder(self) -> TextEncoder:
        """The bundle's tokenizer, padding and cutting for the base."""
        self.check_open()
        return self._encoder.get()

    def encoder_to(self, limit: int | None) -> TextEncoder:
        """The bundle's tokenizer, cutting texts to ``limit`` tokens."""
        self.check_open()
        return self._encoders.setdefault(limit, Once(lambda: TextEncoder(self.bundle, limit))).get()

    @property
    def generator(self) -> Generator:
        """What generation needs of this bundle; :class:`InputError` for one whose task does not write."""
        self.check_open()
        return self._generator.get()

    def check_open(self) -> None:
        """Raise :class:`InputError` once closed."""
        if self._session is None:
            _ = self.session

    def close(self) -> None:
        """Give up sessions and adapters. Runs that have begun end as they began; their memory is freed then."""
        self._session = None
        self._decoder_session = Once(self._open_decoder)
        self._generator = Once(lambda: generator_for(self))
        self.resident.forget()
        self.embeddings.forget()

    def adapter(
        self, adapter: str | Mapping[str, float] | None, scale: float = 1.0, head: str | None = None
    ) -> ActiveAdapter:
        """An adapter of the bundle, the weighted sum of several or the base, ready to run; see :meth:`Runtime.adapter`."""
        self.check_open()
        if isinstance(adapter, Mapping):
            return self._blend(adapter, scale, head)
        if head is not None:
            raise InputError(f"head={head!r} is for blends; {adapter!r} has its own")
        merged = self.manifest.merged
        if merged is not None:
            if adapter not in (None, merged):
                raise UnknownAdapterError(
                    f"{self.bundle.path} is merged with {merged!r}; it has no adapter {adapter!r}"
                )
            if scale != 1.0:
                raise InputError(f"{self.bundle.path} is merged with {merged!r}, whose scale is fixed")
            return self.base
        if adapter is None:
            return self.base
        if scale == 1.0:
            return self.resident.get(adapter)
        return scaled_adapter(self.bundle, adapter, self.resident.tensors(adapter), scale)

    def _blend(self, weights: Mapping[str, float], scale: float, head: str | None) -> ActiveAdapter:
        if self.manifest.merged is not None:
            raise InputError(f"{self.bundle.path} is merged with {self.manifest.merged!r}; it has no adapters to blend")
        summed = blend(self.bundle, weights, scale=scale, head=head, read=self.resident.tensors)
        return ActiveAdapter(
            name=describe(weights),
            scale=scale,
            labels=summed.head.labels,
            head=summed.head,
            embedding=summed.embedding,
            feeds=as_values(summed.tensors),
            identity=("blend", *weights.items(), scale, head),
        )

    def mixed(self, adapters: Sequence[str | None]) -> ActiveAdapter:
        """An adapter of its own for each row of a batch (``None``: the base), as one."""
        self.check_open()
        return mixed_adapter(self.bundle, adapters, self.resident.tensors)

    def run(self, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        """Run arrays through the base with an adapter; raw outputs by name.

        Where rows have heads of different label counts, logits behind a row's own are minus infinity. Raises
        :class:`InputError` for arrays that do not fit the base.
        """
        check_arrays(inputs, self.manifest)
        session = self.session
        try:
            if active.prefix:
                limit = self.manifest.max_length
                return after_prefix(lambda row: self._run(session, row, active), inputs, active.prefix, limit)
            outputs = self._run(session, inputs, active)
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's exception types are not public
            shapes = {name: array.shape for name, array in inputs.items()}
            raise InputError(
                f"ONNX Runtime cannot run inputs of shape {shapes} (this base takes token ids below its vocabulary size and "
                f"at most {self.manifest.max_length} tokens): {error}"
            ) from error
        if active.row_labels is not None:
            hide_padding(outputs, active.row_labels)
        return outputs

    def _run(self, session: Any, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        if self._entry.decoder_file is not None:
            # The other graph's slots are unknown to this one, which RunOptions would refuse.
            slots = {name: value for name, value in self.slot_values(active).items() if name in self._slots}
            return run_values(session, self._outputs, inputs, slots)
        if active.feeds:
            return run_values(session, self._outputs, inputs, active.feeds, active.options)
        found = session.run(self._outputs, dict(inputs), active.options)
        return dict(zip(self._outputs, found, strict=True))

    def slot_values(self, active: ActiveAdapter) -> Mapping[str, Any]:
        """An adapter's slot tensors as OrtValues by name, for runs that take them as inputs; none for the base."""
        return active.feeds if active.handle is None else self.resident.values(active.name)

    def _open_decoder(self) -> Any:
        if self._entry.decoder_file is None:
            raise InputError(f"{self.bundle.path} is for {self.manifest.task}; it has no decoder that writes texts")
        return open_graph_session(self.bundle, self._entry.decoder_file, threads=self.threads)
