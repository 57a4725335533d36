"""What a capture returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..adapters.base_weights import BaseWeights, HeldWeights, RenamedWeights
from ..bundle.heads import Activation, Head, ProblemType
from ..bundle.manifest import TaskEntry
from ..embedding.modules import EmbeddingModules
from ..graph.editable import GraphPart
from ..graph.locate.by_content import Location
from ..graph.mapped_weights import Spilled


@dataclass(frozen=True)
class Base:
    """A base model and its ONNX graph.

    ``graph`` computes the base without slots, in the precision that ``variant`` names: fp32, unless a quantized file was
    given. ``weights`` are the parameters by Hugging Face name (float32, or as they are stored where the base is written straight
    to a variant; PyTorch's layout; fresh ones are zero) and ``locations`` says where in the graph their numbers lie.
    ``reference`` is the PyTorch model in eval mode, for parity.
    """

    graph: ir.Model
    source: str
    task: str
    config: Mapping[str, Any]
    architecture: str
    labels: tuple[str, ...] | None
    identity: str
    fresh: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    locations: Mapping[str, tuple[Location, ...]]
    captured_by: str
    max_length: int | None
    #: Hugging Face files that travel with the bundle (tokenizer, config), by file name.
    files: Mapping[str, bytes]
    reference: Any
    #: Linear weights that are an embedding's too: the head's parameter → the embedding's.
    tied: Mapping[str, str]
    #: The site that gives a language model's logits.
    head: str | None
    #: max |difference| of the outputs against PyTorch on ragged padded batches; a quantized graph's against PyTorch
    #: computing with the numbers that the graph holds.
    parity: float
    variant: str = "fp32"
    #: How many parameters of a given file were told by "content", by "rounded content" and by "name"; else empty.
    matched: Mapping[str, int] = field(default_factory=dict)
    #: The second graph of an encoder-decoder, whose first is ``graph``.
    decoder: GraphPart | None = None
    #: Ranges of the checkpoint's layers that the base was rebuilt from (LoRA's ``layer_replication``).
    layers: tuple[tuple[int, int], ...] = ()
    #: How texts are embedded, of a base that sentence-transformers saved for that.
    embedding: EmbeddingModules | None = None
    #: How many tokens the model has positions for, where that is more than ``max_length``.
    positions: int | None = None
    #: Where the graph's weights lie in a file and not in memory.
    spilled: Spilled | None = None
    #: What the outputs of its head mean, and what makes scores of them.
    problem_type: ProblemType | None = None
    activation: Activation | None = None
    #: The tasks of a base that serves several, by name.
    tasks: Mapping[str, TaskEntry] = field(default_factory=dict)

    @property
    def own_head(self) -> Head:
        """What the outputs of its own head mean."""
        return Head(self.labels, self.problem_type, self.activation, self.task)

    @property
    def head_widths(self) -> Mapping[str, int]:
        """How many labels a head has, by what the names of its parameters begin with."""
        if self.tasks:
            return {
                pair[1]: len(entry.labels)
                for entry in self.tasks.values()
                for pair in entry.names[-1:]
                if entry.labels is not None
            }
        return {} if self.labels is None else {"": len(self.labels)}

    def head_for(self, task: str | None) -> Head:
        """What the outputs of its head for a task mean."""
        entry = self.tasks.get(task or "")
        return self.own_head if entry is None else Head(entry.labels, entry.problem_type, entry.activation, task)

    def weight_for(self, task: str | None) -> BaseWeights:
        """The parameters by the names that a task's own model gives them."""
        entry = self.tasks.get(task or "")
        return self.weight if entry is None else RenamedWeights(self.weight, entry.names)

    def forget(self) -> None:
        """Give back the memory of weights that can be read from their file again; ``reference`` must be as captured."""
        if self.spilled is not None:
            self.spilled.forget(copies=True)

    @property
    def weight(self) -> BaseWeights:
        """The parameters as ``read_adapter(weights=…)`` takes them: ``base.weight(name)`` is an array or ``None``."""
        return HeldWeights(self.weights, self.tied)

    @property
    def parameters(self) -> int:
        """Numbers in the base; tied parameters are one array under two names and count once."""
        return sum({id(array): int(array.size) for array in self.weights.values()}.values())
