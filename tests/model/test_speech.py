"""Speech written down by a random Whisper: what is heard equals transformers and PEFT, and what cannot be meant is refused.

The reference is ``generate`` of PEFT's unmerged model, on the frames of transformers' own feature extractor.
"""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_whisper import RATE, build_whisper_bundle, peft_whisper, sound

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.errors import BundleError, DataError, InputError
from edgepeft.pipeline import add, export, quantize, validate
from edgepeft.runtime import Runtime
from edgepeft.validate import read_language_rows

WAVES = [sound(seed, 0.25 + 0.3 * seed) for seed in range(3)]
TOKENS = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ``small`` and ``dora``, beside its ``model`` and adapters; do not change it."""
    return build_whisper_bundle(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Runtime:
    return runtime.open(bundle)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def peft_hears(bundle: Path, name: str | None, language: str | None, task: str = "transcribe") -> list[list[int]]:
    """Tokens by transformers' greedy ``generate`` over PEFT's unmerged model, without the end token and padding."""
    import torch

    reference, frames = peft_whisper(bundle, name, WAVES)
    given = {} if language is None else {"language": language}
    with torch.no_grad():
        found = reference.generate(
            input_features=frames,
            task=task,
            do_sample=False,
            max_new_tokens=TOKENS,
            max_length=None,
            **given,
        )
    end = reference.generation_config.eos_token_id
    return [[int(token) for token in row if int(token) != end] for row in found]


def tokens_of(found: list[runtime.Transcription]) -> list[list[int]]:
    """New tokens of each sound, without the end token."""
    (segments,) = zip(*(each.segments for each in found), strict=True)
    return [
        list(segment.generation.tokens[:-1] if segment.generation.finish_reason == "eos" else segment.generation.tokens)
        for segment in segments
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, "small", "dora"])
@pytest.mark.parametrize("language", ["en", None])
def test_hears_what_peft_hears(bundle: Path, model: Runtime, name: str | None, language: str | None) -> None:
    found = model.adapter(name).transcribe(WAVES, language=language, max_new_tokens=TOKENS, fallback="off")
    assert tokens_of(found) == peft_hears(bundle, name, language)
    assert [each.adapter for each in found] == [name] * len(WAVES)
    if language is not None:
        assert {each.language for each in found} == {language}


@pytest.mark.filterwarnings("ignore")
def test_translates_and_mixes_adapters_in_a_batch(bundle: Path, model: Runtime) -> None:
    found = model.transcribe(WAVES, language="de", task="translate", max_new_tokens=TOKENS, fallback="off")
    assert tokens_of(found) == peft_hears(bundle, None, "de", "translate")
    names = ["small", None, "small"]
    mixed = model.transcribe(WAVES, adapters=names, language="en", max_new_tokens=TOKENS)
    alone = [
        model.adapter(name).transcribe(wave, language="en", max_new_tokens=TOKENS)
        for name, wave in zip(names, WAVES, strict=True)
    ]
    assert tokens_of(mixed) == tokens_of(alone)
    assert [each.adapter for each in mixed] == names
    assert tokens_of(mixed)[0] != tokens_of(model.transcribe(WAVES[:1], language="en", max_new_tokens=TOKENS))[0]


def test_long_sound_is_cut_where_it_is_quiet(model: Runtime) -> None:
    """Windows of one second here; half a second of silence at 0.7 s."""
    long = np.concatenate([sound(1, 0.7), np.zeros(RATE // 4, np.float32), sound(2, 0.7)])
    found = model.transcribe(long, language="en", max_new_tokens=4)
    assert len(found.segments) == 2
    assert found.seconds == pytest.approx(len(long) / RATE)
    cut = found.segments[0].end
    assert 0.7 < cut < 0.95
    assert found.segments[1].start == cut
    assert found.segments[1].end == found.seconds
    parts = [long[: round(cut * RATE)], long[round(cut * RATE) :]]
    assert [s.generation.tokens for s in found.segments] == [
        model.transcribe(part, language="en", max_new_tokens=4).segments[0].generation.tokens for part in parts
    ]
    assert found.text == " ".join(s.generation.text.strip() for s in found.segments)


def test_other_rates_and_integers_are_the_same_sound(model: Runtime) -> None:
    pytest.importorskip("soxr")
    twice = sound(1, 0.5, rate=2 * RATE)
    whole = (twice * 20_000).astype(np.int16)
    one = model.transcribe(twice, sampling_rate=2 * RATE, language="en", max_new_tokens=4)
    assert one.seconds == pytest.approx(0.5, abs=0.01)
    assert model.transcribe(whole, sampling_rate=2 * RATE, language="en", max_new_tokens=4).seconds == one.seconds


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (np.zeros((2, 400), np.float32), {}, r"sound 1 is an array \[samples\].*one channel; found float32 of shape \[2, 400\]"),
        (np.zeros(0, np.float32), {}, r"sound 1 is an array.*shape \[0\]"),
        (np.full(400, np.nan, np.float32), {}, "sound 1 holds NaN or infinity at sample 0"),
        (np.zeros(400, np.int32), {}, "found int32"),
        (["a.wav"], {}, "sound 1 is an array"),
        ([], {}, "no sounds were given"),
        (WAVES[0], {"language": "tlh"}, "language 'tlh' is none of this model's: de, en, fr, ja"),
        (WAVES[0], {"task": "sing"}, "task must be one of transcribe, translate, found 'sing'"),
        (WAVES[0], {"sampling_rate": 0}, "sampling_rate is a whole number of samples a second, found 0"),
        (WAVES[0], {"adapters": ["small"]}, "1 adapters for one sound"),
        (WAVES[:2], {"adapters": ["small"]}, "1 adapters for 2 sounds"),
        (WAVES[0], {"draft": "prompt"}, "draft, chat, system and template arguments are for causal language models"),
        (WAVES[0], {"max_new_tokens": 400}, "400 new tokens were asked for"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_sound(model: Runtime, given: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.transcribe(given, **options)


def test_refuses_texts(model: Runtime, bundle: Path) -> None:
    with pytest.raises(InputError, match="writes down speech: call transcribe with sound"):
        model.generate("a text")
    with pytest.raises(InputError, match="task is automatic-speech-recognition"):
        model.predict("a text")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_fft": "400"}, "n_fft must be a whole number from 1 to"),
        ({"hop_length": 2**40}, "hop_length must be a whole number"),
        ({"feature_size": 128}, r"gives frames of shape \[128, 100\]; the graph takes \[80, 100\]"),
        ({"chunk_length": 30}, r"gives frames of shape \[80, 3000\]"),
        ({"do_normalize": True}, "asks for do_normalize or dither"),
    ],
)
def test_wrong_feature_settings(copy: Path, change: dict[str, Any], said: str) -> None:
    _rewrite(copy, "preprocessor_config.json", change)
    with pytest.raises(BundleError, match=said):
        runtime.open(copy).transcribe(WAVES[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suppress_tokens": [10**6]}, "suppress_tokens is 1000000, which is no token of the"),
        ({"suppress_tokens": "all"}, "suppress_tokens must be a list of tokens"),
        ({"lang_to_id": {"<|en|>": -5}}, "lang_to_id.<|en|> is -5".replace("|", r"\|")),
        ({"lang_to_id": ["en"]}, "lang_to_id must be an object"),
        ({"decoder_start_token_id": 10**6}, "decoder_start_token_id is 1000000"),
    ],
)
def test_wrong_generation_settings(copy: Path, change: dict[str, Any], said: str) -> None:
    _rewrite(copy, "generation_config.json", change)
    with pytest.raises(BundleError, match=said):
        runtime.open(copy).transcribe(WAVES[0])


def _rewrite(bundle: Path, name: str, change: dict[str, Any]) -> None:
    """Change a JSON file of a bundle, and its entry in the manifest."""
    from edgepeft.bundle import hash_file

    file = bundle / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    manifest = json.loads((bundle / "edgepeft.json").read_text())
    found = hash_file(file)
    manifest["files"][name] = {"sha256": found.sha256, "bytes": found.bytes}
    (bundle / "edgepeft.json").write_text(json.dumps(manifest))


def test_adapter_added_later_and_variants(copy: Path, bundle: Path) -> None:
    """An adapter of another rank is added, and every variant transcribes; 8 bits with zero points hear the same first token."""
    assert add(copy, "wide", bundle.with_name("wide")).changes_output
    compared = {each.adapter: each for each in validate(copy, adapters={"wide": bundle.with_name("wide")}).parity}
    assert compared["wide"].max_difference <= 1e-4
    plain = runtime.open(copy).adapter("wide").decoder(2, 1).prefill([[0], [0]])
    for variant in ("int8", "q8", "q4", "fp16"):
        quantize(copy, variant)
        rounded = runtime.open(copy, variant=variant).adapter("wide")
        logits = rounded.decoder(2, 1).prefill([[0], [0]])
        kept = np.isfinite(plain)
        assert np.array_equal(kept, np.isfinite(logits))
        error = np.abs(logits[kept] - plain[kept]).max() / np.abs(plain[kept]).max()
        assert 0 < error < (0.5 if variant == "q4" else 0.1), variant
        assert rounded.transcribe(WAVES[0], language="en", max_new_tokens=3).segments


def test_merged(bundle: Path, tmp_path: Path, model: Runtime) -> None:
    """An adapter folded into the weights hears what it does beside them."""
    (merged,) = export(
        bundle.with_name("model"), {"small": bundle.with_name("small")}, tmp_path / "merged", mode="merge"
    ).bundles
    found = runtime.open(merged.path).transcribe(WAVES, language="en", max_new_tokens=TOKENS)
    assert tokens_of(found) == tokens_of(model.adapter("small").transcribe(WAVES, language="en", max_new_tokens=TOKENS))


def save_wav(file: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1) -> Path:
    """Samples of -1 to 1 as 16-bit PCM."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.repeat(samples[:, None], channels, axis=1) * 32767).astype("<i2").tobytes())
    return file


