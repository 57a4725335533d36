"""What an exporter notes of where a node came from: files and lines on the machine that exported."""

from __future__ import annotations

import onnx_ir as ir

from .edit import EditPass, nodes_of

#: Prefix of what torch.onnx writes into the metadata of nodes and values.
_ORIGIN = "pkg.torch."


class DropOrigins(EditPass[ir.passes.PassResult]):
    """Removes torch.onnx's notes from nodes and values: stack traces hold absolute paths, and none of them is read again.

    Two exports of a model from different folders then give the same bytes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them all."""
        modified = False
        for node in nodes_of(model):
            for notes in (node.metadata_props, *(output.metadata_props for output in node.outputs)):
                for key in [key for key in notes if key.startswith(_ORIGIN)]:
                    del notes[key]
                    modified = True
        return ir.passes.PassResult(model, modified)
