"""The base's parameters, read from a bundle: what an adapter is lowered against where no checkpoint of the base is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bundle import Bundle, variant_graphs
from ..errors import NeedsPeftError
from .bundle_graph import load_graph


class BundleWeights:
    """The base's parameters as a bundle holds them: sites with a slot, and parameters that can be replaced."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._graph: Any = None
        self._sites = {part.site: (slot, part) for slot in bundle.manifest.slots.linear for part in slot.parts}

    @property
    def complete(self) -> bool:
        """False: a parameter that is not here may still be in the base."""
        return False

    def _initializer(self, name: str) -> np.ndarray:
        if self._graph is None:
            if "fp32" not in self._bundle.manifest.variants:
                raise NeedsPeftError(
                    f"{self._bundle.path} has no fp32 variant, from which this adapter's lowering needs weights."
                )
            self._graph = {
                name: value
                for file in variant_graphs(self._bundle.manifest, "fp32")
                for name, value in load_graph(self._bundle, file).graph.initializers.items()
            }
        array: np.ndarray = self._graph[name].const_value.numpy()
        return array

    def __call__(self, parameter: str, /) -> np.ndarray | None:
        """The parameter in PyTorch's layout, or ``None`` where the bundle has no slot for it."""
        slots = self._bundle.manifest.slots
        override = slots.override(parameter)
        if override is not None:
            array = self._initializer(override.tensor)
            match override.layout:
                case "as_is":
                    return array
                case "matmul":
                    return array[0].T
                case "row":
                    return array.reshape(-1)
        site = parameter.removesuffix(".weight") if parameter.endswith(".weight") else ""
        for single in slots.singles:
            if single.name == site:
                return self._initializer(single.weight)
        shape = self._linear_shape(parameter)
        if shape is None:
            return None
        weight = np.empty(shape, np.float32)
        for slot, part in slots.site(site):
            array = self._initializer(slot.weight)
            oriented = array if slot.transposed else array.T
            weight[part.outputs] = oriented[part.offset : part.offset + part.size]
        return weight

    def shape(self, parameter: str, /) -> tuple[int, ...] | None:
        """The parameter's shape: from the manifest alone where it is a linear weight with a slot."""
        shape = self._linear_shape(parameter)
        if shape is not None:
            return shape
        array = self(parameter)
        return None if array is None else tuple(array.shape)

    def tied_head(self, embedding: str, /) -> str | None:
        """The site with a slot that holds the embedding's numbers.

        Raises:
            NeedsPeftError: The base writes texts and says that its head is tied, and the bundle has no slot at a head.
        """
        shape = self.shape(embedding)
        table = self(embedding) if shape is not None else None
        for site, (slot, part) in self._sites.items():
            if table is None or (part.features, slot.in_features) != shape:
                continue
            weight = self(f"{site}.weight")
            if weight is not None and np.array_equal(weight, table):
                return f"{site}.weight"
        if self._bundle.manifest.decodes and self._bundle.read_json("config.json").get("tie_word_embeddings", True):
            raise NeedsPeftError(
                f"{self._bundle.path} has no slot at the head that is tied to {embedding}: an adapter with trained tokens changes "
                "both. Export the base again with this adapter."
            )
        return None

    def _linear_shape(self, parameter: str) -> tuple[int, int] | None:
        """``(out, in)`` of a linear weight with a slot; ``None`` where there is none."""
        served = self._sites.get(parameter.removesuffix(".weight")) if parameter.endswith(".weight") else None
        return None if served is None else (served[1].features, served[0].in_features)
