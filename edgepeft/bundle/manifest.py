"""``edgepeft.json``: the schema that binds a base, its variants, its slots and its adapters.

The models below are the documentation of the format; :func:`json_schema` prints it as JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ..errors import ManifestError

SCHEMA_VERSION = 1
MANIFEST_NAME = "edgepeft.json"

#: Adapter and variant names become file names and tensor prefixes on every platform.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Dim = int | str

_CACHE = re.compile(r"past_key_values\.(\d+\.(?:key|value))")


def shape_fits(found: tuple[int, ...], expected: tuple[Dim, ...]) -> bool:
    """Whether ``found`` has ``expected``'s rank and fixed dimensions; symbolic ones take any size."""
    return len(found) == len(expected) and all(
        isinstance(e, str) or e == f for f, e in zip(found, expected, strict=True)
    )


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_relative(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or not path:
        raise ValueError(f"{path!r} leaves the bundle folder; only relative paths inside it are allowed")
    return path


class FileEntry(_Model):
    """One file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class SlotPart(_Model):
    """One site's share of a slot: columns ``offset … offset + size`` of the slot's output.

    ``of`` is set where these are only some of the site's ``of`` outputs: those from ``start`` in steps of ``step`` (heads
    that stand in another order, a gate and its up projection in matrices of their own). All three are left out where the
    whole site is here.
    """

    site: str
    offset: int = Field(ge=0)
    size: int = Field(gt=0)
    start: int = Field(default=0, ge=0)
    step: int = Field(default=1, gt=0)
    of: int | None = Field(default=None, gt=0)

    @property
    def outputs(self) -> slice:
        """Which of the site's outputs stand here."""
        return slice(self.start, self.start + self.size * self.step, self.step)

    @property
    def features(self) -> int:
        """How many outputs the site has."""
        return self.size if self.of is None else self.of

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        whole = {"start": 0, "step": 1, "of": None}
        return {key: value for key, value in dumped.items() if key not in whole or self.of is not None}


