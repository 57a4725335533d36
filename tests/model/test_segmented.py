"""A streamed base compared part by part: the same numbers as in one session, with one part's weights packed at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from causal import build_causal_bundle

from edgepeft.bundle import read_bundle
from edgepeft.errors import ParityError
from edgepeft.pipeline import _plan, quantize
from edgepeft.runtime.graph_parts import GraphParts
from edgepeft.validate import segmented, streamed
from edgepeft.validate.parity import base_restored
from edgepeft.validate.probe import bundle_probe
from edgepeft.validate.segmented import Doors, SegmentedSession, together_of
from edgepeft.validate.streamed import exact_runtime


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_causal_bundle(tmp_path_factory.mktemp("segmented"))
    quantize(folder, "q4", method="rtn")
    quantize(folder, "int8")
    return folder


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant is run in parts of some 20 kB."""
    monkeypatch.setattr(streamed, "SMALL", 0)
    monkeypatch.setattr(segmented, "BUDGET", 20_000)


def test_the_plan_knows_what_one_session_holds() -> None:
    assert _plan.LARGEST_SESSION == streamed.SMALL
    assert segmented.BUDGET < streamed.SMALL


def test_parts_cover_the_graph_once(made: Path) -> None:
    model = (made / "onnx" / "model_q4.onnx").read_bytes()
    graph = GraphParts(model, 20_000)
    assert len(graph.parts) > 3
    known = {value.name for value in graph.inputs}
    for part in graph.parts:
        assert set(part.inputs) <= known, "a part takes what an earlier one left"
        known |= set(part.outputs)
    assert {value.name for value in graph.outputs} <= known
    assert len(GraphParts(model, 10**9).parts) == 1
    session = ort.InferenceSession(made / "onnx" / "model_q4.onnx", providers=["CPUExecutionProvider"])
    for mine, theirs in (
        (graph.inputs, session.get_inputs()),
        (graph.outputs, session.get_outputs()),
        (graph.overridable, session.get_overridable_initializers()),
    ):
        told = {value.name: value for value in theirs}
        assert {value.name for value in mine} == told.keys()
        assert all(value.type == told[value.name].type for value in mine)
        assert all(value.shape == told[value.name].shape for value in mine)


def test_a_table_is_read_under_its_own_shape_from_the_file(made: Path) -> None:
    """The embedding of q4 is the head's weight through a Reshape, of which ONNX Runtime would make a copy."""
    graph = ir.load(made / "onnx" / "model_q4.onnx").graph
    (table,) = (node for node in graph if node.op_type == "GatherBlockQuantized")
    reshape = table.inputs[0].producer()
    assert reshape is not None
    assert reshape.op_type == "Reshape"
    head = reshape.inputs[0].const_value
    parts = GraphParts((made / "onnx" / "model_q4.onnx").read_bytes(), 20_000).parts
    (part,) = (part for part in parts if any(node.op == "GatherBlockQuantized" for node in part.nodes))
    (view,) = (weight for weight in part.weights if weight.name == reshape.outputs[0].name)
    assert view.place == (head.offset, head.length)
    assert view.dims == (len(head.numpy()), head.numpy().size // len(head.numpy()))
    assert not any(node.op == "Reshape" and view.name in node.outputs for each in parts for node in each.nodes)


@pytest.mark.parametrize("variant", ["q4", "int8"])
def test_the_same_numbers_as_in_one_session(made: Path, in_parts: None, variant: str) -> None:
    """Reference: one session over the same file. Fusions end at a part's border, so sums may be in another order: 1e-5."""
    bundle = read_bundle(made)
    probe = bundle_probe(bundle).brief()
    with exact_runtime(bundle, variant) as runtime:
        session = runtime.base.engine.session
        assert isinstance(session, SegmentedSession)
        assert session.parts > 3
        at_once = together_of(runtime)
        spread = at_once.spread(probe)
        names = (None, *runtime.adapters)
        found = at_once([partial(spread.run, runtime.adapter(name)) for name in names])
        alone = spread.run(runtime.base)
        assert base_restored(runtime, spread, at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "SMALL", 10**9)
        with exact_runtime(bundle, variant) as runtime:
            assert not isinstance(runtime.base.engine.session, SegmentedSession)
            expected = [probe.run(runtime.adapter(name)) for name in names]
    for mine, theirs in zip(found, expected, strict=True):
        assert probe.difference(mine, theirs) < 1e-5
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(alone, found[0], strict=True) for k in a)
    assert not list((made / "onnx").glob("*part*"))
    assert probe.difference(found[1], expected[0]) > 1e-2, "an adapter is on"


