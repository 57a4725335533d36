"""Which inputs and outputs of an operator may be float16, as ONNX Runtime's own schemas say it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnx_ir as ir

HALF, SINGLE = "tensor(float16)", "tensor(float)"


@lru_cache(maxsize=1)
def _schemas() -> dict[tuple[str, str], list[Any]]:
    """Every version of every operator that ONNX Runtime knows, the oldest first."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found: dict[tuple[str, str], list[Any]] = {}
    for schema in get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), []).append(schema)
    for versions in found.values():
        versions.sort(key=lambda schema: schema.since_version)
    return found


def _schema(node: ir.Node, opsets: dict[str, int]) -> Any | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, 1)
    versions = [each for each in _schemas().get((domain, node.op_type), ()) if each.since_version <= version]
    return versions[-1] if versions else None


class Halvable:
    """What of one node may be float16. An operator without a schema has nothing that may."""

    def __init__(self, node: ir.Node, opsets: dict[str, int]) -> None:
        schema = _schema(node, opsets)
        self._inputs: list[bool] = [] if schema is None else [_takes(each) for each in schema.inputs]
        self._outputs: list[bool] = [] if schema is None else [_takes(each) for each in schema.outputs]
        # A type that a graph cannot see: what a body computes, and random numbers or casts that an attribute types.
        bodies = any(a.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for a in node.attributes.values())
        self._never = bodies or "dtype" in node.attributes or "output_dtype" in node.attributes

    def input(self, index: int) -> bool:
        """Whether the input at ``index`` may be float16; of a variadic operator the last one stands for those behind it."""
        return not self._never and _at(self._inputs, index)

    def output(self, index: int) -> bool:
        """The same of an output."""
        return not self._never and _at(self._outputs, index)


def _at(allowed: list[bool], index: int) -> bool:
    return bool(allowed) and allowed[min(index, len(allowed) - 1)]


def _takes(parameter: Any) -> bool:
    return HALF in parameter.types
