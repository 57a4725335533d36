"""What is put right and made uniform in a causal LM's graph as mobius builds it: one pass a module.

mobius 0.1 fuses attention into GroupQueryAttention and on the way loses sliding windows, and gives every layer the first
layer's rotary tables. The rest brings its graphs to the names and operators the bundle promises.
"""

from __future__ import annotations

import onnx_ir as ir

from ....graph.passes.drop_outputs import DropUnusedOutputs
from ....graph.passes.logits_from import AddLogitsFrom
from ...load import Loaded
from .attention import RestoreLayerAttention
from .dimensions import RenameDimensions
from .embedding_scale import RestoreEmbeddingScale
from .epsilon import RestoreEpsilon
from .norms import PortableNorms
from .opset import LowerOpset
from .unused import RemoveUnused


def fixes_for(loaded: Loaded) -> tuple[ir.passes.PassBase, ...]:
    """The passes for the graph of ``loaded``, in their order."""
    return (
        RestoreLayerAttention(loaded),
        RestoreEmbeddingScale(loaded.model),
        PortableNorms(),
        RestoreEpsilon(loaded.model),
        AddLogitsFrom(),
        LowerOpset(),
        RenameDimensions(),
        RemoveUnused(),
        DropUnusedOutputs(),
    )
