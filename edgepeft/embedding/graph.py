"""The ONNX graph of an embedding: small, so that every binding of ONNX Runtime computes it, and the same in each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from ..bundle.embedding import EMBEDDING, HIDDEN, MASK, PROMPT_LENGTH
from ..errors import InputError
from .modules import ACTIVATIONS, Dense, EmbeddingModules, LayerNorm, Pooling

OPSET = 20


class _Graph:
    """Operators and constants of the graph, in the order in which they are made."""

    def __init__(self) -> None:
        self.tape = tape.Tape()
        self._constants = 0

    def op(self, name: str, *inputs: ir.Value | np.ndarray, **attributes: int | float | list[int]) -> ir.Value:
        """The output of an operator."""
        values = [self.constant(each) if isinstance(each, np.ndarray) else each for each in inputs]
        return self.tape.op(name, values, attributes)

    def constant(self, array: np.ndarray) -> ir.Value:
        """A tensor of the graph."""
        self._constants += 1
        name = f"constant_{self._constants}"
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(array), name=name), name)


def _axes(*axes: int) -> np.ndarray:
    return np.array(axes, np.int64)


def embedding_graph(embedding: EmbeddingModules, hidden: int) -> ir.Model:
    """The graph that computes ``embedding`` from hidden states of ``hidden`` numbers.

    Its inputs and its output are those of :class:`edgepeft.bundle.Embedding`. It takes rows that are padded on either side.

    Raises:
        InputError: A module does not take what the one before it gives.
    """
    _check_sizes(embedding, hidden)
    graph = _Graph()
    states = _input(HIDDEN, ir.DataType.FLOAT, ["batch_size", "sequence_length", hidden])
    mask = _input(MASK, ir.DataType.INT64, ["batch_size", "sequence_length"])
    inputs = [states, mask]
    if not embedding.pooling.include_prompt:
        inputs.append(_input(PROMPT_LENGTH, ir.DataType.INT64, [1]))
    value = _pooled(graph, embedding.pooling, states, mask, inputs[-1])
    for module in embedding.modules:
        if isinstance(module, Dense):
            value = _dense(graph, module, value)
        elif isinstance(module, LayerNorm):
            value = graph.op("LayerNormalization", value, module.weight, module.bias, axis=-1, epsilon=module.epsilon)
        else:
            length = graph.op("ReduceL2", value, _axes(-1), keepdims=1)
            value = graph.op("Div", value, graph.op("Max", length, np.array(1e-12, np.float32)))
    value = graph.op("Identity", value)  # so that the output is the graph's own value, whatever made it
    value.name, value.type = EMBEDDING, ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(["batch_size", embedding.dimension(hidden)])
    whole = ir.Graph(
        inputs,
        [value],
        nodes=graph.tape.nodes,
        initializers=graph.tape.initializers,
        opset_imports={"": OPSET},
        name="embedding",
    )
    return ir.Model(whole, ir_version=10, producer_name="edgepeft")


def embedding_bytes(embedding: EmbeddingModules, hidden: int) -> bytes:
    """:func:`embedding_graph` as the bytes of an ``.onnx`` file."""
    content: bytes = ir.to_proto(embedding_graph(embedding, hidden)).SerializeToString(deterministic=True)
    return content


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _pooled(graph: _Graph, pooling: Pooling, states: ir.Value, mask: ir.Value, prompt: ir.Value) -> ir.Value:
    """Hidden states ``[rows, tokens, hidden]`` as ``[rows, modes x hidden]``."""
    real = graph.op("Cast", mask, to=ir.DataType.FLOAT.value)  # [rows, tokens]: 1 for a token, 0 for what pads
    count = graph.op("Shape", mask, start=1, end=2)
    scalar = graph.op("Squeeze", count)
    places = graph.op("Range", np.array(0, np.int64), scalar, np.array(1, np.int64))
    places = graph.op("Unsqueeze", places, _axes(0))  # [1, tokens]
    begin = graph.op(
        "ArgMax", real, axis=1, keepdims=1
    )  # [rows, 1]: the first token, where rows are padded on the left
    kept = real
    if not pooling.include_prompt:
        inside = graph.op("GreaterOrEqual", places, graph.op("Add", begin, prompt))
        kept = graph.op("Mul", real, graph.op("Cast", inside, to=ir.DataType.FLOAT.value))
    wide = graph.op("Unsqueeze", kept, _axes(2))  # [rows, tokens, 1]
    parts: list[ir.Value] = []
    for mode in pooling.modes:
        if mode in {"cls", "lasttoken"}:
            # The library multiplies the last token by the mask, and not the first.
            source = graph.op("Mul", states, wide) if mode == "lasttoken" else states
            place = graph.op("ArgMax", kept, axis=1, keepdims=1, select_last_index=int(mode == "lasttoken"))
            parts.append(graph.op("GatherND", source, place, batch_dims=1))
        elif mode == "max":
            padding = graph.op("Equal", wide, np.array(0, np.float32))
            hidden = graph.op("Where", padding, np.array(-np.inf, np.float32), states)
            parts.append(graph.op("ReduceMax", hidden, _axes(1), keepdims=0))
        else:
            weights = wide
            if mode == "weightedmean":
                rank = graph.op("Add", graph.op("Sub", places, begin), np.array(1, np.int64))
                ranks = graph.op("Unsqueeze", graph.op("Cast", rank, to=ir.DataType.FLOAT.value), _axes(2))
                weights = graph.op("Mul", wide, ranks)
            total = graph.op("ReduceSum", graph.op("Mul", states, weights), _axes(1), keepdims=0)
            divisor = graph.op("ReduceSum", weights, _axes(1), keepdims=0)  # [rows, 1]
            divisor = graph.op("Max", divisor, np.array(1e-9, np.float32))
            if mode == "mean_sqrt_len_tokens":
                divisor = graph.op("Sqrt", divisor)
            parts.append(graph.op("Div", total, divisor))
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)


def _dense(graph: _Graph, module: Dense, value: ir.Value) -> ir.Value:
    result = graph.op("MatMul", value, module.weight.T)
    if module.bias is not None:
        result = graph.op("Add", result, module.bias)
    activation = ACTIVATIONS[module.activation]
    if activation is not None:
        name, attributes = activation
        silu = name == "SiLU"
        activated = graph.op("Sigmoid", result) if silu else graph.op(name, result, **attributes)
        result = graph.op("Mul", result, activated) if silu else activated
    if isinstance(module.residual, np.ndarray):
        result = graph.op("Add", result, graph.op("MatMul", value, module.residual.T))
    elif module.residual:
        result = graph.op("Add", result, value)
    return result


def _check_sizes(embedding: EmbeddingModules, hidden: int) -> None:
    size = hidden * len(embedding.pooling.modes)
    for place, module in enumerate(embedding.modules):
        takes = None
        if isinstance(module, Dense):
            takes = int(module.weight.shape[1])
        elif isinstance(module, LayerNorm):
            takes = int(module.weight.shape[0])
        if takes is not None and takes != size:
            raise InputError(
                f"module {place + 2} of the sentence-transformers folder ({module.describe()}) takes {takes} numbers; what is "
                f"before it gives {size} ({hidden} of the model, pooled as {embedding.pooling.describe()})"
            )
        if isinstance(module, Dense):
            size = int(module.weight.shape[0])
