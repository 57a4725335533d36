"""The layer norms' epsilon as PyTorch has it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ....graph.passes.edit import EditPass, nodes_of


class RestoreEpsilon(EditPass[ir.passes.PassResult]):
    """The layer norms' epsilon where PyTorch has one for all: mobius 0.1 takes a default of its own for OPT.

    ``module`` is the PyTorch model (torch has no types here).
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set it."""
        import torch

        epsilons = {module.eps for module in self.module.modules() if isinstance(module, torch.nn.LayerNorm)}
        kinds = {"LayerNormalization", "SkipLayerNormalization"}
        norms = [node for node in nodes_of(model) if node.op_type in kinds] if len(epsilons) == 1 else []
        for node in norms:
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", float(next(iter(epsilons))))
        return ir.passes.PassResult(model, bool(norms))
