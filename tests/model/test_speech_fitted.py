"""Speech in 4 bits, fitted to sound: both graphs by what they hear and write, less lost than without data, and what is refused.

The reference is the fp32 variant's logits over sounds that nothing was fitted to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal_bundle
from click.testing import CliRunner
from test_speech import save_wav
from tiny_whisper import build_whisper_bundle, sound

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError, UnknownAdapterError
from edgepeft.pipeline import Goal, plan_quantize, quantize
from edgepeft.pipeline._calibration_sound import AnsweredSound, on_disk, sound_runs
from edgepeft.pipeline._quality_crossed import measure_answers
from edgepeft.validate import read_language_rows
from edgepeft.validate.language_rows import LanguageRow, LanguageRows

WORDS = ["a", "good", "film", "the", "book", "was", "bad"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ``small`` and ``dora``, beside its ``model`` and adapters; do not change it."""
    return build_whisper_bundle(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's bundle; do not change it."""
    return build_causal_bundle(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sounds; of every other one it is told what is said."""
    folder = tmp_path_factory.mktemp("sounds")
    lines: list[dict[str, str]] = []
    for seed in range(10):
        file = save_wav(folder / f"{seed}.wav", sound(seed, 0.4 + 0.05 * seed))
        told = {"text": " ".join(WORDS[: 2 + seed % 5])} if seed % 2 else {}
        lines.append({"audio": file.name, "language": "en", **told})
    data = folder / "clips.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    return data


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def read(rows: Path) -> LanguageRows:
    return read_language_rows(rows, sounds=True, answered=False)


def test_both_graphs_are_fitted(copy: Path, rows: Path, bundle: Path, tmp_path: Path) -> None:
    """Each adapter on; it loses less than the least squared error on sounds kept apart, and the table says how much."""
    done = quantize(copy, "q4", data={"*": read(rows)})
    assert done.method == "gptq"
    assert done.bundle.manifest.provenance["calibration"]["q4"]["texts"] == {"*": 8, "small": 8, "dora": 8}
    entry = done.bundle.manifest.variants["q4"]
    for file in (entry.file, entry.decoder_file):
        nodes = [node for node in ir.load(copy / str(file)).graph if node.op_type == "MatMulNBits"]
        assert nodes
        assert all(len(node.inputs) > 5 for node in nodes), "every layer of both graphs has its bias"
    assert [row.adapter for row in done.quality] == [None, "small", "dora"]
    answers = sound_runs(read_bundle(bundle), {"*": read(rows)}, rows=64).answers
    assert answers is not None
    assert [sum(len(each.answer) for each in own) for own in answers.values()] == [row.tokens for row in done.quality]
    nearest = Path(shutil.copytree(bundle, tmp_path / "mse"))
    assert quantize(nearest, "q4").method == "mse"
    lost = [np.mean([row.divergence for row in measure_answers(each, "q4", answers)]) for each in (copy, nearest)]
    assert lost[0] == pytest.approx(np.mean([row.divergence for row in done.quality]), rel=1e-6)
    assert 0 < lost[0] < 0.9 * lost[1]
    assert not list(copy.parent.glob(".*")), "what decoders read was on disk, and is gone"


def test_what_is_run(bundle: Path, rows: Path) -> None:
    """The decoder's logits over all of an answer at once are those token by token; answers are the told ones, or the model's."""
    opened = read_bundle(bundle)
    runs = sound_runs(opened, {"*": read(rows)}, rows=10)
    assert len(runs.feeds) == len(runs.decoder) == 24
    with runtime.open(bundle) as model:
        writer = model.base.generator
        started = writer.speech.before("en", "transcribe")  # type: ignore[attr-defined] # it transcribes
        given = read(rows).rows
        used = [given[place] for place in range(10) if place not in (4, 9)]
        for row, feeds in zip(used, runs.decoder[:8], strict=True):
            tokens = feeds["input_ids"][0].tolist()
            assert tokens[: len(started)] == started
            wave, _ = runtime.read_sound(str(row.prompt))
            heard = model.transcribe(wave, language="en", temperature=0).segments[0].generation
            told = writer.tokens.encode(f" {row.answer}", special=False)
            expected = told if row.answer else heard.tokens[:-1]
            assert tokens[len(started) :] == list(expected)
        assert runs.answers is not None
        (one, *_) = runs.answers[None]
        assert isinstance(one, AnsweredSound)
        _, fed = one.feeds(model.base)
        (whole,) = writer.graphs.decoder_session.run(["logits"], fed)
        steps = np.array(list(one.steps(model.base)))
    assert np.abs(whole[0, len(one.before) - 1 :] - steps).max() <= 1e-4 * np.abs(steps).max()


def test_long_sound_is_many_windows(bundle: Path, tmp_path: Path) -> None:
    """One file of six windows of a second; what is said in it belongs to none of them, so the model writes."""
    save_wav(tmp_path / "long.wav", sound(3, 5.5))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": "long.wav", "text": "a good film"}))
    runs = sound_runs(read_bundle(bundle), {"*": read(tmp_path / "rows.jsonl")}, rows=64)
    assert sum(runs.counts.values()) == len(runs.feeds)
    assert runs.counts["*"] >= 4
    frames = [each["input_features"] for each in runs.feeds[: runs.counts["*"]]]
    assert len({each.tobytes() for each in frames}) == len(frames)


def test_arrays_on_disk(tmp_path: Path) -> None:
    arrays = {
        "ids": np.arange(3)[None], "empty": np.zeros((1, 2, 0, 4), np.float32),
        "one": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32), "two": np.ones((1, 5), np.float32),
    }  # fmt: skip
    found = on_disk(arrays, tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].shape == array.shape
        assert isinstance(found[name], np.memmap) == (name in {"one", "two"})
    assert not list(tmp_path.iterdir())


def test_bits_for_a_size(copy: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of both graphs compete for one size."""
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    data = {"*": read(rows)}
    even = quantize(copy, "q4", data=data, head_bits=4, measure=False)
    done = quantize(copy, "q4", data=data, goal=Goal(bytes=even.bytes_after + 7000), replace=True)
    assert done.front is not None
    assert even.bytes_after < done.bytes_after <= even.bytes_after + 7000
    assert {name.partition("/")[0] for name in done.front.sensitivity} == {"encoder", "decoder"}


def test_the_head_has_8_bits(bundle: Path, rows: Path) -> None:
    """By default, since it is most of the decoder's error; not where bits are asked for, nor without data."""
    data = {"*": read(rows)}
    assert "; 8 bits for the head" in plan_quantize(bundle, "q4", data=data).recipe
    assert "; 4 bits for the head" in plan_quantize(bundle, "q4", data=data, head_bits=4).recipe
    sizes = [plan_quantize(bundle, "q4", data=data, head_bits=bits).bytes for bits in (None, 8, 4)]
    assert sizes[0] == sizes[1] > sizes[2]
    assert plan_quantize(bundle, "q4", data=data, layer_bits=8).recipe.endswith("; 8 bits for linear layers")
    assert "head" not in plan_quantize(bundle, "q4").recipe


@pytest.mark.parametrize("variant", ["fp16", pytest.param("q4f16", marks=pytest.mark.slow)])
def test_halves_are_measured_on_sound(copy: Path, rows: Path, variant: str) -> None:
    done = quantize(copy, variant, data={"*": read(rows)})
    assert done.bundle.manifest.provenance["calibration"][variant]["texts"] == {"*": 8, "small": 3, "dora": 3}


def test_kinds_of_data(copy: Path, rows: Path, tmp_path: Path) -> None:
    texts = Examples(("a good film",), None)
    with pytest.raises(InputError, match=r"these rows are texts, and .* writes down speech.*column 'audio'"):
        quantize(copy, "q4", data={"*": texts})
    with pytest.raises(UnknownAdapterError, match="has no adapter 'other'; it has: small, dora"):
        quantize(copy, "q4", data={"other": read(rows)})
    with pytest.raises(InputError, match=r"q8 measures nothing beforehand: leave the data out"):
        quantize(copy, "q8", data={"*": read(rows)})
    with pytest.raises(InputError, match=r"no sounds are given: --data '\*=FILE'. --method mse needs no data"):
        quantize(copy, "q4", method="gptq")
    with pytest.raises(InputError, match="activations are measured for bases that take a text"):
        quantize(copy, "w8a16", data={"*": read(rows)})
    assert read_bundle(copy).manifest.variants.keys() == {"fp32"}


def test_sounds_for_a_base_that_reads_texts(text_bundle: Path, rows: Path) -> None:
    with pytest.raises(
        InputError, match=r"these rows are files of sound, and .* is for text-generation, which is run on"
    ):
        quantize(text_bundle, "q4", data={"*": read(rows)})


def test_wrong_sounds(copy: Path, tmp_path: Path) -> None:
    """The row is named, and nothing was written."""

    def refused(row: dict[str, Any]) -> str:
        save_wav(tmp_path / "a.wav", sound(0, 0.4))
        (tmp_path / "b.wav").write_bytes(b"RIFF no sound")
        good = {"audio": "a.wav", "text": "a good film"}
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join(map(json.dumps, [good, row])))
        with pytest.raises(DataError) as found:
            quantize(copy, "q4", data={"*": read(data)})
        return str(found.value)

    assert "rows.jsonl, line 2: " in (said := refused({"audio": "b.wav"}))
    assert "b.wav holds no sound" in said
    assert "line 2: there is no file of sound at" in refused({"audio": "none.wav"})
    assert "line 2: speech is fitted to files of sound; expected 'audio', this row has: text" in refused(
        {"text": "words"}
    )
    assert "line 2: 'text' must be a text, found 3" in refused({"audio": "a.wav", "text": 3})
    assert "line 2: language 'tlh' is none of this model's: de, en, fr, ja" in refused(
        {"audio": "a.wav", "language": "tlh"}
    )
    assert read_bundle(copy).manifest.variants.keys() == {"fp32"}


def test_command_line(copy: Path, rows: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["quantize", str(copy), "--variant", "q4", *arguments])

    planned = run("--data", f"*={rows}", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "4 bits in blocks of 32: GPTQ" in planned.output
    done = run("--data", f"*={rows}")
    assert done.exit_code == 0, done.output
    assert "calibrating on the given sounds: runs 8 of the base, 8 of small, 8 of dora" in done.stderr
    assert "Against fp32, on sounds kept apart" in done.output
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "a good film"}))
    for arguments, said in (
        (("--data", f"*={texts}"), "line 1: speech is fitted to files of sound; expected 'audio', this row has: text"),
        (("--data", f"*={rows}", "--pair", "other"), "'other' is to hold second texts, and this is sound"),
        (
            ("--data", f"*={rows}", "--refit"),
            "writes down speech, and adapters are fitted to rounded weights over texts only",
        ),
    ):
        refused = run(*arguments, "--replace")
        assert refused.exit_code == 2, refused.output
        assert said in " ".join(refused.output.split())


def test_command_line_of_other_bundles(text_bundle: Path, rows: Path) -> None:
    refused = CliRunner().invoke(main, ["quantize", str(text_bundle), "--variant", "q4", "--data", f"*={rows}"])
    assert refused.exit_code == 2, refused.output
    assert "line 1: no column 'text'; this row has: audio, language" in " ".join(refused.output.split())


def test_what_is_said_is_cut_to_the_models_places(bundle: Path, tmp_path: Path) -> None:
    save_wav(tmp_path / "a.wav", sound(0, 0.4))
    row = LanguageRow(str(tmp_path / "a.wav"), " ".join(WORDS * 10), "here", "en")
    opened = read_bundle(bundle)
    runs = sound_runs(opened, {"*": LanguageRows((row,) * 2, sounds=True)}, rows=2)
    # The last token is written, and not read.
    assert {each["input_ids"].shape for each in runs.decoder} == {(1, (opened.manifest.max_length or 0) - 1)}
    assert runs.counted_of("file") == (45,) * 3, "places of 20 ms: the sound, and half a second behind it"
    assert runs.counted_of("decoder_file") is None
