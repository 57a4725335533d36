"""Slots that are one node with others or with a norm: the same bits as apart, over every architecture; rows that share adapters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import kernel_library
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from causal_models import CAUSAL, build_causal
from onnx import TensorProto, helper

from edgepeft.base.capture import capture
from edgepeft.graph.edit_base import add_slots
from edgepeft.runtime.kernel_adapter import Factors, join_adapters, pack_adapter
from edgepeft.runtime.kernel_probe import norms_that_agree, silus_that_agree
from edgepeft.runtime.sessions import open_session
from edgepeft.runtime.twin import make_twin
from edgepeft.runtime.twin_joins import NORMS, SILUS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


@pytest.fixture(scope="module")
def library() -> Path:
    if reason := kernel_library.missing():
        pytest.skip(reason)
    return kernel_library.package_folder() / "edgepeft_kernels" / "libedgepeft_kernels.so"


def test_the_norms_have_the_bits_of_onnxruntimes_own(library: Path) -> None:
    assert norms_that_agree(library, open_session) == set(NORMS)


def test_the_gates_have_the_bits_of_onnxruntimes_own(library: Path) -> None:
    assert silus_that_agree(library, open_session) == set(SILUS)


#: Architectures with q, k and v in one matrix, no gate, and a bias or a sum between a slot and the norm.
APART = {"gpt-neox", "gpt2", "opt", "starcoder2"}
#: Architectures whose gate is a silu, in a matrix of its own.
GATED = {"llama", "llama-untied", "mistral", "qwen2", "qwen2-window", "qwen3", "smollm3", "granite", "olmo2"}


def feeds(session: Any, rng: np.random.Generator, batch: int, tokens: int = 9) -> dict[str, np.ndarray]:
    """Random tokens without a past."""
    found: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            found[value.name] = rng.integers(3, 99, (batch, tokens))
        elif value.name == "attention_mask":
            found[value.name] = np.ones((batch, tokens), np.int64)
        elif value.name == "position_ids":
            found[value.name] = np.tile(np.arange(tokens), (batch, 1))
        elif value.name == "logits_from":
            found[value.name] = np.zeros(1, np.int64)
        else:
            found[value.name] = np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_every_architecture(name: str, library: Path, tmp_path: Path) -> None:
    """Without an adapter the standard graph's bits. With one, joined nodes have the bits of single ones, and agree with the
    standard graph to float32's rounding over three layers (6e-8 of each of some hundred terms, in sums that follow each other)."""
    base = add_slots(capture(build_causal(tmp_path, name), task="text-generation"), reserve="all-linear")
    slots = base.table.linear
    content = ir.to_proto(base.graph).SerializeToString()
    twins = [
        make_twin(
            content, slots, adapter="piece", join=joined, norms=NORMS if joined else (), silus=SILUS if joined else ()
        )
        for joined in (False, True)
    ]
    apart, joined = (twin.model for twin in twins if twin is not None)
    kinds = [Counter(node.op_type for node in onnx.load_from_string(model).graph.node) for model in (apart, joined)]
    assert (kinds[1]["AdapterAdd"] < kinds[0]["AdapterAdd"]) == (name not in APART)
    assert kinds[1]["AdapterSiluMul"] == (3 if name in GATED else 0)
    assert sum(kinds[1].values()) <= sum(kinds[0].values())
    sessions = [
        open_session(content, threads=1),
        *(open_session(model, threads=1, operators=library) for model in (apart, joined)),
    ]
    rng = np.random.default_rng(0)
    assert twins[0] is not None
    tensors = {}
    for slot in slots:
        tensors[slot.a] = rng.standard_normal((1, slot.in_features, 6)).astype(np.float32) * 0.1
        tensors[slot.b] = rng.standard_normal((1, 6, slot.out_features)).astype(np.float32) * 0.1
    taken = {name for slot in twins[0].slots for name in (slot.a, slot.b)}
    rest = {key: array for key, array in tensors.items() if key not in taken}
    piece = {"piece": pack_adapter({key: tensors[key] for key in taken}, twins[0].slots, "fp32"), **rest}
    for batch, tokens in ((1, 9), (2, 9), (1, 60)):
        fed = feeds(sessions[0], rng, batch, tokens)
        standard, *ours = (session.run(["logits"], fed)[0] for session in sessions)
        for logits in ours:
            np.testing.assert_array_equal(logits, standard)
        changed = sessions[0].run(["logits"], {**fed, **tensors})[0]
        one, two = (session.run(["logits"], {**fed, **piece})[0] for session in sessions[1:])
        np.testing.assert_array_equal(two, one)
        assert np.abs(changed - standard).max() > 1e-3 * np.abs(standard).max()
        assert np.abs(one - changed).max() <= 5e-6 * np.abs(changed).max()