def test_command_line(bundle: Path, tmp_path: Path, model: Runtime) -> None:
    file = save_wav(tmp_path / "a.wav", WAVES[1])
    arguments = [
        "run",
        str(bundle),
        "--adapter",
        "small",
        "--audio",
        str(file),
        "--language",
        "en",
        "--max-new-tokens",
        "5",
    ]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    expected = model.adapter("small").transcribe(runtime.read_sound(file)[0], language="en", max_new_tokens=5)
    assert found["text"] == expected.text
    assert found["segments"][0]["tokens"] == list(expected.segments[0].generation.tokens)
    plain = CliRunner().invoke(main, arguments)
    assert plain.stdout == f"{expected.text}\n"
    assert "1 of 1 windows not written to the end" in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a text"], "writes down speech and takes no texts; give files of sound with --audio FILE"),
        (["--prompt", "a text"], "--prompt is for text generation"),
        ([], "no text: give one as an argument"),
        (["--audio", "there-is-none.wav"], "cannot read there-is-none.wav: No such file"),
        (["--audio", "a.txt"], "a.txt holds no sound"),
    ],
)
def test_command_line_refuses(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("no sound")
    result = CliRunner().invoke(main, ["run", str(bundle), *arguments])
    assert result.exit_code == 2, result.output
    assert said in result.output.replace("\n", " ")


def test_word_error_rate(bundle: Path, tmp_path: Path, model: Runtime) -> None:
    """The rate is jiwer's over what the adapter writes of each file of sound."""
    jiwer = pytest.importorskip("jiwer")
    rows, written = [], []
    for place, each in enumerate(WAVES):
        file = save_wav(tmp_path / f"{place}.wav", each)
        said = model.adapter("small").transcribe(runtime.read_sound(file)[0], language="en", temperature=0).text
        rows.append({"audio": file.name, "text": f"{said} and a missing end".strip(), "language": "en"})
        written.append(said)
    data = tmp_path / "heldout.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    found = validate(bundle, data={"small": read_language_rows(data, sounds=True)}, reference=False)
    (rate,) = [each for each in found.metrics if each.metric.name == "wer"]
    assert rate.value == pytest.approx(jiwer.wer([row["text"] for row in rows], written))
    assert 0 < rate.value <= 1
    with pytest.raises(InputError, match="which these rows are not for"):
        validate(bundle, data={"small": read_language_rows(data)}, reference=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "words"}, "expected 'audio' and 'text', this row has: text"),
        ({"audio": "none.wav", "text": "words"}, "there is no file of sound at"),
        ({"audio": "a.wav", "text": " "}, "'text' must be a text"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: dict[str, str], said: str) -> None:
    save_wav(tmp_path / "a.wav", WAVES[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=said):
        read_language_rows(tmp_path / "rows.jsonl", sounds=True)


def test_parity_and_card(bundle: Path) -> None:
    """``validate`` compares both adapters with PEFT; the card shows how to transcribe."""
    from edgepeft.hub.card import model_card

    found = validate(bundle)
    assert found.passed
    assert {each.adapter for each in found.parity} == {"small", "dora"}
    assert ".transcribe(wave, sampling_rate=rate)" in model_card(read_bundle(bundle), "me/speech")


def test_other_speech_models_are_refused(tmp_path: Path) -> None:
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

    config = Speech2TextConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, conv_channels=16,
    )  # fmt: skip
    Speech2TextForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match=r"speech is written down by models of Whisper's architecture"):
        export(tmp_path / "model", {}, tmp_path / "bundle")


def test_adapters_are_saved_for_the_task(tmp_path: Path, bundle: Path) -> None:
    """A checkpoint with PEFT's task type of encoder-decoders is for speech over Whisper."""
    folder = shutil.copytree(bundle.with_name("small"), tmp_path / "small")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "SEQ_2_SEQ_LM"}))
    (done,) = export(bundle.with_name("model"), {"small": folder}, tmp_path / "bundle").bundles
    assert done.manifest.task == "automatic-speech-recognition"
    assert done.manifest.hears
