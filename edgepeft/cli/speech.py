"""The part of ``run`` for models that write down speech: options, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from cloup import option, option_group

from ..errors import InputError
from .options import PATH
from .show import print_json
from .text_generation import refuse_generation

if TYPE_CHECKING:
    from ..runtime import Runtime, Transcription
    from ..runtime.subtitles import SubtitleForm

#: The options of speech, given to the command as further keyword arguments.
speech_options = option_group(
    "Speech",
    option("--audio", type=PATH, multiple=True, metavar="FILE",
           help="A file of sound to write down (WAV; FLAC, MP3 and OGG with edgepeft[audio]); repeat for several."),
    option("--language", metavar="CODE", show_default="what is heard",
           help="The language that is spoken: en, de, …"),
    option("--translate", is_flag=True, help="Write what was said in English."),
    option("--timestamps", is_flag=True, help="Write when what was said, a line each."),
    option("--subtitles", type=PATH, metavar="FILE.srt|.vtt",
           help="Write the text and its times to a file of subtitles; an old file there is replaced."),
    option("--fallback", type=click.Choice(("loops", "all", "off")),  # runtime's Fallback, which --help need not import
           show_default="loops; off where --temperature, --top-k or --top-p is given",
           help="What is written down again at higher temperatures: windows whose text repeats itself, also those that the model "
           "was not sure of, or none."),
)  # fmt: skip
SPEECH = ("audio", "language", "translate", "timestamps", "subtitles", "fallback")
#: Options of text generation that make no sense of sound.
_OF_PROMPTS = ("prompt", "raw", "system", "template_arg", "draft")


def check_audio(given: Mapping[str, Any]) -> None:
    """Refuse options of speech where no sound is given."""
    for name in SPEECH:
        if given[name]:
            raise InputError(f"--{name} is about sound; give a file of it with --audio FILE")


def check_speech(
    task: str, bundle: Path, given: Mapping[str, Any], texts: Sequence[Any], generation: Mapping[str, Any]
) -> None:
    """Refuse sound for a model that reads texts, and texts for one that writes down speech; and files that cannot be written."""
    if task != "automatic-speech-recognition":
        for name in SPEECH:
            if given[name]:
                raise InputError(f"--{name} is for models that write down speech; {bundle} is for {task}")
        return
    refuse_generation({name: generation[name] for name in _OF_PROMPTS}, f"{bundle} writes down speech: --audio FILE")
    if texts or not given["audio"]:
        raise InputError(f"{bundle} writes down speech and takes no texts; give files of sound with --audio FILE")
    if given["subtitles"] is not None:
        _subtitle_form(given["subtitles"])
        if len(given["audio"]) > 1:
            raise InputError(
                f"--subtitles is one file for one sound, and --audio is given {len(given['audio'])} times; call once for each"
            )


def _subtitle_form(file: Path) -> SubtitleForm:
    """The form that a file's suffix names; :class:`InputError` for another one, or a file that cannot be."""
    from ..runtime.subtitles import SubtitleForm

    forms: dict[str, SubtitleForm] = {f".{form}": form for form in get_args(SubtitleForm)}
    if file.suffix.lower() not in forms:
        raise InputError(f"--subtitles {file}: the suffix says the form, {' or '.join(forms)}; found {file.suffix!r}")
    if file.is_dir():
        raise InputError(f"--subtitles {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise InputError(f"--subtitles {file}: {file.parent} is not a folder")
    return forms[file.suffix.lower()]


def run_sounds(opened: Runtime, given: Mapping[str, Any], generation: Mapping[str, Any], as_json: bool) -> None:
    """Write down files of sound, each when it is done, with what it took on standard error."""
    from ..runtime import read_sound

    options = {name: value for name, value in generation.items() if name not in (*_OF_PROMPTS, "eos")}
    options["eos"] = [int(token) if token.isdecimal() else token for token in generation["eos"]]
    results = []
    for file in given["audio"]:
        wave, rate = read_sound(file)
        found = opened.transcribe(
            wave,
            sampling_rate=rate,
            language=given["language"],
            task="translate" if given["translate"] else "transcribe",
            timestamps=given["timestamps"] or given["subtitles"] is not None,
            fallback=given["fallback"],
            **options,
        )
        results.append({"audio": str(file), **found.as_dict()})
        if not as_json:
            if len(given["audio"]) > 1:
                click.secho(f"> {file}", bold=True)
            _print(found, given["timestamps"])
    if as_json:
        print_json(results)
    if given["subtitles"] is not None:  # last: where the disk is full, the text is on the screen
        _write(given["subtitles"], found.subtitles(_subtitle_form(given["subtitles"])))


def _print(found: Transcription, timestamps: bool) -> None:
    """The text, or a line for each segment, and on standard error what it took."""
    if timestamps:
        for segment in found.segments:
            if segment.text:
                click.echo(f"[{_clock(segment.start)} --> {_clock(segment.end)}] {segment.text}")
    else:
        click.echo(found.text)
    windows = {
        id(segment.generation): segment for segment in found.segments
    }.values()  # segments of one window share it
    tokens = sum(len(window.generation.tokens) for window in windows)
    cut = sum(window.generation.finish_reason == "length" for window in windows)
    again = sum(window.confidence.temperature > 0 for window in windows)
    said = f", {cut} of {len(windows)} windows not written to the end" if cut else ""
    said += f", {again} of {len(windows)} at a temperature above 0" if again else ""
    click.echo(f"[{found.seconds:.1f} s of sound, {found.language or 'one language'}, {tokens} tokens{said}]", err=True)


def _clock(seconds: float) -> str:
    """Minutes, seconds and hundredths."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes:02}:{hundredths // 100:02}.{hundredths % 100:02}"


def _write(file: Path, content: str) -> None:
    """Write a file whole: one that cannot be written leaves what was there."""
    from ..report.write import replace_text

    try:
        replace_text(file, content)
    except OSError as error:
        raise InputError(f"cannot write --subtitles {file}: {error.strerror or error}") from error