def test_each_part_is_opened_once_for_all_that_wait(
    made: Path, in_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs of a prompt and two tokens, by three adapters at once: each part is opened three times and not nine."""
    opened: list[int] = []
    own = SegmentedSession._open

    def count(self: SegmentedSession, part: int, *more: Any) -> Any:
        opened.append(part)
        return own(self, part, *more)

    monkeypatch.setattr(SegmentedSession, "_open", count)
    bundle = read_bundle(made)
    probe = bundle_probe(bundle).brief()
    with exact_runtime(bundle, "q4") as runtime:
        at_once = together_of(runtime)
        at_once([partial(at_once.spread(probe).run, runtime.adapter(name)) for name in (None, *runtime.adapters)])
        assert len(opened) <= 3 * runtime.base.engine.session.parts


def test_a_file_that_is_wrong_is_found_part_by_part(
    made: Path, in_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmented, "BUDGET", 60_000)
    from edgepeft.pipeline import export_variants

    model = made.parent / "model"
    adapters = {"narrow": made.parent / "narrow"}
    done = export_variants(["q4"], model, adapters, tmp_path / "good")
    assert done.capture_parity < 1e-4
    real = SegmentedSession.run_arrays

    def off(self: SegmentedSession, outputs: Sequence[str], feeds: Any) -> dict[str, np.ndarray]:
        found = real(self, outputs, feeds)
        return {**found, "logits": found["logits"] * np.float32(1.01)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentedSession, "run_arrays", off)
        with pytest.raises(ParityError, match="logits of the base in q4"):
            export_variants(["q4"], model, adapters, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


class TestDoors:
    def test_works_may_ask_for_more_works(self) -> None:
        passed: list[tuple[int, int]] = []

        def passing(part: int, calls: Sequence[Any]) -> None:
            passed.append((part, len(calls)))
            for call in calls:
                call.outputs = {"y": call.feeds["x"] + part}

        doors = Doors(passing)

        def walk(start: int) -> int:
            x = np.array(start)
            for part in range(3):
                x = doors.through(part, {"x": x})["y"]
            return int(x)

        def several() -> list[int]:
            assert walk(0) == 3
            return doors.together([partial(walk, n) for n in (10, 20)])

        assert doors.together([partial(walk, 1), several]) == [4, [13, 23]]
        assert passed == [(0, 2), (1, 2), (2, 2)] * 2
        assert doors.together([]) == []
        assert walk(7) == 10, "alone, a door is open"

    def test_what_a_work_raises_is_raised_when_all_have_ended(self) -> None:
        doors = Doors(lambda part, calls: [setattr(call, "outputs", dict(call.feeds)) for call in calls] and None)
        ended = threading.Event()

        def fails() -> None:
            doors.through(0, {})
            raise ValueError("no")

        def goes_on() -> None:
            for part in range(4):
                doors.through(part, {})
            ended.set()

        with pytest.raises(ValueError, match="no"):
            doors.together([fails, goes_on])
        assert ended.is_set()

    def test_a_part_that_cannot_be_run_is_told_to_all_who_wait(self) -> None:
        def broken(part: int, calls: Sequence[Any]) -> None:
            raise RuntimeError(f"part {part}")

        doors = Doors(broken)
        with pytest.raises(RuntimeError, match="part 0"):
            doors.together([partial(doors.through, 0, {}), partial(doors.through, 0, {})])
