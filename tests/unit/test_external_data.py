"""Which files a graph names, read without ONNX and compared with what ONNX reads."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from edgepeft.bundle.external_data import external_files
from edgepeft.errors import CorruptBundleError


def tensor(name: str, location: str | None) -> onnx.TensorProto:
    made = TensorProto(name=name, dims=[1], data_type=TensorProto.FLOAT)
    if location is None:
        made.raw_data = b"\0\0\0\0"
    else:
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "4")):
            made.external_data.add(key=key, value=value)
    return made


def graph(*nodes: onnx.NodeProto, initializers: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], initializer=list(initializers))


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor("c", location))


def branch(then: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["b"], ["y"], then_branch=then, else_branch=graph())


def test_every_place_that_can_name_a_file() -> None:
    """Initializers, constants, subgraphs at any depth, functions, sparse tensors, lists of tensors and graphs, training."""
    sparse = onnx.SparseTensorProto(
        values=tensor("v", "sparse.values"), indices=tensor("i", "sparse.indices"), dims=[1]
    )
    listed = helper.make_node("Op", [], ["o"])
    listed.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS).tensors.append(tensor("t", "listed"))
    listed.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS).graphs.append(graph(constant("in-list")))
    listed.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        onnx.SparseTensorProto(values=tensor("v", "sparse.attribute"))
    )
    listed.attribute.add(name="many", type=onnx.AttributeProto.SPARSE_TENSORS).sparse_tensors.append(
        onnx.SparseTensorProto(indices=tensor("v", "sparse.list"))
    )
    main = graph(
        constant("constant"), branch(graph(branch(graph(constant("deep"))))), listed,
        initializers=(tensor("inside", None), tensor("a", "weights"), tensor("b", "weights"), tensor("c", "sub/more")),
    )  # fmt: skip
    main.sparse_initializer.append(sparse)
    function = helper.make_function("d", "f", [], [], [constant("function")], [helper.make_opsetid("", 20)])
    function.attribute_proto.add(name="t", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor("t", "default"))
    model = helper.make_model(main, functions=[function])
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(constant("first")))
    training.algorithm.CopyFrom(graph(constant("second")))
    expected = {
        "constant", "deep", "listed", "in-list", "sparse.attribute", "sparse.list", "weights", "sub/more", "sparse.values",
        "sparse.indices", "function", "default", "first", "second",
    }  # fmt: skip
    assert set(external_files("onnx/model.onnx", model.SerializeToString())) == {f"onnx/{name}" for name in expected}
    assert external_files("model.onnx", helper.make_model(graph()).SerializeToString()) == ()


def test_the_last_of_repeated_keys_counts_as_for_protobuf() -> None:
    """A reader that took the first would see another file than ONNX Runtime opens."""
    model = helper.make_model(graph(initializers=(tensor("w", "weights"),)))
    entry = onnx.StringStringEntryProto(key="location", value="listed").SerializeToString()
    twice = entry + onnx.StringStringEntryProto(value="hidden").SerializeToString()
    raw = model.graph.initializer[0].SerializeToString()
    added = raw + bytes([13 << 3 | 2, len(twice)]) + twice
    found = onnx.TensorProto.FromString(added)
    assert found.external_data[-1].value == "hidden"
    # `graph` once more, behind the first: protobuf merges both.
    part = bytes([5 << 3 | 2]) + varint(len(added)) + added
    more = model.SerializeToString() + bytes([7 << 3 | 2]) + varint(len(part)) + part
    assert onnx.ModelProto.FromString(more).graph.initializer[1].external_data[-1].value == "hidden"
    assert "hidden" in external_files("model.onnx", more)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/passwd", "a/../../b", "..\\x", "c:x", "", "*/_ORT_MEM_ADDR_/*/../x", "a\0b"]
)
def test_locations_that_leave_the_folder(location: str) -> None:
    model = helper.make_model(graph(initializers=(tensor("w", location),)))
    with pytest.raises(CorruptBundleError, match="not a plain path"):
        external_files("onnx/model.onnx", model.SerializeToString())


def test_damaged_bytes_raise_and_never_hang() -> None:
    """Every byte flipped and every length: a typed error, or what is there."""
    model = helper.make_model(graph(branch(graph(constant("deep"))), initializers=(tensor("w", "weights"),)))
    good = model.SerializeToString()
    refused = 0
    for place in range(len(good)):
        for content in (good[:place], good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]):
            try:
                external_files("model.onnx", content)
            except CorruptBundleError:
                refused += 1
    assert refused > len(good) / 4


def test_nesting_is_bounded() -> None:
    """Graphs in attributes of nodes, deeper than protobuf reads (or makes) them."""
    inner = graph(constant("deep")).SerializeToString()
    for _ in range(1000):
        for field in (6, 5, 1):  # a node's attribute holds a graph
            inner = bytes([field << 3 | 2]) + varint(len(inner)) + inner
    with pytest.raises(CorruptBundleError, match="nested deeper"):
        external_files("model.onnx", bytes([7 << 3 | 2]) + varint(len(inner)) + inner)
