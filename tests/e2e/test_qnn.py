"""Qualcomm's HTP backend on this host: a tiny bundle, one compiled graph, every adapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgepeft.bench import Job, Rows
from edgepeft.data import read_examples
from edgepeft.devices import executor_for, validate_on
from edgepeft.devices.executors.qnn import QnnExecutor
from edgepeft.errors import DeviceError, InputError
from edgepeft.pipeline import quantize
from edgepeft.report.gate import Verdict
from edgepeft.targets import Target, load_target

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    file = tmp_path_factory.mktemp("target") / "mine.toml"
    file.write_text(
        'extends = "android-qnn"\nname = "mine"\nsummary = "s"\n[graph]\nbuckets = ["1x8", "1x32", "1x128"]\n'
    )
    return load_target(file)


@pytest.fixture(scope="module")
def qnn(target: Target) -> QnnExecutor:
    executor = executor_for(target)
    assert isinstance(executor, QnnExecutor)
    if missing := executor.missing():
        pytest.skip(f"{missing[0].what} is missing: {missing[0].remedy}")
    return executor


@pytest.mark.parametrize("variant", ["fp32", "w8a16"])
def test_one_compiled_graph_swaps_through_all_adapters(
    variant: str, qnn: QnnExecutor, target: Target, bundle: Path, rows: Path
) -> None:
    examples = read_examples(rows)
    if variant == "w8a16":
        quantize(bundle, variant, data={"*": examples})
    report = validate_on(bundle, target, data={"reviews": examples}, rows=3)
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    found = {row["adapter"]: row for row in report.data["rows"]}
    # fp16 has 11 bits: about 5e-4 a product, a few layers deep. The base's logits or another adapter's are 0.1 and more away.
    assert all(0 < row["native_difference"] < 0.05 for row in found.values()), found
    assert report.data["base_restored"] == {variant: True}, "the target prefers w8a16 where a bundle has it"
    (taken,) = (note for note in report.notes if "QNN took" in note)
    count, nodes = map(int, re.findall(r"QNN took (\d+) of (\d+) nodes", taken)[0])
    assert count == nodes, taken
    assert not any(gate.unit == "ms" for gate in report.gates)


def test_adapters_differ_and_long_texts_are_cut_and_said(qnn: QnnExecutor, target: Target, bundle: Path) -> None:
    short = QnnExecutor(target.model_copy(update={"graph": target.graph.model_copy(update={"buckets": ("1x8",)})}))
    job = Job(
        bundle=str(bundle), variant="fp32", threads=1,
        rows=tuple(Rows(adapter=name, texts=("the film was not very good " * 2,)) for name in ("reviews", "movies")),
    )  # fmt: skip
    result = short.run(job)
    one, two = (np.array(each.logits) for each in result.rows)
    assert np.abs(one - two).max() > 0.01
    assert "2 texts were cut to the largest bucket, 1x8" in result.notes


def test_what_it_cannot_do_is_said(qnn: QnnExecutor, bundle: Path) -> None:
    with pytest.raises(InputError, match="measures no latency"):
        qnn.run(Job.model_validate({"bundle": str(bundle), "variant": "fp32", "threads": 1,
                                    "cases": [{"adapter": None, "batch": 1, "sequence": 8}]}))  # fmt: skip
    (bundle / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(DeviceError, match=r"(?s)qnn.*model\.onnx has 0 bytes, the manifest says"):
        qnn.run(Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter=None, texts=("a",)),)))