class LinearSlot(_Model):
    """Graph inputs through which ``LowRank`` (and, where present, gain) edits reach one linear map.

    ``a`` is ``[adapter_batch, in_features, rank]``, ``b`` is ``[adapter_batch, rank, out_features]``; ``out_gain`` is
    ``[adapter_batch, 1, out_features]`` and ``in_gain`` ``[adapter_batch, 1, in_features]``. A packed matrix (fused
    q/k/v) has one slot with several parts. ``weight`` names the initializer of the fp32 graph that holds the base's
    numbers, as ``[in, out]`` or, where ``transposed``, as ``[out, in]``; in a bundle made from a quantized file, of the
    bytes that hold them in blocks.
    """

    name: str
    in_features: int = Field(gt=0)
    out_features: int = Field(gt=0)
    parts: tuple[SlotPart, ...] = Field(min_length=1)
    a: str
    b: str
    rank: str
    out_gain: str | None = None
    in_gain: str | None = None
    weight: str
    transposed: bool = False
    #: False where the activation has one row whatever the batch (DeBERTa projects its relative positions once).
    per_row: bool = True

    def tensors(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        """Name and shape of each slot tensor; strings are symbolic dimensions."""
        yield self.a, ("adapter_batch", self.in_features, self.rank)
        yield self.b, ("adapter_batch", self.rank, self.out_features)
        if self.out_gain is not None:
            yield self.out_gain, ("adapter_batch", 1, self.out_features)
        if self.in_gain is not None:
            yield self.in_gain, ("adapter_batch", 1, self.in_features)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it serves."""
        return tuple(dict.fromkeys(part.site for part in self.parts))

    @property
    def rank_axes(self) -> tuple[int, int]:
        """The axes of ``a`` and ``b`` that are the rank."""
        return 2, 1


class ConvSlot(_Model):
    """Graph inputs through which ``LowRank`` (and, where present, gain) edits reach one convolution.

    ``a`` is ``[rank, in_channels, *kernel]``, a convolution with the site's own strides and padding; ``b`` is
    ``[out_channels, rank, 1, …]``, one of single points; ``out_gain`` is ``[1, out_channels, 1, …]``. The weight of a
    convolution has no axis for the batch, so rows cannot differ. ``groups`` are those of the base's own weight.
    """

    name: str
    in_channels: int = Field(gt=0)
    out_channels: int = Field(gt=0)
    kernel: tuple[int, ...]
    groups: int = Field(default=1, gt=0)
    a: str
    b: str
    rank: str
    out_gain: str | None = None
    weight: str
    per_row: Literal[False] = False

    def tensors(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        """Name and shape of each slot tensor; strings are symbolic dimensions."""
        points = (1,) * len(self.kernel)
        yield self.a, (self.rank, self.in_channels, *self.kernel)
        yield self.b, (self.out_channels, self.rank, *points)
        if self.out_gain is not None:
            yield self.out_gain, (1, self.out_channels, *points)

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site it serves."""
        return (self.name,)

    @property
    def rank_axes(self) -> tuple[int, int]:
        """The axes of ``a`` and ``b`` that are the rank."""
        return 0, 1


class EmbeddingSlot(_Model):
    """Graph inputs through which ``LowRank`` edits reach an embedding ``[rows, width]``.

    ``a`` is ``[rows, rank]``, looked up with the same ids; ``b`` is ``[rank, width]``. The look-up has no axis for the
    batch, so rows of a batch cannot differ.
    """

    name: str
    rows: int = Field(gt=0)
    width: int = Field(gt=0)
    a: str
    b: str
    rank: str
    weight: str
    per_row: Literal[False] = False

    def tensors(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        """Name and shape of each slot tensor; strings are symbolic dimensions."""
        yield self.a, (self.rows, self.rank)
        yield self.b, (self.rank, self.width)

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site it serves."""
        return (self.name,)

    @property
    def rank_axes(self) -> tuple[int, int]:
        """The axes of ``a`` and ``b`` that are the rank."""
        return 1, 0


FactoredSlot = LinearSlot | ConvSlot | EmbeddingSlot


class OverrideSlot(_Model):
    """A graph input that replaces one parameter of the base.

    ``layout`` says how the parameter's tensor is laid out in the slot: ``as_is`` keeps its shape, ``matmul`` is a
    linear weight ``[out, in]`` written ``[adapter_batch, in, out]``, ``row`` is a vector ``[n]`` written
    ``[adapter_batch, 1, n]``.
    """

    parameter: str
    tensor: str
    shape: tuple[Dim, ...]
    layout: Literal["as_is", "matmul", "row"]
    per_row: bool

    def tensors(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        """Name and shape of the slot tensor; strings are symbolic dimensions."""
        yield self.tensor, self.shape


class SlotTable(_Model):
    """All slots of a base, in graph order."""

    linear: tuple[LinearSlot, ...] = ()
    overrides: tuple[OverrideSlot, ...] = ()
    convolutions: tuple[ConvSlot, ...] = ()
    embeddings: tuple[EmbeddingSlot, ...] = ()

    @property
    def factored(self) -> tuple[FactoredSlot, ...]:
        """Every slot that takes two factors."""
        return (*self.linear, *self.singles)

    @property
    def singles(self) -> tuple[ConvSlot | EmbeddingSlot, ...]:
        """Slots at one site each."""
        return (*self.convolutions, *self.embeddings)

    def tensors(self) -> dict[str, tuple[Dim, ...]]:
        """Every slot tensor by name, with its shape."""
        slots: tuple[FactoredSlot | OverrideSlot, ...] = (*self.factored, *self.overrides)
        return {name: shape for slot in slots for name, shape in slot.tensors()}

    def site(self, site: str) -> list[tuple[LinearSlot, SlotPart]]:
        """The slots that serve ``site`` and its part of each: one that holds it whole, or those that do so together."""
        found = [(slot, part) for slot in self.linear for part in slot.parts if part.site == site]
        return found if not found or found[0][1].of is not None else found[:1]

    def override(self, parameter: str) -> OverrideSlot | None:
        """The slot that replaces ``parameter``, if there is one."""
        return next((slot for slot in self.overrides if slot.parameter == parameter), None)

    @property
    def hash(self) -> str:
        """sha256 over what an adapter must fit: tensor names, shapes and the sites behind them."""
        signature = {
            "tensors": {name: list(shape) for name, shape in sorted(self.tensors().items())},
            "parts": {slot.name: [part.model_dump() for part in slot.parts] for slot in self.linear},
        }
        return hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()


class Variant(_Model):
    """One precision of the base."""

    file: str
    data: tuple[str, ...] = ()
    #: The same graph over the same weights with its slots as plain inputs, for runtimes that cannot override initializers.
    input_file: str | None = None
    #: Whether ``input_file`` unpacks 4-bit weights as constants, to be folded when a session is made (in ONNX Runtime with
    #: ``session.disable_quant_qdq``): for runtimes without kernels for them.
    input_unpacked: bool = False
    #: An encoder-decoder's second graph; ``file`` is its encoder.
    decoder_file: str | None = None
    #: The decoder's graph with its slots as plain inputs, beside ``input_file``.
    decoder_input_file: str | None = None
    slots: Literal["overridable", "input", "none"] = "overridable"
    recipe: str
    #: Share of the base's weight numbers that are stored in fewer bits than fp32, 0 … 1.
    quantized_share: float = Field(ge=0, le=1)

    @field_validator("file", "input_file", "decoder_file", "decoder_input_file")
    @classmethod
    def _relative(cls, path: str | None) -> str | None:
        return None if path is None else _check_relative(path)

    def files(self) -> tuple[str, ...]:
        """Every file of the variant: graphs and weights."""
        more = (self.input_file, self.decoder_file, self.decoder_input_file)
        return (self.file, *(file for file in more if file), *self.data)


class BaseEntry(_Model):
    """What the base is and where it came from."""

    source: str
    architecture: str
    model_type: str
    captured_by: str
    #: sha256 over the weights that the checkpoint holds, before quantization.
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    parameters: int = Field(gt=0)
    #: Parameters that the checkpoint does not hold; zero in the base, outside its identity.
    fresh: tuple[str, ...] = ()
    #: LoRA's ``layer_replication``: ranges ``[start, end)`` of the source's layers that stand behind each other in this
    #: base, each with weights of its own. Empty where the base is as deep as its source.
    layers: tuple[tuple[int, int], ...] = ()


class GraphInput(_Model):
    """A model input that is not a slot."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    #: Whether a run may leave it out: the graph holds a default.
    optional: bool = False


def prefix_tensors(inputs: Iterable[GraphInput]) -> dict[str, tuple[Dim, ...]]:
    """What an adapter that stands before the sequence holds, with shapes: one tensor for each cache input of the base."""
    return {
        f"prefix.{match[1]}": (1, value.shape[1], "prefix_length", value.shape[3])
        for value in inputs
        if (match := _CACHE.fullmatch(value.name)) is not None and len(value.shape) == 4
    }


class AdapterEntry(_Model):
    """One adapter and its contract with the base."""

    onnx_adapter: str
    onnx: str
    method: str
    source: str
    base_identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    slots_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: Exactly the tensors the file holds, with their shapes.
    tensors: dict[str, tuple[int, ...]]
    ranks: dict[str, int]
    labels: tuple[str, ...] | None = None
    #: False where the edits are not linear in a scale (gains, and a magnitude frozen at lowering).
    scalable: bool = True
    #: False where one of its slots cannot differ by row of a batch.
    per_row: bool = True
    #: How many places of the key/value cache its ``prefix.N.key/value`` tensors take before the sequence; 0 without any.
    prefix_length: int = Field(default=0, ge=0)
    #: For an adapter that was factored by SVD: the largest relative residual of a site. ``None``: a closed form, exact.
    residual: float | None = None
    bytes: int = Field(ge=0)

    _relative = field_validator("onnx_adapter", "onnx")(_check_relative)


class Manifest(_Model):
    """``edgepeft.json``."""

    schema_version: Literal[1] = 1
    task: str
    mode: Literal["swap", "merge", "bake"]
    base: BaseEntry
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    labels: tuple[str, ...] | None = None
    #: Longest input in tokens.
    max_length: int | None = None
    slots: SlotTable
    #: An ``.onnx_adapter`` file with the base's own numbers for slots that have some, to be fed to an ``input_file``.
    slot_defaults: str | None = None
    variants: dict[str, Variant]
    adapters: dict[str, AdapterEntry] = Field(default_factory=dict)
    #: The one adapter that is folded into the base (``merge``) or traced in unmerged (``bake``).
    merged: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        for path in self.files:
            _check_relative(path)
        for name in (*self.variants, *self.adapters):
            check_name(name)
        for variant in self.variants.values():
            for path in variant.files():
                if path not in self.files:
                    raise ValueError(f"variant file {path} is not listed under files")
        if self.slot_defaults is not None and self.slot_defaults not in self.files:
            raise ValueError(f"slot_defaults {self.slot_defaults} is not listed under files")
        for adapter in self.adapters.values():
            for path in (adapter.onnx_adapter, adapter.onnx):
                if path not in self.files:
                    raise ValueError(f"adapter file {path} is not listed under files")
        if not self.variants:
            raise ValueError("a bundle holds at least one variant")
        return self

    def prefix_tensors(self) -> dict[str, tuple[Dim, ...]]:
        """:func:`prefix_tensors` of this base."""
        return prefix_tensors(self.inputs)

    @property
    def slot_adapters(self) -> dict[str, AdapterEntry]:
        """The adapters that fill slots alone: what runs where no cache is started from states."""
        return {name: entry for name, entry in self.adapters.items() if not entry.prefix_length}

    @property
    def writes(self) -> bool:
        """Whether its task is to write texts: a causal language model or an encoder-decoder."""
        return self.task in {"text-generation", "text2text-generation"}

    def deployed(self, variant: str) -> tuple[str, ...]:
        """What one device gets that runs ``variant``: every file but those of other variants only."""
        mine = self.variants[variant]
        others = {path for v in self.variants.values() for path in v.files()} - set(mine.files())
        return tuple(path for path in self.files if path not in others)


def check_name(name: str) -> str:
    """``name`` if it can name an adapter or variant; else ``ValueError`` that says what a name may hold."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a name: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return name


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest in ``text``; raises :class:`ManifestError` that names ``where`` and each wrong key."""
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{where} is not JSON (line {error.lineno}: {error.msg}); export the bundle again"
        ) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{where} has schema_version {version!r}; this edgepeft reads version {SCHEMA_VERSION}. "
            "Export the bundle again, or install the edgepeft that wrote it."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()[:5])
        raise ManifestError(f"{where} does not fit the schema: {problems}") from error


def dump_manifest(manifest: Manifest) -> str:
    """``manifest`` as the text of ``edgepeft.json``."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``edgepeft.json``."""
    return Manifest.model_json_schema()
