"""The slots of a base as its manifest lists them: what each is called, where it stands and which shapes it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from ..json_text import json_text

#: Bound of every dimension, offset and rank: what 32-bit shapes hold.
LIMIT = 2**31
#: A name in a graph, or a module's path.
Name = Annotated[str, Field(min_length=1, max_length=1024, strict=True)]
#: How many of something: at least 1.
Size = Annotated[int, Field(gt=0, lt=LIMIT, strict=True)]
#: A place or a number of things, which may be 0.
Count = Annotated[int, Field(ge=0, lt=LIMIT, strict=True)]
#: Most dimensions of a tensor.
MAX_DIMENSIONS = 8
#: A fixed dimension, or the name of a symbolic one.
Dim = Count | Name


def shape_fits(found: tuple[int, ...], expected: tuple[Dim, ...]) -> bool:
    """Whether ``found`` has ``expected``'s rank and fixed dimensions; symbolic ones take any size."""
    return len(found) == len(expected) and all(
        isinstance(e, str) or e == f for f, e in zip(found, expected, strict=True)
    )


class Schema(BaseModel):
    """A part of the manifest: frozen, and without keys that this version does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SlotPart(Schema):
    """One site's share of a slot: columns ``offset … offset + size`` of the slot's output.

    ``of`` is set where these are only some of the site's ``of`` outputs: those from ``start`` in steps of ``step`` (heads
    that stand in another order, a gate and its up projection in matrices of their own). All three are left out where the
    whole site is here.
    """

    site: Name
    offset: Count
    size: Size
    start: Count = 0
    step: Size = 1
    of: Size | None = None

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


class LinearSlot(Schema):
    """Graph inputs through which ``LowRank`` (and, where present, gain) edits reach one linear map.

    ``a`` is ``[adapter_batch, in_features, rank]``, ``b`` is ``[adapter_batch, rank, out_features]``; ``out_gain`` is
    ``[adapter_batch, 1, out_features]`` and ``in_gain`` ``[adapter_batch, 1, in_features]``. A packed matrix (fused
    q/k/v) has one slot with several parts. ``weight`` names the initializer of the fp32 graph that holds the base's
    numbers, as ``[in, out]`` or, where ``transposed``, as ``[out, in]``; in a bundle made from a quantized file, of the
    bytes that hold them in blocks.
    """

    name: Name
    in_features: Size
    out_features: Size
    parts: tuple[SlotPart, ...] = Field(min_length=1)
    a: Name
    b: Name
    rank: Name
    out_gain: Name | None = None
    in_gain: Name | None = None
    weight: Name
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


class ConvSlot(Schema):
    """Graph inputs through which ``LowRank`` (and, where present, gain) edits reach one convolution.

    ``a`` is ``[rank, in_channels, *kernel]``, a convolution with the site's own strides and padding; ``b`` is
    ``[out_channels, rank, 1, …]``, one of single points; ``out_gain`` is ``[1, out_channels, 1, …]``. The weight of a
    convolution has no axis for the batch, so rows cannot differ. ``groups`` are those of the base's own weight.
    """

    name: Name
    in_channels: Size
    out_channels: Size
    kernel: tuple[Size, ...] = Field(max_length=3)
    groups: Size = 1
    a: Name
    b: Name
    rank: Name
    out_gain: Name | None = None
    weight: Name
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


class EmbeddingSlot(Schema):
    """Graph inputs through which ``LowRank`` edits reach an embedding ``[rows, width]``.

    ``a`` is ``[rows, rank]``, looked up with the same ids; ``b`` is ``[rank, width]``. The look-up has no axis for the
    batch, so rows of a batch cannot differ.
    """

    name: Name
    rows: Size
    width: Size
    a: Name
    b: Name
    rank: Name
    weight: Name
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


class OverrideSlot(Schema):
    """A graph input that replaces one parameter of the base.

    ``layout`` says how the parameter's tensor is laid out in the slot: ``as_is`` keeps its shape, ``matmul`` is a
    linear weight ``[out, in]`` written ``[adapter_batch, in, out]``, ``row`` is a vector ``[n]`` written
    ``[adapter_batch, 1, n]``.
    """

    parameter: Name
    tensor: Name
    shape: tuple[Dim, ...] = Field(max_length=MAX_DIMENSIONS)
    layout: Literal["as_is", "matmul", "row"]
    per_row: bool

    def tensors(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        """Name and shape of the slot tensor; strings are symbolic dimensions."""
        yield self.tensor, self.shape


class SlotTable(Schema):
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
        return hashlib.sha256(json_text(signature, indent=None, sort_keys=True).encode()).hexdigest()
