"""How a bundle says what a text's embedding is: the graph that pools, and the prompts and the limit that belong to it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from .names import check_relative
from .slots import Name, Schema, Size

#: The inputs and the output of an embedding's graph.
HIDDEN, MASK, PROMPT_LENGTH, EMBEDDING = (
    "last_hidden_state",
    "attention_mask",
    "prompt_length",
    "sentence_embedding",
)
#: Where a base's graph lies, and the adapters' own, each named after its adapter.
BASE_FILE = "embedding/model.onnx"
ADAPTERS_FOLDER = "embedding/adapters"
#: In a contract that travels by itself, the key of the graph's bytes.
_CONTENT = "graph_base64"
#: What a file in ONNX Runtime's own format holds behind its first four bytes.
_ORT_FORMAT = b"ORTM"

#: A text that is put before what is embedded.
Prompt = Annotated[str, Field(max_length=65_536, strict=True)]


class Embedding(Schema):
    """From the hidden states of a text's tokens to its embedding, as sentence-transformers computes it.

    ``graph`` is a small ONNX graph with the inputs ``last_hidden_state`` (float32 ``[rows, tokens, hidden]``) and
    ``attention_mask`` (int64 ``[rows, tokens]``), and the output ``sentence_embedding`` (float32 ``[rows, dimension]``).
    Where ``include_prompt`` is false it also takes ``prompt_length`` (int64, one number): how many tokens at the begin of each
    row are the prompt, which is not pooled.
    """

    graph: str
    dimension: Size
    #: What the graph does, one after the other, in words: ``cls``, ``dense 384 -> 128 tanh``, ``normalize``.
    modules: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    #: Texts that are put before a text, by name.
    prompts: dict[Name, Prompt] = Field(default_factory=dict, max_length=4096)
    #: The prompt that is used where none is asked for.
    default_prompt: Name | None = None
    include_prompt: bool = True
    #: Longest text in tokens, special ones included; the base's limit where it is ``None``.
    max_length: Size | None = None

    @field_validator("graph")
    @classmethod
    def _relative(cls, path: str) -> str:
        return check_relative(path)

    @model_validator(mode="after")
    def _known_prompt(self) -> Embedding:
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ValueError(
                f"default_prompt {self.default_prompt!r} is not one of the prompts: {', '.join(self.prompts)}"
            )
        return self


@dataclass(frozen=True)
class OwnEmbedding:
    """How an adapter, or the base, embeds texts, with the hash of its graph: it stays what it is when the bundle is read again."""

    says: Embedding
    sha256: str

    def same(self, other: OwnEmbedding) -> bool:
        """Whether both embed alike, wherever their graphs lie."""
        return self.sha256 == other.sha256 and self.says == other.says.model_copy(update={"graph": self.says.graph})


def travelling(embedding: Embedding, graph: bytes) -> dict[str, Any]:
    """``embedding`` with its graph in it, for an adapter's file that is added to other bundles; JSON."""
    return {**embedding.model_dump(mode="json", exclude={"graph"}), _CONTENT: base64.b64encode(graph).decode("ascii")}


def settled(contract: Mapping[str, Any], stem: str) -> tuple[dict[str, Any], bytes | None]:
    """An adapter's contract with its embedding's graph as a file of a bundle, and what that file holds.

    Args:
        contract: The contract; where it has an ``embedding``, that is as :func:`travelling` makes it.
        stem: The path that the graph gets in the bundle, less its suffix.

    Returns:
        The contract as an entry of a manifest holds it, and the bytes of the graph; ``None`` where there is no embedding.

    Raises:
        ValueError: The embedding holds no graph.
    """
    embedding = contract.get("embedding")
    if embedding is None:
        return dict(contract), None
    if not isinstance(embedding, Mapping) or not isinstance(content := embedding.get(_CONTENT), str):
        raise ValueError(f"its embedding holds no graph ({_CONTENT})")
    try:
        graph = base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its embedding's graph is not base64: {error}") from error
    file = stem + (".ort" if graph[4:8] == _ORT_FORMAT else ".onnx")
    placed = {**{key: value for key, value in embedding.items() if key != _CONTENT}, "graph": file}
    return {**contract, "embedding": placed}, graph
