"""``runtime.open``: a bundle ready to run, with adapters to swap. No torch, no transformers, no onnx."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from ..bundle import Bundle, Manifest, read_bundle, rereading
from ..errors import BundleError, InputError, UnknownAdapterError
from .active import ActiveAdapter, check_tensors, load_adapter, read_tensors, scaled_adapter
from .buffers import as_values, packed
from .text import Prediction, TextEncoder, prediction

if TYPE_CHECKING:
    from .generation import Conversation, GenerateOptions, Generation, Generator, Prompt, TextStream
    from .generation.chat import Message
    from .generation.encoder_decoder import Seq2Seq

Inputs = Mapping[str, np.ndarray]


class Runtime:
    """One variant of a bundle in an ONNX Runtime session, and the adapter in use.

    Made by :func:`open`. ``use`` swaps adapters between runs; it is safe to call from another thread: a run that has
    begun finishes with the adapter it began with.
    """

    def __init__(self, bundle: Bundle, variant: str | None, threads: int | None) -> None:
        import onnxruntime as ort

        self.bundle = bundle
        self.variant, entry = bundle.variant(variant)
        if threads is None:
            # A bundle made for a target knows how many threads it has there.
            threads = bundle.manifest.provenance.get("target", {}).get("threads")
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, found {threads}")
        adapter_files = [a.onnx_adapter for a in bundle.manifest.adapters.values()]
        bundle.verify((*bundle.variant_files(self.variant), *adapter_files))
        for name, adapter in bundle.manifest.adapters.items():
            check_tensors(bundle, name, adapter, read_tensors(bundle, name, adapter))
        options = ort.SessionOptions()
        # ONNX Runtime warns once a slot that an initializer is a graph input, which is what a slot is.
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(
                str(bundle.file(entry.file)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(f"ONNX Runtime cannot open {bundle.file(entry.file)}: {error}") from error
        self.threads = threads
        self._slots = {value.name for value in self.session.get_overridable_initializers()}
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._base = ActiveAdapter(name="", scale=1.0, labels=bundle.manifest.labels, options=ort.RunOptions())
        self._active = self._base
        self._loaded: dict[str, ActiveAdapter] = {}
        self._tensors: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the bundle."""
        return tuple(self.manifest.adapters)

    @property
    def active(self) -> str | None:
        """The adapter in use (``a=0.7, b=0.3`` for a blend), ``None`` for the base."""
        return self._active.name or None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Labels of the adapter in use, or of the base."""
        return self._active.labels

    def use(self, adapter: str | Mapping[str, float] | None, *, scale: float = 1.0, head: str | None = None) -> Runtime:
        """Swap to an adapter, to a blend ``{"a": 0.7, "b": 0.3}``, or back to the base with ``None``; returns ``self``.

        ``scale`` multiplies the low-rank part. A blend is the exact weighted sum of its adapters' changes; where they
        replace a parameter differently (a classification head), ``head`` names the adapter whose is taken. Raises
        :class:`UnknownAdapterError` (listing those there are) and, for an adapter that is not linear in a scale or a weight,
        :class:`InputError`; the adapter in use then stays.
        """
        if isinstance(adapter, Mapping):
            return self._use_blend(adapter, scale, head)
        if head is not None:
            raise InputError(f"head={head!r} is for blends; {adapter!r} has its own")
        merged = self.manifest.merged
        if merged is not None and adapter not in (None, merged):
            raise UnknownAdapterError(f"{self.bundle.path} is merged with {merged!r}; it has no adapter {adapter!r}")
        if merged is not None and scale != 1.0:
            raise InputError(f"{self.bundle.path} is merged with {merged!r}, whose scale is fixed")
        with self._lock:
            if adapter is None or merged is not None:
                active = self._base
            elif scale != 1.0:
                active = scaled_adapter(self.bundle, adapter, scale)
            else:
                cached = self._loaded.get(adapter)
                active = cached or self._loaded.setdefault(adapter, load_adapter(self.bundle, adapter))
            self._active = active
        return self

    def _use_blend(self, weights: Mapping[str, float], scale: float, head: str | None) -> Runtime:
        import onnxruntime as ort

        from .blend import blend, describe

        if self.manifest.merged is not None:
            raise InputError(f"{self.bundle.path} is merged with {self.manifest.merged!r}; it has no adapters to blend")
        summed = blend(self.bundle, weights, scale=scale, head=head)
        feeds = as_values(summed.tensors)
        active = ActiveAdapter(
            name=describe(weights),
            scale=scale,
            labels=summed.labels,
            options=ort.RunOptions(),
            feeds=feeds,
            identity=("blend", *weights.items(), scale, head),
        )
        with self._lock:
            self._active = active
        return self

    @property
    def labels_are_untrained(self) -> bool:
        """Whether the classification head in use is the zero one that stands in for what the checkpoint lacks."""
        manifest = self.manifest
        classifies = manifest.task.endswith("-classification") and not manifest.task.startswith("zero-shot")
        return classifies and self.active is None and manifest.mode == "swap" and bool(manifest.base.fresh)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The bundle's tokenizer."""
        return TextEncoder(self.bundle)

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        """Padded int64 arrays ``[batch, sequence]`` by input name; pairs of texts are encoded as pairs."""
        return self.encoder.encode(texts)

    def truncated(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[int]:
        """Positions of the texts that have more tokens than the base takes; :meth:`encode` cuts them."""
        return self.encoder.truncated(texts)

    def forward(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Run arrays through the base with the adapter in use; raw outputs by name."""
        return self._forward(inputs, self._active)  # held for the whole run: it keeps the adapter's memory alive

    def _forward(self, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        known = {value.name for value in self.manifest.inputs}
        required = {value.name for value in self.manifest.inputs if not value.optional}
        if not required <= set(inputs) <= known:
            raise InputError(f"inputs are {sorted(inputs)}, the base takes exactly {sorted(required)}")
        _check_arrays(inputs, self.manifest)
        try:
            if active.prefix:
                from .prefix import after_prefix

                limit = self.manifest.max_length
                return after_prefix(lambda row: self._run(row, active), inputs, active.prefix, limit)
            return self._run(inputs, active)
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's exception types are not public
            shapes = {name: array.shape for name, array in inputs.items()}
            raise InputError(
                f"ONNX Runtime cannot run inputs of shape {shapes} (this base takes token ids below its vocabulary size and "
                f"at most {self.manifest.max_length} tokens): {error}"
            ) from error

    def forward_mixed(self, inputs: Inputs, adapters: Sequence[str | None]) -> dict[str, np.ndarray]:
        """Run arrays with an adapter of its own for each row (``None``: the base); raw outputs by name.

        The adapter in use is not changed. Raises :class:`InputError` for adapters that cannot share a batch, see
        :func:`edgepeft.runtime.mixed.mixed_tensors`.
        """
        rows = {array.shape[0] for array in inputs.values()}
        if rows != {len(adapters)}:
            raise InputError(f"{len(adapters)} adapters for inputs with {sorted(rows)} rows; give one for each row")
        return self._forward(inputs, self.mixed(adapters))

    def mixed(self, adapters: Sequence[str | None]) -> ActiveAdapter:
        """An adapter of its own for each row of a batch, as one; the adapter in use is not changed."""
        import onnxruntime as ort

        from .mixed import mixed_tensors

        feeds = as_values(mixed_tensors(self.bundle, adapters))
        return ActiveAdapter(
            name="", scale=1.0, labels=None, options=ort.RunOptions(), feeds=feeds, identity=("mixed", *adapters)
        )

    def _run(self, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        parted = self.manifest.variants[self.variant].decoder_file is not None
        if active.feeds or parted:
            import onnxruntime as ort

            values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
            feeds = active.feeds
            if parted:  # the other graph's slots are unknown to this one, which RunOptions would refuse
                feeds = {name: value for name, value in self.slot_values(active).items() if name in self._slots}
            options = None if parted else active.options
            found = self.session.run_with_ort_values(self._outputs, {**values, **feeds}, options)
            return {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}
        found = self.session.run(self._outputs, dict(inputs), active.options)
        return dict(zip(self._outputs, found, strict=True))

    @cached_property
    def seq2seq(self) -> Seq2Seq:
        """The decoder of an encoder-decoder; :class:`InputError` for a bundle without one."""
        from .generation.encoder_decoder import Seq2Seq

        return Seq2Seq(self)

    def run_arrays(self, inputs: Inputs, active: ActiveAdapter) -> dict[str, np.ndarray]:
        """:meth:`forward` with an adapter that was taken by :meth:`snapshot`."""
        return self._forward(inputs, active)

    def generate_ids(self, inputs: Inputs, *, max_new_tokens: int = 64) -> list[list[int]]:
        """What an encoder-decoder writes for each row of token arrays, greedily, with the adapter in use."""
        return self.seq2seq.greedy(inputs, max_new_tokens, self._active)

    @cached_property
    def generator(self) -> Generator:
        """What generation needs of this bundle; :class:`InputError` for one whose task does not write."""
        from .generation import generator_for

        return generator_for(self)

    def snapshot(self) -> ActiveAdapter:
        """The adapter in use, to be held as long as something runs with it."""
        return self._active

    def slot_values(self, active: ActiveAdapter) -> Mapping[str, Any]:
        """An adapter's slot tensors as OrtValues by name, for runs that take them as inputs; none for the base."""
        if active.handle is None:
            return active.feeds
        with self._lock:
            if active.name not in self._tensors:
                entry = self.bundle.adapter(active.name)
                tensors = read_tensors(self.bundle, active.name, entry)
                self._tensors[active.name] = as_values(packed(tensors, self.manifest.slots.tensors()))
            return self._tensors[active.name]

    @overload
    def generate(  # type: ignore[overload-overlap] # a text is a sequence of texts to mypy
        self,
        prompt: str | Sequence[Message],
        *,
        adapters: None = None,
        batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, adapters: Sequence[str | None] | None = None, batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...  # fmt: skip

    def generate(
        self, prompt: Any, *, adapters: Sequence[str | None] | None = None, batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:  # fmt: skip
        """Generate with the adapter in use: from a text, from messages, or from each of a list of either.

        A text goes through the bundle's chat template where it has one, unless ``chat=False``; ``system`` is put before it.
        Other options: ``max_new_tokens`` (256, or what the context leaves), ``stop`` strings, ``temperature`` (0: greedy),
        ``top_k``, ``top_p``, ``repetition_penalty``, ``seed``; what is not given comes from ``generation_config.json``. Lists
        run in batches of ``batch_size``, and ``adapters`` may name one for each prompt (``None``: the base). Raises
        :class:`InputError` for what the model or the options cannot do.
        """
        from .generation.generator import generate

        return generate(self, prompt, adapters, batch_size, options)

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """:meth:`generate` from one prompt, as pieces of text while they come; options are the same."""
        from .generation import Options, TextStream

        active = self._active
        return TextStream(self.generator.run([prompt], Options(**options), active, [active.name or None]))

    def conversation(self, system: str | None = None) -> Conversation:
        """A conversation that keeps its keys and values from turn to turn; ``system`` is its system message."""
        from .generation import Conversation

        if not self.generator.continues:
            raise InputError(f"{self.bundle.path} is an encoder-decoder: it has no conversation to go on with")
        return Conversation(self.generator, system)

    def logits(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, batch_size: int = 32) -> np.ndarray:
        """Logits ``[rows, labels]`` for texts of a classification base."""
        if self.manifest.task != "text-classification":
            raise InputError(f"this bundle's task is {self.manifest.task}; use encode and forward")
        batches = [
            self.forward(self.encode(texts[start : start + batch_size]))["logits"]
            for start in range(0, len(texts), batch_size)
        ]
        if not batches:
            raise InputError("no texts were given")
        return np.concatenate(batches)

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, batch_size: int = 32) -> list[Prediction]:
        """The best label of each text, with the adapter in use and its own labels."""
        logits = self.logits(texts, batch_size=batch_size)
        labels = self.labels or tuple(f"LABEL_{i}" for i in range(logits.shape[-1]))
        return [prediction(row, labels) for row in logits]

    def run(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Each text's result in the shape of the bundle's task, ready for JSON.

        Classification gives ``label``, ``score`` and ``probabilities``; token classification ``tokens`` with a label
        each; fill-mask the five best ``fills``; feature extraction the mean-pooled ``embedding``.
        """
        from .tasks import results

        return results(self, texts)


def _check_arrays(inputs: Inputs, manifest: Manifest) -> None:
    """Arrays that ONNX Runtime would fail on deep inside the graph, or read past a table with."""
    sizes: dict[str, tuple[int, str]] = {}
    for value in manifest.inputs:
        array = inputs.get(value.name)
        if array is None:
            continue
        dtype = "float32" if value.dtype == "float" else value.dtype
        fits = array.dtype.name == dtype and array.ndim == len(value.shape)
        if fits:
            pairs = list(zip(value.shape, array.shape, strict=True))
            fits = all(want == found for want, found in pairs if isinstance(want, int))
            # A cache of no tokens is how every prompt begins.
            fits &= all(found > 0 or str(want).startswith("past_") for want, found in pairs)
        if not fits:
            raise InputError(
                f"input {value.name} is {array.dtype.name} of shape {array.shape}, the base takes {dtype} of shape "
                f"[{', '.join(map(str, value.shape))}] with at least one row and one token"
            )
        for want, found in pairs:
            if isinstance(want, str):
                size, first = sizes.setdefault(want, (found, value.name))
                if size != found:
                    raise InputError(f"inputs differ in shape: {want} is {size} in {first} and {found} in {value.name}")


@rereading
def open(path: str | Path, *, variant: str | None = None, threads: int | None = None) -> Runtime:
    """Open a bundle for inference.

    ``variant`` is ``fp32`` by default; ``threads`` sets ONNX Runtime's intra-op threads. The manifest, the variant's
    files and every adapter are checked first: :class:`BundleError`, :class:`CorruptBundleError` or
    :class:`AdapterMismatchError` say what does not fit.
    """
    return Runtime(read_bundle(path), variant, threads)
