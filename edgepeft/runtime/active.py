"""An adapter that is ready to run, and everything ONNX Runtime must not see freed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import NO_TEXT, AdapterEntry, Bundle, Head, OwnEmbedding, OwnText, head_of
from ..bundle.adapter_forms import expanded, rank_axes, wrong_type
from ..bundle.cache_names import PAST
from ..errors import AdapterMismatchError, CorruptBundleError, InputError
from .buffers import as_values

#: ONNX Runtime's name of what slots take.
_FLOAT = "tensor(float)"


@dataclass(frozen=True)
class ActiveAdapter:
    """What a run needs for an adapter, a blend or a batch in which each row has its own. Nothing changes it; threads share it.

    ``options`` refers to ``handle`` without keeping it alive (a use-after-free in ONNX Runtime's Python binding as of
    1.32), so both live here and a run holds this object. ``feeds`` are slot tensors given by value, for scales.
    """

    name: str
    scale: float
    labels: tuple[str, ...] | None
    options: Any = None
    #: What its head's outputs mean.
    head: Head = field(default_factory=Head)
    #: The same for each row, where rows have adapters of their own.
    row_heads: tuple[Head, ...] | None = None
    #: The labels of each row, where rows have adapters of their own.
    row_labels: tuple[tuple[str, ...] | None, ...] | None = None
    #: The adapter of each row, where rows have adapters of their own.
    row_names: tuple[str | None, ...] | None = None
    handle: Any = None
    feeds: Mapping[str, Any] = field(default_factory=dict)
    #: Whose tokenizer, template and end tokens count.
    text: OwnText = NO_TEXT
    #: The same for each row, where rows have adapters of their own.
    row_texts: tuple[OwnText, ...] | None = None
    #: How texts are embedded with it; ``None``: by the mean over their tokens.
    embedding: OwnEmbedding | None = None
    #: The same for each row, where rows have adapters of their own.
    row_embeddings: tuple[OwnEmbedding | None, ...] | None = None
    #: The slot tensors behind ``handle`` as OrtValues, for runs with IO binding; ``None`` where only ``options`` run it.
    values: Mapping[str, Any] | None = None
    #: What edgepeft's kernels read of it, in one piece that batches join with others'; ``values`` hold it too.
    piece: np.ndarray | None = field(default=None, compare=False)
    #: Whether ``values`` or ``feeds`` are what the kernels take already.
    formed: bool = False
    #: What else equals this adapter: keys and values computed with an adapter of the same identity may be reused.
    identity: tuple[Any, ...] = ()
    #: Keys and values that stand before every sequence, ``[1, heads, length, head_dim]`` by cache input.
    prefix: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: What runs with kernels are fed for it, made at the first one: by how many graphs' kernels there were.
    for_kernels: dict[int, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    @property
    def prefix_length(self) -> int:
        """How many places of the context stand before the first token."""
        return next((int(array.shape[2]) for array in self.prefix.values()), 0)

    def name_of(self, row: int) -> str | None:
        """The adapter of one row of a batch; ``None`` for the base."""
        return self.name or None if self.row_names is None else self.row_names[row]

    def text_of(self, row: int) -> OwnText:
        """Whose tokenizer and template count for one row of a batch."""
        return self.text if self.row_texts is None else self.row_texts[row]

    def embedding_of(self, row: int) -> OwnEmbedding | None:
        """How the text of one row of a batch is embedded."""
        return self.embedding if self.row_embeddings is None else self.row_embeddings[row]

    def labels_of(self, row: int) -> tuple[str, ...] | None:
        """The labels of one row of a batch."""
        return self.labels if self.row_labels is None else self.row_labels[row]

    def head_of(self, row: int) -> Head:
        """What the outputs of one row of a batch mean."""
        return self.head if self.row_heads is None else self.row_heads[row]

    def logits_of(self, row: int, logits: np.ndarray) -> np.ndarray:
        """A row's logits ``[..., labels]`` without what pads them where other rows of the batch have wider heads."""
        labels = None if self.row_labels is None else self.row_labels[row]
        return logits if labels is None else logits[..., : len(labels)]


def load_adapter(
    bundle: Bundle, name: str, tensors: Callable[[], Mapping[str, np.ndarray]] | None = None
) -> ActiveAdapter:
    """Verify an adapter file, map it into memory and make it ready to run.

    One in another form than float32 is expanded instead; ``tensors`` gives its tensors where they are in memory already.
    """
    import onnxruntime as ort

    entry = bundle.adapter(name)
    if entry.prefix_length or entry.form != "fp32":
        return _by_value(bundle, name, read_tensors(bundle, name, entry) if tensors is None else tensors())
    handle = ort.LoraAdapter()
    options = ort.RunOptions()
    # What the bundle was opened with, whatever was added under that name since. The map outlives the open file.
    with bundle.open(entry.onnx_adapter) as file, readable(bundle.file(entry.onnx_adapter), name):
        handle.Load(file.load_path)
        options.add_active_adapter(handle)
        form = ort.AdapterFormat.read_adapter(file.load_path)
        found = {tensor: (tuple(v.shape()), v.data_type()) for tensor, v in form.get_parameters().items()}
    bundle.files.known.save()
    check_shapes(bundle, name, entry, found)
    head = head_of(bundle.manifest, name)
    return ActiveAdapter(
        name=name,
        scale=1.0,
        labels=head.labels,
        head=head,
        text=bundle.text_of(name),
        embedding=bundle.embedding_of(name),
        options=options,
        handle=handle,
        identity=(name, 1.0, content_of(bundle, name)),
    )


