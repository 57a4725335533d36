"""A checkpoint's tensors read in place: what they are, and what is said where a file is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepeft.base.streamed.checkpoint import open_checkpoint, widen
from edgepeft.errors import InputError


def write(folder: Path, files: dict[str, dict[str, np.ndarray]], *, index: bool = True) -> Path:
    """Shards of bfloat16 tensors with an index, as transformers saves them."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    for file, arrays in files.items():
        save_file({name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}, folder / file)
    if index:
        where = {name: file for file, arrays in files.items() for name in arrays}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal((5, 7)).astype(np.float32) for name in ("a", "b", "c")}


@pytest.fixture
def sharded(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    return write(
        tmp_path / "model", {"one.safetensors": {n: arrays[n] for n in "ab"}, "two.safetensors": {"c": arrays["c"]}}
    )


def test_numbers_are_those_that_torch_reads(sharded: Path, arrays: dict[str, np.ndarray]) -> None:
    import torch

    found = open_checkpoint(sharded)
    assert list(found.arrays) == ["a", "b", "c"]
    assert found.bytes == 3 * 35 * 2
    for name, array in arrays.items():
        assert widen(found.arrays[name]).tobytes() == torch.from_numpy(array).bfloat16().float().numpy().tobytes()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_other_floats_are_widened(tmp_path: Path, kind: type) -> None:
    from safetensors.numpy import save_file

    array = np.random.default_rng(0).standard_normal((3, 4)).astype(kind)
    save_file({"a": array}, tmp_path / "model.safetensors")
    assert np.array_equal(widen(open_checkpoint(tmp_path).arrays["a"]), array.astype(np.float32))


def test_missing_shard(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks two\.safetensors, the shard that .* lists for 1 of 3 tensors"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("left", [0, 4, 30, -1])
def test_truncated_shard(sharded: Path, left: int) -> None:
    """Cut inside the header's length, inside the header, and by the last byte of the last tensor."""
    path = sharded / "two.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"two\.safetensors is (not a readable safetensors file|truncated)"):
        open_checkpoint(sharded)


def test_shard_that_disagrees_with_the_index(sharded: Path, arrays: dict[str, np.ndarray]) -> None:
    write(sharded, {"two.safetensors": {"d": arrays["a"]}}, index=False)
    with pytest.raises(InputError, match=r"two\.safetensors does not hold c, which .* lists there"):
        open_checkpoint(sharded)
    write(sharded, {"two.safetensors": {"c": arrays["a"], "d": arrays["a"]}}, index=False)
    with pytest.raises(InputError, match=r"two\.safetensors holds d, which .* does not list there"):
        open_checkpoint(sharded)


def test_index_that_leaves_the_folder(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(InputError, match="which is no file of this folder"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="is not a readable index"):
        open_checkpoint(sharded)


def test_float_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"a is stored as F8_E4M3; of floats F32, F16, BF16 are read"):
        open_checkpoint(tmp_path)


def test_header_whose_places_do_not_fit(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(InputError, match=r"a \[2, 2\] does not take 12 bytes as F32"):
        open_checkpoint(tmp_path)