def joined_session(library: Path, counts: list[int], threads: int = 2) -> Any:
    """A node for each number of slots, all over ``x``, from ``y0, y1, …`` to ``r0, r1, …``; a slot with a norm; two with a gate."""
    F = TensorProto.FLOAT
    kinds = {"x": F, "adapter": TensorProto.UINT8, "rows": TensorProto.INT64, "skip": F, "gamma": F}
    kinds |= {f"y{number}": F for number in range(sum(counts) + 3)}
    nodes, first = [], 0
    for count in counts:
        names = range(first, first + count)
        nodes.append(
            helper.make_node(
                "AdapterAddEach", ["x", "adapter", "rows", *(f"y{n}" for n in names)], [f"r{n}" for n in names],
                name=f"slots.{first}", domain="edgepeft", slots=list(names),
            )
        )  # fmt: skip
        first += count
    nodes.append(
        helper.make_node(
            "AdapterSkipNorm", [f"y{first}", "x", "adapter", "rows", "skip", "gamma"], ["norm", "sum"], name="the.norm",
            domain="edgepeft", slot=first, epsilon=1e-5,
        )
    )  # fmt: skip
    nodes.append(
        helper.make_node(
            "AdapterSiluMul", ["x", "adapter", "rows", f"y{first + 1}", f"y{first + 2}"], ["gated"], name="the.gate",
            domain="edgepeft", slots=[first + 1, first + 2],
        )
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    results = [
        helper.make_tensor_value_info(name, F, None)
        for name in (*(f"r{n}" for n in range(first)), "norm", "sum", "gated")
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgepeft", 4)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, results), opset_imports=opsets, ir_version=10)
    return open_session(made.SerializeToString(), threads=threads, operators=library)


def random_slots(rng: np.random.Generator, count: int, wide: int) -> list[Any]:
    from edgepeft.bundle.slots import LinearSlot, SlotPart

    outs = [int(rng.integers(1, 200)) for _ in range(count)]
    outs[-1] = outs[-2]  # a gate's, and of what it gates
    return [
        LinearSlot(
            name=f"s{n}", in_features=wide, out_features=out, a=f"s{n}.A", b=f"s{n}.B", rank=f"s{n}.rank", weight="w",
            parts=(SlotPart(site=f"s{n}", offset=0, size=out),),
        )
        for n, out in enumerate(outs)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_rows_and_slots_against_numpy(seed: int, library: Path) -> None:
    """Rows that share adapters, side by side or not, with none or one of their own; one token a row or some. Reference: numpy in
    float64; float32 keeps 6e-8 of each term, in sums of up to 150 and 30 of them."""
    rng = np.random.default_rng(seed)
    counts = [int(rng.integers(1, 10)) for _ in range(int(rng.integers(1, 3)))]
    wide, tokens, batch = int(rng.integers(1, 150)), int(rng.choice([1, 1, 3, 20, 60])), int(rng.integers(1, 10))
    slots = random_slots(rng, sum(counts) + 3, wide)
    factors: Factors = ("fp32", "fp16", "int8")[seed % 3]  # type: ignore[assignment]
    adapters: list[dict[str, np.ndarray]] = []
    for _ in range(3):
        tensors = {}
        for slot in slots:
            rank = int(rng.integers(0, 30))
            if rank:
                # Whole numbers up to 127, that one for each rank: int8 holds them as they are.
                a, b = rng.integers(-127, 128, (1, wide, rank)), rng.integers(-127, 128, (1, rank, slot.out_features))
                a[:, 0], b[:, :, 0] = 127, 127
                tensors[slot.a], tensors[slot.b] = a.astype(np.float32), b.astype(np.float32)
        adapters.append(tensors)
    pieces = [pack_adapter(tensors, slots, factors) for tensors in adapters]
    chosen: list[int | None] = [None if rng.integers(5) == 0 else int(rng.integers(3)) for _ in range(batch)]
    content, places = join_adapters(pieces, chosen)
    if rng.integers(4) == 0:
        chosen, content, places = [1] * batch, pieces[1], np.zeros(0, np.int64)
    x = rng.standard_normal((batch, tokens, wide)).astype(np.float32)
    ys = [rng.standard_normal((batch, tokens, slot.out_features)).astype(np.float32) for slot in slots]
    skip, gamma = (
        rng.standard_normal(ys[-3].shape).astype(np.float32),
        rng.standard_normal(ys[-3].shape[-1]).astype(np.float32),
    )
    fed = {"x": x, "adapter": content, "rows": places, "skip": skip, "gamma": gamma}
    *results, norm, total, product = joined_session(library, counts).run(
        None, {**fed, **{f"y{n}": y for n, y in enumerate(ys)}}
    )
    sums: list[tuple[np.ndarray, np.ndarray]] = []
    for slot, y, found in zip(slots, ys, [*results, total, None, None], strict=True):
        more = skip if found is total else 0
        wanted, size = y.astype(np.float64) + more, np.abs(y.astype(np.float64)) + np.abs(more)
        for row, number in enumerate(chosen):
            if number is None or slot.b not in adapters[number]:
                continue
            a, b = (adapters[number][name][0].astype(np.float64) for name in (slot.a, slot.b))
            wanted[row] += x[row] @ a @ b
            size[row] += np.abs(x[row]) @ np.abs(a) @ np.abs(b)
        sums.append((wanted, size))
        if found is not None:
            assert (np.abs(found - wanted) <= 2e-6 * size).all()
    (gate, gate_size), (up, up_size) = sums[-2:]
    silu = gate / (1 + np.exp(-np.clip(gate, -700, 700)))
    # silu's slope is at most 1.1; its own error is some 1e-7 of the gate.
    error = 2e-6 * (1.1 * gate_size * np.abs(up) + np.abs(silu) * up_size) + 3e-7 * np.abs(gate * up)
    assert (np.abs(product - silu * up) <= error + 4e-12 * gate_size * up_size).all()
    root = np.sqrt(np.square(total.astype(np.float64)).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm, total / root * gamma, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (2, 3, 9)), ("x", (2, 4, 8)), ("skip", (2, 3, 4)), ("gamma", (4,)), ("skip", (3, 3, 5)), ("y2", (2, 3, 2)),
        ("y3", (2, 3, 2)), ("y3", (6, 5)),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_name_the_slot(name: str, shape: tuple[int, ...], library: Path) -> None:
    slots = random_slots(np.random.default_rng(0), 4, 8)
    ones = {slot.a: np.ones((1, 8, 2), np.float32) for slot in slots}
    ones |= {slot.b: np.ones((1, 2, slot.out_features), np.float32) for slot in slots}
    shapes = {"x": (2, 3, 8), "skip": (2, 3, slots[1].out_features), "gamma": (slots[1].out_features,)}
    shapes |= {f"y{n}": (2, 3, slot.out_features) for n, slot in enumerate(slots)} | {name: shape}
    fed = {key: np.ones(value, np.float32) for key, value in shapes.items()}
    fed |= {"adapter": pack_adapter(ones, slots, "fp32"), "rows": np.zeros(0, np.int64)}
    nodes = {"y": r"AdapterSiluMul the\.gate", "x": r"Adapter\w+ \S+"}
    with pytest.raises(Exception, match=nodes.get(name[0], r"AdapterSkipNorm the\.norm")):
        joined_session(library, [1]).run(None, fed)


@pytest.mark.parametrize("edited", [(), ("s2",), ("s3",), ("s1", "s2")], ids=str)
@pytest.mark.parametrize("tokens", [1, 70])
def test_an_adapter_of_some_of_a_nodes_slots(edited: tuple[str, ...], tokens: int, library: Path) -> None:
    """What the adapter does not edit keeps the bits that it has without one."""
    rng = np.random.default_rng(1)
    slots = random_slots(rng, 4, 24)
    fed: dict[str, np.ndarray] = {"x": rng.standard_normal((1, tokens, 24)).astype(np.float32)}
    fed |= {f"y{n}": rng.standard_normal((1, tokens, s.out_features)).astype(np.float32) for n, s in enumerate(slots)}
    fed |= {"skip": fed["y1"] * 3, "gamma": np.ones(slots[1].out_features, np.float32), "rows": np.zeros(0, np.int64)}
    tensors = {}
    for slot in slots:
        if slot.name in edited:
            tensors[slot.a] = rng.standard_normal((1, 24, 6)).astype(np.float32)
            tensors[slot.b] = rng.standard_normal((1, 6, slot.out_features)).astype(np.float32)
    session = joined_session(library, [1])
    _, base, _, _ = bare = session.run(None, {**fed, "adapter": np.zeros((1, 0), np.uint8)})
    _, norm, total, product = session.run(None, {**fed, "adapter": pack_adapter(tensors, slots, "fp32")})
    assert (norm.tobytes() == base.tobytes()) == (total.tobytes() == bare[2].tobytes()) == ("s1" not in edited)
    assert (product.tobytes() == bare[3].tobytes()) == (not {"s2", "s3"} & set(edited))
    sums = {
        slot.name: y + (fed["x"] @ tensors[slot.a] @ tensors[slot.b] if slot.name in edited else 0)
        for slot, y in zip(slots, (fed[f"y{n}"] for n in range(4)), strict=True)
    }
    # float32 in sums of 24 and 6 terms of some units.
    np.testing.assert_allclose(product, sums["s2"] / (1 + np.exp(-sums["s2"])) * sums["s3"], rtol=1e-4, atol=2e-4)
