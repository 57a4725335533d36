"""The reader of CTranslate2's model.bin and the names of Whisper's weights, on a file written here."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.demo.ctranslate2_file import TYPES, read_arrays
from edgepeft.demo.whisper import _tokenizer, renamed
from edgepeft.errors import AssetError


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def content(arrays: dict[str, np.ndarray], *, version: int = 6, spec: str = "WhisperSpec", aliases: Any = ()) -> bytes:
    """A model.bin as ctranslate2's ``ModelSpec._serialize`` writes it."""
    parts = [struct.pack("<I", version), string(spec), struct.pack("<II", 3, len(arrays))]
    for name, values in arrays.items():
        kind = next(number for number, form in TYPES.items() if np.dtype(form) == values.dtype)
        parts += [string(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)]
        parts += [struct.pack("<BI", kind, values.nbytes), values.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [string(second) + string(first) for second, first in aliases]
    return b"".join(parts)


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "odd": rng.integers(-9, 9, 3, dtype=np.int8),  # what follows is not aligned
        "half/weight": rng.standard_normal((4, 2, 3)).astype(np.float16),
        "heads": np.int16(8).reshape(()),
        "full": rng.standard_normal((2, 2)).astype(np.float32),
    }


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_array_is_read_as_it_was_written(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(content(arrays, aliases=[("other", "full")]))
    read = read_arrays(file, "WhisperSpec")
    assert list(read) == [*arrays, "other"]
    for name, values in arrays.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)
    np.testing.assert_array_equal(read["other"], arrays["full"])


def test_what_is_no_such_file_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    good, file = content(arrays), tmp_path / "model.bin"
    for wrong, message in (
        (content(arrays, version=5), "version 5 .* expected version 6"),
        (content(arrays, spec="TransformerSpec"), "'TransformerSpec'; expected version 6, 'WhisperSpec'"),
        (good[:-30], "cut short"),
        (good + b"\0\0", "2 bytes follow"),
        (content(arrays, aliases=[("other", "gone")]), "'other' is a second name of 'gone'"),
        (good.replace(struct.pack("<BI", 4, 48), struct.pack("<BI", 5, 48)), "'half/weight' is of type 5"),
        (good.replace(struct.pack("<I", 3) + struct.pack("<BI", 4, 48), struct.pack("<IBI", 2, 4, 48)), "24 numbers"),
        (good.replace(b"WhisperSpec\0", b"WhisperSpec!"), "does not end with a zero byte"),
    ):
        file.write_bytes(wrong)
        with pytest.raises(AssetError, match=message):
            read_arrays(file, "WhisperSpec")


def whisper_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def new(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    bias = np.concatenate([new(4), np.zeros(4, np.float32), new(4)])
    return {
        "encoder/conv1/weight": new(4, 80, 3),
        "encoder/num_heads": np.int16(2).reshape(()),
        "decoder/embeddings/weight": (embeddings := new(9, 4)),
        "decoder/projection/weight": embeddings,
        "decoder/layer_norm/gamma": new(4),
        "decoder/layer_11/self_attention/linear_0/weight": new(12, 4),
        "decoder/layer_11/self_attention/linear_0/bias": bias,
        "decoder/layer_11/attention/linear_1/weight": new(8, 4),
        "decoder/layer_11/attention/linear_1/bias": np.concatenate([np.zeros(4, np.float32), new(4)]),
        "decoder/layer_11/ffn/layer_norm/beta": new(4),
    }


def test_joined_projections_come_apart_under_their_names(rng: np.random.Generator) -> None:
    arrays = whisper_arrays(rng)
    weights = renamed(arrays)
    layer = "model.decoder.layers.11"
    assert set(weights) == {
        "model.encoder.conv1.weight",
        "model.decoder.embed_tokens.weight",
        "proj_out.weight",
        "model.decoder.layer_norm.weight",
        f"{layer}.final_layer_norm.bias",
        *(f"{layer}.self_attn.{name}" for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
        *(f"{layer}.self_attn.{name}" for name in ("q_proj.bias", "v_proj.bias")),
        *(f"{layer}.encoder_attn.{name}" for name in ("k_proj.weight", "v_proj.weight", "v_proj.bias")),
    }
    joined = arrays["decoder/layer_11/self_attention/linear_0/weight"]
    for number, name in enumerate("qkv"):
        np.testing.assert_array_equal(weights[f"{layer}.self_attn.{name}_proj.weight"], joined[4 * number :][:4])
    crossed = arrays["decoder/layer_11/attention/linear_1/weight"]
    np.testing.assert_array_equal(weights[f"{layer}.encoder_attn.v_proj.weight"], crossed[4:])


def test_a_bias_of_the_key_and_another_output_matrix_are_refused(rng: np.random.Generator) -> None:
    arrays = whisper_arrays(rng)
    arrays["decoder/layer_11/self_attention/linear_0/bias"][5] = 1
    with pytest.raises(AssetError, match=r"layer_11/self_attention/linear_0/bias: the bias of the key is not zero"):
        renamed(arrays)
    arrays = whisper_arrays(rng)
    arrays["decoder/projection/weight"] = arrays["decoder/projection/weight"] + 1
    with pytest.raises(AssetError, match="differs from the embeddings"):
        renamed(arrays)


def test_a_tokenizer_with_a_gap_in_its_merges_is_refused(tmp_path: Path) -> None:
    vocabulary = {chr(300 + i): i for i in range(256)} | {"Ġt": 256, "Ġa": 257, "Ġth": 258}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": vocabulary, "merges": ["Ġ a", "Ġt x"]}}))
    with pytest.raises(AssetError, match="merge 2 is 'Ġt x', which does not make token 258"):
        _tokenizer(file, 9)
