"""What stands between a text's hidden states and its embedding: pooling, and the modules after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Ways to pool, by the names of sentence-transformers' own settings; several are set side by side in this order.
POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


#: Activations of a dense module by torch's class, as operators with what torch's own defaults are.
ACTIVATIONS: dict[str, tuple[str, dict[str, float]] | None] = {
    "Identity": None,
    "Tanh": ("Tanh", {}),
    "ReLU": ("Relu", {}),
    "GELU": ("Gelu", {}),
    "Sigmoid": ("Sigmoid", {}),
    "LeakyReLU": ("LeakyRelu", {"alpha": 0.01}),
    "ELU": ("Elu", {"alpha": 1.0}),
    "Softplus": ("Softplus", {}),
    "Mish": ("Mish", {}),
    "Softsign": ("Softsign", {}),
    "SiLU": ("SiLU", {}),  # x * sigmoid(x): no operator of its own in this opset
}


@dataclass(frozen=True)
class Pooling:
    """From ``[rows, tokens, hidden]`` to ``[rows, modes x hidden]``; see :data:`POOLING` for the modes."""

    modes: tuple[str, ...] = ("mean",)
    #: Whether the tokens of a prompt are pooled too.
    include_prompt: bool = True

    def describe(self) -> str:
        """The module in words."""
        return " + ".join(self.modes) + ("" if self.include_prompt else " without the prompt")


@dataclass(frozen=True)
class Dense:
    """A linear layer ``[out, in]`` with an activation, and the input added to its result where ``residual`` is set."""

    weight: np.ndarray
    bias: np.ndarray | None
    #: One of :data:`ACTIVATIONS`.
    activation: str
    #: ``True``: the input itself; an array ``[out, in]``: the input projected by it.
    residual: np.ndarray | bool = False

    def describe(self) -> str:
        """The module in words."""
        outputs, inputs = self.weight.shape
        added = "" if self.residual is False else " + input"
        return f"dense {inputs} -> {outputs} {self.activation.lower()}{added}"


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm with weight and bias ``[dimension]``."""

    weight: np.ndarray
    bias: np.ndarray
    epsilon: float = 1e-5  # torch's own, which sentence-transformers does not change

    def describe(self) -> str:
        """The module in words."""
        return "layer norm"


@dataclass(frozen=True)
class Normalize:
    """To length 1."""

    def describe(self) -> str:
        """The module in words."""
        return "normalize"


Module = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class EmbeddingModules:
    """All that turns hidden states into an embedding, and what belongs to it."""

    pooling: Pooling = Pooling()
    modules: tuple[Module, ...] = ()
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str | None = None
    #: Longest text in tokens, special ones included; ``None`` where nothing says so.
    max_length: int | None = None
    #: Whether texts are put into lower case first.
    lower_case: bool = False
    #: What differs from what a reader of the folder would expect, in sentences.
    notes: tuple[str, ...] = ()

    def dimension(self, hidden: int) -> int:
        """Numbers of an embedding, over hidden states of ``hidden`` numbers."""
        size = hidden * len(self.pooling.modes)
        for module in self.modules:
            if isinstance(module, Dense):
                size = int(module.weight.shape[0])
        return size

    def describe(self) -> tuple[str, ...]:
        """The modules in words, in their order."""
        return (self.pooling.describe(), *(module.describe() for module in self.modules))
