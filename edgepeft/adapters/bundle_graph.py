"""A bundle's graph as onnx_ir reads it: from the bytes that were verified."""

from __future__ import annotations

from typing import Any

from ..bundle import Bundle
from ..errors import CorruptBundleError, MissingExtraError


def load_graph(bundle: Bundle, file: str) -> Any:
    """The graph ``file`` of a bundle as ``onnx_ir.Model``; its weights are verified, and mapped when they are read.

    Raises:
        CorruptBundleError: A file is not what the manifest says, or is no ONNX graph.
        MissingExtraError: onnx_ir is not installed.
    """
    try:
        import onnx
        import onnx_ir as ir
    except ImportError as error:
        raise MissingExtraError(f"reading {file} needs: pip install 'edgepeft[tools]' ({error})") from error
    path = bundle.file(file)
    with bundle.open_graph(file) as opened:
        try:
            proto = (
                onnx.ModelProto.FromString(opened.model)
                if isinstance(opened.model, bytes)
                else onnx.load(opened.model, format="protobuf", load_external_data=False)
            )
            graph = ir.from_proto(proto)
        except Exception as error:  # protobuf and onnx_ir raise types of their own on damaged graphs
            raise CorruptBundleError(
                f"{path} is not a readable ONNX graph: {error}; export the bundle again"
            ) from error
    ir.external_data.set_base_dir(graph.graph, path.parent)
    return graph
