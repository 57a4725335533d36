"""Timestamps and second tries of a random Whisper: tokens, likelihoods and silence are transformers' and PEFT's.

The reference is ``generate`` of PEFT's unmerged model, with timestamps. One call of it: where a window ends in mid-speech,
transformers goes on with the frames behind, padded with zeros, and this runtime with the sound behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_numbers import break_adapter
from click.testing import CliRunner
from test_speech import save_wav
from tiny_whisper import RATE, build_whisper_bundle, peft_whisper, sound, tokens

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.errors import InputError, NonFiniteError
from edgepeft.runtime import Runtime, Transcription, transcription
from edgepeft.runtime.generation import fallback as rules
from edgepeft.runtime.generation.hearing import Heard
from edgepeft.runtime.generation.timestamps import Part

WAVES = [sound(seed, 0.25 + 0.3 * seed) for seed in range(3)]
TOKENS = 16
BEGIN = tokens(timed=True)["<|0.00|>"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with timestamps, ``small`` and ``dora``, beside its ``model`` and adapters; do not change it."""
    return build_whisper_bundle(tmp_path_factory.mktemp("timed"), timed=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Runtime:
    return runtime.open(bundle)


@pytest.fixture(scope="module")
def silent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without timestamps; do not change it."""
    return build_whisper_bundle(tmp_path_factory.mktemp("plain"))


def peft_hears(
    bundle: Path, name: str | None, language: str | None
) -> tuple[list[list[int]], list[float], list[float]]:
    """Tokens with the end token, their mean log-probabilities, and the probabilities of silence."""
    import torch

    reference, frames = peft_whisper(bundle, name, WAVES)
    settings = reference.generation_config
    with torch.no_grad():
        found = reference.generate(
            input_features=frames, task="transcribe", do_sample=False, max_new_tokens=TOKENS, max_length=None,
            return_timestamps=True, force_unique_generate_call=True, return_dict_in_generate=True, output_scores=True,
            **({} if language is None else {"language": language}),
        )  # fmt: skip
        start = torch.full((len(WAVES), 1), settings.decoder_start_token_id)
        begun = reference(input_features=frames, decoder_input_ids=start).logits[:, 0].softmax(dim=-1)
    written, likelihoods = [], []
    scores = torch.stack(found.scores, dim=1).float().log_softmax(dim=-1)
    for row, sequence in enumerate(found.sequences[:, 3:].tolist()):
        count = sequence.index(settings.eos_token_id) + 1 if settings.eos_token_id in sequence else len(sequence)
        written.append(sequence[:count])
        likelihoods.append(float(np.mean([scores[row, i, token] for i, token in enumerate(sequence[:count])])))
    return written, likelihoods, begun[:, tokens(timed=True)["<|nospeech|>"]].tolist()


def written_of(found: Sequence[Transcription]) -> list[list[int]]:
    """What the decoder wrote of each sound's one window."""
    return [list(each.segments[0].generation.tokens) for each in found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, "small", "dora"])
@pytest.mark.parametrize("language", ["en", None])
def test_writes_the_timestamps_that_peft_writes(
    bundle: Path, model: Runtime, name: str | None, language: str | None
) -> None:
    view = model.adapter(name)
    cut = [wave[:RATE] for wave in WAVES]
    found = view.transcribe(cut, language=language, timestamps=True, fallback="off", max_new_tokens=TOKENS)
    expected, likelihoods, silence = peft_hears(bundle, name, language)
    assert written_of(found) == expected
    assert {token >= BEGIN for row in expected for token in row} == {True, False}
    sure = [each.segments[0].confidence for each in found]
    # Whisper's 12 sums over 4 heads in float32, in another order.
    assert [each.mean_logprob for each in sure] == pytest.approx(likelihoods, abs=1e-4)
    assert [each.no_speech for each in sure] == pytest.approx(silence, rel=1e-3)


def test_segments_are_what_stands_between_timestamps(model: Runtime) -> None:
    found = model.transcribe(WAVES, language="en", timestamps=True, fallback="off", max_new_tokens=28)
    assert max(len(each.segments) for each in found) > 1
    for each, wave in zip(found, WAVES, strict=True):
        times = [time for segment in each.segments for time in (segment.start, segment.end)]
        assert times == sorted(times)
        assert times[-1] <= len(wave) / RATE
        assert "<|" not in each.text
        for segment in each.segments:
            assert all(token < BEGIN for token in segment.tokens)
            assert "<|" not in segment.text + segment.generation.text
            assert segment.as_dict()["text"] == segment.text
        words = " ".join(segment.text for segment in each.segments)
        assert words.split() == each.text.split()