def content_of(bundle: Bundle, name: str) -> str:
    """What tells an adapter from another one that takes its name later: the hash of its file."""
    return bundle.manifest.files[bundle.adapter(name).onnx_adapter].sha256


@contextmanager
def readable(path: Path, name: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises over an adapter's file into :class:`CorruptBundleError`; its types are not public."""
    try:
        yield
    except Exception as error:  # ONNX Runtime raises types of its own, which are not public
        raise CorruptBundleError(
            f"{path} is not an adapter that ONNX Runtime can load: {str(error)[:300]}. Copy the bundle again, or add {name!r} "
            "again from its checkpoint."
        ) from error


def _by_value(bundle: Bundle, name: str, tensors: Mapping[str, np.ndarray]) -> ActiveAdapter:
    """An adapter that is not run through ``RunOptions``.

    One that a sequence begins with has tensors that are no inputs of the graph, one in float16 or 8 bits others than slots take.
    """
    types = {value.name: value.dtype for value in bundle.manifest.inputs}
    pasts = {tensor: PAST + tensor.removeprefix("prefix.") for tensor in bundle.manifest.prefix_tensors()}
    head = head_of(bundle.manifest, name)
    return ActiveAdapter(
        name=name,
        scale=1.0,
        labels=head.labels,
        head=head,
        text=bundle.text_of(name),
        embedding=bundle.embedding_of(name),
        feeds=as_values({n: array for n, array in tensors.items() if n not in pasts}),
        identity=(name, 1.0, content_of(bundle, name)),
        prefix={past: tensors[tensor].astype(types[past]) for tensor, past in pasts.items() if tensor in tensors},
    )


def check_linear(name: str, entry: AdapterEntry, what: str) -> None:
    """Raise :class:`InputError` for an adapter that cannot be ``what`` (scaled, blended), with the reason."""
    if entry.prefix_length:
        raise InputError(
            f"adapter {name!r} ({entry.method}) cannot be {what}: it puts {entry.prefix_length} states before the sequence, and "
            "what attention makes of them is not linear in a weight. Use it alone, as it is."
        )
    if not entry.scalable:
        raise InputError(
            f"adapter {name!r} ({entry.method}) cannot be {what}: it multiplies outputs or inputs by gains, and gains are not "
            "linear in a weight. Use it alone, as it is (scale=1), or train it without them (plain LoRA for DoRA)."
        )


def scaled_adapter(bundle: Bundle, name: str, tensors: Mapping[str, np.ndarray], scale: float) -> ActiveAdapter:
    """The adapter that holds ``tensors``, its low-rank part multiplied by ``scale``; heads and biases are used as they are.

    Raises :class:`InputError` for an adapter that is not linear in a scale (DoRA, IA3).
    """
    entry = bundle.adapter(name)
    check_linear(name, entry, "scaled")
    if not np.isfinite(scale):
        raise InputError(f"scale must be a finite number, found {scale}")
    factors = {slot.b for slot in bundle.manifest.slots.factored}
    feeds = as_values({n: array * np.float32(scale) if n in factors else array for n, array in tensors.items()})
    head = head_of(bundle.manifest, name)
    return ActiveAdapter(
        name=name,
        scale=scale,
        labels=head.labels,
        head=head,
        text=bundle.text_of(name),
        embedding=bundle.embedding_of(name),
        feeds=feeds,
        identity=(name, scale, content_of(bundle, name)),
    )


def read_tensors(bundle: Bundle, name: str, entry: AdapterEntry) -> dict[str, np.ndarray]:
    """The adapter's tensors by slot name, copied out of its file, in float32."""
    import onnxruntime as ort

    with bundle.open(entry.onnx_adapter) as file, readable(bundle.file(entry.onnx_adapter), name):
        form = ort.AdapterFormat.read_adapter(file.load_path)
        held = {tensor: value.numpy().copy() for tensor, value in form.get_parameters().items()}
    bundle.files.known.save()
    try:
        tensors = expanded(held)
    except ValueError as error:
        raise AdapterMismatchError(f"{bundle.file(entry.onnx_adapter)}: adapter {name!r}: {error}") from error
    check_shapes(bundle, name, entry, {tensor: (array.shape, _FLOAT) for tensor, array in tensors.items()})
    wrong = wrong_type(held, entry.form, rank_axes(bundle.manifest.slots))
    if wrong is not None:
        raise AdapterMismatchError(_wrong(name, wrong, str(held[wrong].dtype), entry))
    return tensors


def _wrong(name: str, tensor: str, kind: str, entry: AdapterEntry) -> str:
    taken = "slots take float32" if entry.form == "fp32" else f"the manifest says that it is stored in {entry.form}"
    return f"adapter {name!r}: {tensor} is {kind}, {taken}"


def check_shapes(
    bundle: Bundle, name: str, entry: AdapterEntry, tensors: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """Refuse a file that does not hold exactly what the manifest says: ONNX Runtime would run it and say nothing.

    ``tensors`` are shapes and ONNX Runtime's names of types (``tensor(float)``).
    """
    expected = {tensor: tuple(shape) for tensor, shape in entry.tensors.items()}
    found = {tensor: shape for tensor, (shape, _) in tensors.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise AdapterMismatchError(
            f"{bundle.file(entry.onnx_adapter)}: adapter {name!r} should hold {odd} with shape {expected.get(odd)}, "
            f"the file has {found.get(odd)}"
        )
    wrong = next((tensor for tensor, (_, kind) in tensors.items() if kind != _FLOAT), None)
    if wrong is not None:
        raise AdapterMismatchError(_wrong(name, wrong, tensors[wrong][1], entry))
