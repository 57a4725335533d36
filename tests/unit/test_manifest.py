"""``edgepeft.json``: strict reading, round trip, and the schema's keys pinned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepeft.bundle import (
    AdapterEntry,
    BaseEntry,
    FileEntry,
    GraphInput,
    LinearSlot,
    Manifest,
    OverrideSlot,
    SlotPart,
    SlotTable,
    Variant,
    check_name,
    dump_manifest,
    json_schema,
    parse_manifest,
)
from edgepeft.errors import ManifestError

HASH = "ab" * 32


def manifest() -> Manifest:
    linear = LinearSlot(
        name="enc.q_k", in_features=4, out_features=6, a="enc.q_k.lora_A", b="enc.q_k.lora_B", rank="enc.q_k.rank",
        parts=(SlotPart(site="enc.q", offset=0, size=3), SlotPart(site="enc.k", offset=3, size=3)), weight="packed",
    )  # fmt: skip
    head = OverrideSlot(
        parameter="head.weight", tensor="head.weight.slot", shape=("adapter_batch", 4, "labels"), layout="matmul",
        per_row=True,
    )  # fmt: skip
    table = SlotTable(linear=(linear,), overrides=(head,))
    file = FileEntry(sha256=HASH, bytes=3)
    return Manifest(
        task="text-classification", mode="swap",
        base=BaseEntry(source="m", architecture="M", model_type="m", captured_by="traced", identity=HASH, parameters=9),
        inputs=(GraphInput(name="input_ids", dtype="int64", shape=("batch_size", "sequence_length")),),
        outputs=(GraphInput(name="logits", dtype="float", shape=("batch_size", "labels")),),
        labels=("a", "b"), slots=table,
        variants={"fp32": Variant(file="onnx/model.onnx", data=("onnx/model.onnx_data",), recipe="fp32", quantized_share=0)},
        adapters={
            "x": AdapterEntry(
                onnx_adapter="adapters/x.onnx_adapter", onnx="adapters/x.onnx", method="LoRA", source="s",
                base_identity=HASH, slots_hash=table.hash, tensors={"enc.q_k.lora_A": (1, 4, 2)}, ranks={"enc.q_k": 2}, bytes=3,
            )
        },
        files=dict.fromkeys(("onnx/model.onnx", "onnx/model.onnx_data", "adapters/x.onnx_adapter", "adapters/x.onnx"), file),
    )  # fmt: skip


def raw() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(dump_manifest(manifest()))
    return value


def test_round_trip() -> None:
    assert parse_manifest(dump_manifest(manifest()), "x") == manifest()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "onnx/../../x", "..\\x", "C:\\x", "C:/x", "a\\b", ""])
@pytest.mark.parametrize("place", ["variant", "data", "adapter", "files"])
def test_paths_that_leave_the_folder(path: str, place: str) -> None:
    value = raw()
    value["files"][path] = {"sha256": HASH, "bytes": 1}
    if place == "variant":
        value["variants"]["fp32"]["file"] = path
    if place == "data":
        value["variants"]["fp32"]["data"] = [path]
    if place == "adapter":
        value["adapters"]["x"]["onnx_adapter"] = path
    with pytest.raises(ManifestError, match="leaves the bundle folder"):
        parse_manifest(json.dumps(value), "here/edgepeft.json")


def change(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    *parents, last = path.split("/")
    place = value
    for parent in parents:
        place = place[parent]
    place[last] = new
    return value


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        ("surprise", 1, "surprise: Extra inputs"),
        ("base/surprise", 1, "base.surprise"),
        ("slots/surprise", 1, "slots.surprise"),
        ("base/identity", "xyz", "base.identity"),
        ("mode", "both", "mode"),
        ("variants", {}, "at least one variant"),
        ("variants/fp32/quantized_share", 1.5, "quantized_share"),
        ("variants/fp32/file", "onnx/other.onnx", "other.onnx is not listed"),
        ("adapters/x/onnx", "adapters/other.onnx", "other.onnx is not listed"),
        ("files/onnx~model.onnx", {"sha256": "0", "bytes": 1}, "sha256"),
        ("schema_version", 2, "schema_version 2; this edgepeft reads version 1"),
        ("schema_version", "1", "schema_version '1'"),
        ("schema_version", None, "schema_version None"),
    ],
)
def test_what_does_not_fit(path: str, new: Any, words: str) -> None:
    value = raw()
    if "~" in path:
        value["files"]["onnx/model.onnx"] = new
    else:
        change(value, path, new)
    with pytest.raises(ManifestError, match=words) as found:
        parse_manifest(json.dumps(value), "here/edgepeft.json")
    assert "here/edgepeft.json" in str(found.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "\x00"])
def test_not_a_manifest(text: str) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(text, "x")


@pytest.mark.parametrize("name", ["a", "A1", "reviews-v2.1_x", "0", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "é", "x" * 65, "a\n", "a:b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        check_name(name)
    value = raw()
    value["adapters"][name] = value["adapters"].pop("x")
    with pytest.raises(ManifestError, match="cannot be a name"):
        parse_manifest(json.dumps(value), "x")


def test_slot_hash_is_what_an_adapter_must_fit() -> None:
    table = manifest().slots
    linear = table.linear[0]
    same = table.model_copy(update={"linear": (linear.model_copy(update={"weight": "renamed"}),)})
    other = table.model_copy(update={"linear": (linear.model_copy(update={"in_features": 5}),)})
    moved = table.model_copy(update={"linear": (linear.model_copy(update={"parts": linear.parts[:1]}),)})
    assert same.hash == table.hash
    assert len({table.hash, other.hash, moved.hash, SlotTable().hash}) == 4


def test_schema_keys_are_pinned() -> None:
    """A key that comes or goes is a change of the format: raise ``SCHEMA_VERSION`` or keep it optional."""
    schema = json_schema()
    models = {"Manifest": schema, **schema["$defs"]}
    assert {name: sorted(model["properties"]) for name, model in models.items()} == {
        "Manifest": sorted(
            [
                "activation",
                "adapters",
                "base",
                "embedding",
                "files",
                "inputs",
                "labels",
                "max_length",
                "merged",
                "mode",
                "outputs",
                "problem_type",
                "provenance",
                "rope_switch",
                "schema_version",
                "slot_defaults",
                "slots",
                "task",
                "tasks",
                "variants",
            ]
        ),
        "TaskEntry": ["activation", "fresh", "labels", "names", "outputs", "problem_type"],
        "AdapterEntry": sorted(
            [
                "base_identity",
                "bytes",
                "embedding",
                "form",
                "labels",
                "method",
                "onnx",
                "onnx_adapter",
                "activation",
                "per_row",
                "prefix_length",
                "problem_type",
                "ranks",
                "refits",
                "residual",
                "scalable",
                "slots_hash",
                "source",
                "task",
                "tensors",
                "text",
            ]
        ),
        "Embedding": sorted(
            ["graph", "dimension", "modules", "prompts", "default_prompt", "include_prompt", "max_length"]
        ),
        "BaseEntry": sorted(
            [
                "architecture",
                "captured_by",
                "fresh",
                "layers",
                "identity",
                "model_type",
                "parameters",
                "source",
            ]
        ),
        "Refit": ["bytes", "loss", "onnx", "onnx_adapter"],
        "FileEntry": ["bytes", "sha256"],
        "GraphInput": ["dtype", "name", "optional", "shape"],
        "LinearSlot": sorted(
            [
                "a",
                "b",
                "in_features",
                "in_gain",
                "name",
                "out_features",
                "out_gain",
                "parts",
                "rank",
                "transposed",
                "per_row",
                "weight",
            ]
        ),
        "OverrideSlot": ["layout", "parameter", "per_row", "shape", "tensor"],
        "SlotPart": ["of", "offset", "site", "size", "start", "step"],
        "ConvSlot": [
            "a",
            "b",
            "groups",
            "in_channels",
            "kernel",
            "name",
            "out_channels",
            "out_gain",
            "per_row",
            "rank",
            "weight",
        ],
        "EmbeddingSlot": ["a", "b", "name", "per_row", "rank", "rows", "weight", "width"],
        "SlotTable": ["convolutions", "embeddings", "linear", "overrides"],
        "Variant": [
            "cache_dtype",
            "data",
            "decoder_file",
            "decoder_input_file",
            "file",
            "half",
            "input_file",
            "input_unpacked",
            "quantized_share",
            "recipe",
            "slots",
        ],
    }
    assert all(model.get("additionalProperties") is False for model in models.values())


def test_a_part_of_a_site_says_which_outputs_it_has() -> None:
    """Whole sites are written as they always were, so that the hashes of older bundles hold."""
    whole = SlotPart(site="x", offset=0, size=6)
    assert whole.model_dump() == {"site": "x", "offset": 0, "size": 6}
    assert (whole.outputs, whole.features) == (slice(0, 6, 1), 6)
    half = SlotPart(site="x", offset=0, size=6, start=1, step=2, of=12)
    assert SlotPart.model_validate(half.model_dump()) == half
    assert list(range(12))[half.outputs] == [1, 3, 5, 7, 9, 11]
    slot = {"name": "x", "in_features": 4, "out_features": 6, "a": "A", "b": "B", "rank": "r", "weight": "w"}
    one, other = (SlotTable(linear=(LinearSlot(**slot, parts=(part,)),)) for part in (whole, half))
    assert one.hash != other.hash
    assert [p for _, p in other.site("x")] == [half]
    # What the browser's module must compute too: see "the slot signature names the outputs" in targets/web/test.
    dumped = json.dumps([half.model_dump()], sort_keys=True)
    assert dumped == '[{"of": 12, "offset": 0, "site": "x", "size": 6, "start": 1, "step": 2}]'