def test_without_timestamps_no_mark_is_text(model: Runtime) -> None:
    """A model that writes timestamps though it is asked for none: what is read has none, as before."""
    found = model.transcribe(WAVES, language="en", fallback="off", max_new_tokens=28)
    assert any(token >= BEGIN for row in written_of(found) for token in row)
    assert all("<|" not in each.text for each in found)
    assert all(len(each.segments) == 1 for each in found)


def heard(model: Runtime, parts: Sequence[tuple[float, float | None, str]], rest: float | None) -> Heard:
    """A window as a model could write it, times in seconds behind its begin."""
    given = model.transcribe(WAVES[0], language="en", fallback="off", max_new_tokens=2).segments[0]
    text = "".join(f" {part[2]}" for part in parts)
    whole = replace(given.generation, text=text)
    own = [Part(int(a * RATE), None if b is None else int(b * RATE), (1,), f" {text}") for a, b, text in parts]
    return Heard(whole, "en", given.confidence, tuple(own), None if rest is None else int(rest * RATE))


def test_the_next_window_begins_where_speech_was_left(model: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one second; the first of 2.5 s ends in the middle of what begins at 0.6 s."""
    answers = iter(
        [
            heard(model, [(0.0, 0.5, "one")], 0.6),
            heard(model, [(0.1, 0.4, "two"), (0.5, None, "three")], None),
            heard(model, [(0.0, 0.3, "four"), (0.4, 9.0, "five")], 0.85),  # nothing is said in what is left
        ]
    )
    begun = []

    class Scripted:
        def __init__(self, writer: Any, waves: Sequence[np.ndarray], *others: Any) -> None:
            begun.append([len(wave) for wave in waves])

        def results(self) -> list[Heard]:
            return [next(answers)]

    monkeypatch.setattr(transcription, "Hearing", Scripted)
    found = model.transcribe(np.ones(5 * RATE // 2, np.float32), language="en", timestamps=True)
    assert begun == [[RATE], [RATE], [RATE * 9 // 10]]
    assert [(round(s.start, 2), round(s.end, 2), s.text) for s in found.segments] == [
        (0.0, 0.5, "one"),
        (0.7, 1.0, "two"),
        (1.1, 1.6, "three"),
        (1.6, 1.9, "four"),
        (2.0, 2.5, "five"),
    ]
    assert found.text == "one two three four five"


def test_long_sound_with_timestamps(model: Runtime) -> None:
    """Sounds of several windows in one call give what each gives alone."""
    long = [np.concatenate([WAVES[1], WAVES[2], WAVES[1]]), WAVES[0], np.concatenate([WAVES[2], WAVES[2]])]
    together = model.transcribe(long, language="en", timestamps=True, max_new_tokens=12)
    for one, wave in zip(together, long, strict=True):
        alone = model.transcribe(wave, language="en", timestamps=True, max_new_tokens=12)
        assert [(s.start, s.end, s.tokens) for s in alone.segments] == [
            (s.start, s.end, s.tokens) for s in one.segments
        ]
        starts = [segment.start for segment in one.segments]
        assert starts == sorted(starts)


def test_a_stop_string_ends_segments_too(model: Runtime) -> None:
    whole = model.transcribe(WAVES[1], language="en", timestamps=True, fallback="off", max_new_tokens=28)
    word = whole.text.split()[-1]
    found = model.transcribe(WAVES[1], language="en", timestamps=True, fallback="off", max_new_tokens=28, stop=word)
    assert word not in found.text
    assert all(word not in segment.text for segment in found.segments)
    assert found.segments[0].generation.finish_reason == "stop"


def test_refuses_timestamps_where_there_are_none(silent_bundle: Path) -> None:
    plain = runtime.open(silent_bundle)
    with pytest.raises(InputError, match=r"vocabulary has no timestamps .*leave out timestamps"):
        plain.transcribe(WAVES[0], timestamps=True)
    assert plain.transcribe(WAVES[0], fallback="all", max_new_tokens=3).segments[0].confidence.no_speech is None


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("timestamps", [False, True])
def test_an_adapter_whose_numbers_are_none_is_named(
    bundle: Path, tmp_path: Path, number: float, timestamps: bool
) -> None:
    copied = break_adapter(Path(shutil.copytree(bundle, tmp_path / "bundle")), "small", number)
    with pytest.raises(NonFiniteError, match="small"):
        runtime.open(copied).adapter("small").transcribe(WAVES[0], language="en", timestamps=timestamps)


# Second tries.


def test_second_tries_are_the_same_each_time_and_wherever_they_run(model: Runtime) -> None:
    """A random model is never sure: every window is written down five times more."""
    options: dict[str, Any] = {"language": "en", "fallback": "all", "max_new_tokens": TOKENS}
    first = model.transcribe(WAVES, **options)
    assert any(each.segments[0].confidence.temperature > 0 for each in first)
    assert written_of(model.transcribe(WAVES, **options)) == written_of(first)
    assert written_of([model.transcribe(wave, **options) for wave in WAVES]) == written_of(first)
    assert written_of(model.transcribe(WAVES, batch_size=1, **options)) == written_of(first)
    others = [model.transcribe(WAVES, seed=seed, **options) for seed in (1, 2, 3)]
    assert any(written_of(each) != written_of(first) for each in others)


def test_nothing_changes_where_the_first_try_holds(model: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MEAN_LOGPROB", -1e9)
    monkeypatch.setattr(rules, "COMPRESSION_RATIO", 1e9)
    plain = model.transcribe(WAVES, language="en", fallback="off", max_new_tokens=TOKENS)
    for fallback in ("loops", "all", None):
        found = model.transcribe(WAVES, language="en", fallback=fallback, max_new_tokens=TOKENS)
        assert written_of(found) == written_of(plain)
        assert [each.segments[0].confidence for each in found] == [each.segments[0].confidence for each in plain]


def test_only_loops_by_default(model: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What repeats itself is written down again without being asked for, what is merely unlikely is not."""
    plain = model.transcribe(WAVES, language="en", fallback="off", max_new_tokens=TOKENS)
    ratios = [each.segments[0].confidence.compression_ratio for each in plain]
    monkeypatch.setattr(rules, "COMPRESSION_RATIO", sorted(ratios)[-1] - 1e-9)  # one of three
    found = model.transcribe(WAVES, language="en", max_new_tokens=TOKENS)
    again = [each.segments[0].confidence.temperature > 0 for each in found]
    assert again == [ratio == max(ratios) for ratio in ratios]
    assert [w for w, a in zip(written_of(found), again, strict=True) if not a] == [
        w for w, a in zip(written_of(plain), again, strict=True) if not a
    ]
    sampled = model.transcribe(WAVES, language="en", max_new_tokens=TOKENS, temperature=0.3, seed=1)
    assert {each.segments[0].confidence.temperature for each in sampled} == {0.3}
    greedy = model.transcribe(WAVES, language="en", max_new_tokens=TOKENS, temperature=0)
    assert written_of(greedy) == written_of(plain)


@pytest.mark.parametrize("adapters", [None, ["dora", "small", None]])
@pytest.mark.parametrize("language", ["de", None])
def test_a_window_is_not_read_again(
    model: Runtime, adapters: list[str | None] | None, language: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first logits of a second try are those of the first, adapter by adapter; the encoder ran once."""
    from edgepeft.runtime.generation.speech import SoundDecoder

    seen: list[np.ndarray] = []
    runs = []
    prefill, read = SoundDecoder.prefill, SoundDecoder.read

    def spied(self: SoundDecoder, prompts: Any) -> np.ndarray:
        seen.append(prefill(self, prompts).copy())
        return seen[-1].copy()

    monkeypatch.setattr(SoundDecoder, "prefill", spied)
    monkeypatch.setattr(SoundDecoder, "read", lambda self, *given: (runs.append(1), read(self, *given))[1])
    found = model.transcribe(WAVES, adapters=adapters, language=language, fallback="all", max_new_tokens=TOKENS)
    assert len(runs) == 1
    assert len(seen) == 1 + 3 * 5
    for row in range(3):
        for again in seen[1 + 5 * row : 6 + 5 * row]:
            np.testing.assert_allclose(again[0], seen[0][row], rtol=1e-4, atol=1e-4)
    assert [each.language for each in found] == [
        each.language for each in model.transcribe(WAVES, adapters=adapters, language=language, max_new_tokens=2)
    ]


@pytest.mark.parametrize("timestamps", [False, True])
def test_silence_is_no_text(model: Runtime, monkeypatch: pytest.MonkeyPatch, timestamps: bool) -> None:
    monkeypatch.setattr(rules, "NO_SPEECH", -1.0)  # whatever the model says
    monkeypatch.setattr(rules, "MEAN_LOGPROB", 0.0)
    found = model.transcribe(WAVES[1], language="en", fallback="all", timestamps=timestamps, max_new_tokens=TOKENS)
    (segment,) = found.segments
    assert (found.text, segment.text, segment.tokens) == ("", "", ())
    assert segment.generation.text.strip()  # what it wrote before is still there
    assert (segment.start, segment.end) == (0.0, found.seconds)
    assert found.subtitles("srt") == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fallback": "sometimes"}, "fallback must be one of loops, all, off, found 'sometimes'"),
        (
            {"fallback": "all", "temperature": 0.5},
            "begins greedily and chooses its temperatures; leave out temperature",
        ),
        ({"fallback": "loops", "top_k": 5}, "or give fallback='off' with them"),
    ],
)
def test_refuses_second_tries_that_cannot_be_meant(model: Runtime, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.transcribe(WAVES[0], **options)


# The command line.


def test_command_line_writes_times_and_subtitles(bundle: Path, tmp_path: Path, model: Runtime) -> None:
    file = save_wav(tmp_path / "a.wav", WAVES[1])
    expected = model.transcribe(runtime.read_sound(file)[0], language="en", timestamps=True, max_new_tokens=20)
    arguments = ["run", str(bundle), "--audio", str(file), "--language", "en", "--max-new-tokens", "20"]
    plain = CliRunner().invoke(main, [*arguments, "--timestamps"])
    assert plain.exit_code == 0, plain.output
    lines = plain.stdout.splitlines()
    assert len(lines) == len([segment for segment in expected.segments if segment.text])
    assert lines[0].startswith(f"[00:{expected.segments[0].start:05.2f} --> 00:{expected.segments[0].end:05.2f}] ")
    for form in ("srt", "vtt"):
        out = tmp_path / f"a.{form}"
        out.write_text("older")
        done = CliRunner().invoke(main, [*arguments, "--subtitles", str(out), "--json"])
        assert done.exit_code == 0, done.output
        assert out.read_text() == expected.subtitles(form)  # type: ignore[arg-type]
        (told,) = json.loads(done.stdout)
        assert [(each["start"], each["end"], each["text"]) for each in told["segments"]] == [
            (each.start, each.end, each.text) for each in expected.segments
        ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.srt", "a.vtt", "a.wav"]  # nothing beside them
    text = CliRunner().invoke(main, [*arguments, "--subtitles", str(tmp_path / "A.VTT")])
    assert text.stdout == f"{expected.text}\n"
    assert (tmp_path / "A.VTT").read_text() == expected.subtitles("vtt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--subtitles", "a.srt"], "--subtitles is about sound; give a file of it with --audio FILE"),
        (["--fallback", "all"], "--fallback is about sound"),
        (["--audio", "a.wav", "--subtitles", "a.ass"], "the suffix says the form, .srt or .vtt; found '.ass'"),
        (["--audio", "a.wav", "--subtitles", "srt"], "found ''"),
        (["--audio", "a.wav", "--subtitles", "none/a.srt"], "none is not a folder"),
        (["--audio", "a.wav", "--subtitles", "folder.srt"], "folder.srt is a folder; name a file"),
        (["--audio", "a.wav", "--audio", "b.wav", "--subtitles", "a.srt"], "one file for one sound, and --audio is given 2 times"),
        (["--audio", "a.wav", "--fallback", "never"], "'never' is not one of 'loops', 'all', 'off'"),
        (["--audio", "a.wav", "--fallback", "all", "--temperature", "0.5"], "begins greedily and chooses its temperatures"),
    ],
)  # fmt: skip
def test_command_line_refuses(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """Before anything is heard: the first file of sound is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.srt").mkdir()
    if "--temperature" in arguments:
        save_wav(tmp_path / "a.wav", WAVES[0])
    result = CliRunner().invoke(main, ["run", str(bundle), *arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_command_line_says_that_there_are_no_timestamps(silent_bundle: Path, tmp_path: Path) -> None:
    file = save_wav(tmp_path / "a.wav", WAVES[0])
    result = CliRunner().invoke(main, ["run", str(silent_bundle), "--audio", str(file), "--timestamps"])
    assert result.exit_code == 2, result.output
    assert "vocabulary has no timestamps" in result.output
