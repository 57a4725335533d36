"""Names of a decoder's inputs, outputs and free dimensions, as Optimum, transformers.js and mobius give them."""

from __future__ import annotations

import re

import onnx_ir as ir

from ...errors import CaptureError
from .edit import EditPass
from .name_dimensions import DeclareShapes

_CACHE = re.compile(r"(?:layers|past_key_values|present)\.(\d+)\.(key|value)s?$")
_TOKENS: dict[str, tuple[str | None, ...]] = {
    "input_ids": ("batch_size", "sequence_length"),
    "position_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "total_sequence_length"),
    "logits": ("batch_size", "sequence_length", None),
}


class NameCausal(EditPass[ir.passes.PassResult]):
    """Calls caches ``past_key_values.N.key`` and ``present.N.key``, and names the free dimensions everywhere.

    Raises :class:`CaptureError` for an input or output that is neither tokens, logits nor a cache.
    """

    def requires(self, model: ir.Model) -> None:
        """Every input and output is known."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            name = value.name or ""
            if not (_CACHE.search(name) or name in model.graph.initializers or name in _TOKENS):
                raise CaptureError(f"the graph has {value.name!r}, which is neither a token input nor a cache")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name them."""
        symbols: dict[str, str] = {}
        for prefix, values, length in (
            ("past_key_values", model.graph.inputs, "past_sequence_length"),
            ("present", model.graph.outputs, "total_sequence_length"),
        ):
            for value in values:
                match = _CACHE.search(value.name or "")
                if match:
                    value.name = f"{prefix}.{match.group(1)}.{match.group(2)}"
                elif value.name in model.graph.initializers:
                    continue
                names = ("batch_size", None, length, None) if match else _TOKENS[value.name or ""]
                dims = list(value.shape or ())
                for position, name in enumerate(names):
                    if name is not None and not isinstance(dims[position], int):
                        symbols.setdefault(str(dims[position].value), name)  # type: ignore[union-attr]
                        dims[position] = ir.SymbolicDim(name)
                value.shape = ir.Shape(dims)
        DeclareShapes(symbols)(model)
        return ir.passes.PassResult(model, modified=True)
