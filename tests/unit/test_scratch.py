"""Temporary files where there is no room for them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from edgepeft.errors import InputError
from edgepeft.scratch import scratch_folder


def test_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(InputError, match=rf"no room in {tmp_path}: No space left.*TMPDIR"),
        scratch_folder("x") as folder,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{folder}/model.onnx")
    assert not list(tmp_path.iterdir())


def test_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"no room in .*none: No such file.*TMPDIR"), scratch_folder("x"):
        pass


def test_what_is_wrong_elsewhere_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="/elsewhere"), scratch_folder("x"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/elsewhere")


@pytest.mark.parametrize("way", ["run", "spill"])
def test_a_graph_that_does_not_fit(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a graph are written there; where that fails nothing is left."""
    import numpy as np
    import onnx_ir as ir

    from edgepeft.graph.mapped_weights import spill
    from edgepeft.graph.run import run_graph

    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((64, 64), np.float32), name="w"))
    node = ir.node("Identity", [weight])
    node.outputs[0].name = "y"
    graph = ir.Model(
        ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g"), ir_version=10
    )

    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[1]))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(InputError, match="TMPDIR"):
        run_graph(graph, [{}]) if way == "run" else spill(graph)
    assert not list(tmp_path.iterdir())
