"""The part of ``run`` for models that write down speech: options, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cloup import option, option_group

from ..errors import InputError
from .options import PATH
from .show import print_json
from .text_generation import refuse_generation

if TYPE_CHECKING:
    from ..runtime import Runtime

#: The options of speech, given to the command as further keyword arguments.
speech_options = option_group(
    "Speech",
    option("--audio", type=PATH, multiple=True, metavar="FILE",
           help="A file of sound to write down (WAV; FLAC, MP3 and OGG with edgepeft[audio]); repeat for several."),
    option("--language", metavar="CODE", show_default="what is heard",
           help="The language that is spoken: en, de, …"),
    option("--translate", is_flag=True, help="Write what was said in English."),
)  # fmt: skip
SPEECH = ("audio", "language", "translate")
#: Options of text generation that make no sense of sound.
_OF_PROMPTS = ("prompt", "raw", "system", "template_arg", "draft")


def check_speech(
    task: str, bundle: Path, given: Mapping[str, Any], texts: Sequence[Any], generation: Mapping[str, Any]
) -> None:
    """Refuse sound for a model that reads texts, and texts for one that writes down speech."""
    if task != "automatic-speech-recognition":
        for name in SPEECH:
            if given[name]:
                raise InputError(f"--{name} is for models that write down speech; {bundle} is for {task}")
        return
    refuse_generation({name: generation[name] for name in _OF_PROMPTS}, f"{bundle} writes down speech: --audio FILE")
    if texts or not given["audio"]:
        raise InputError(f"{bundle} writes down speech and takes no texts; give files of sound with --audio FILE")


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
            **options,
        )
        results.append({"audio": str(file), **found.as_dict()})
        if as_json:
            continue
        if len(given["audio"]) > 1:
            click.secho(f"> {file}", bold=True)
        click.echo(found.text)
        tokens = sum(len(segment.generation.tokens) for segment in found.segments)
        cut = sum(segment.generation.finish_reason == "length" for segment in found.segments)
        said = f", {cut} of {len(found.segments)} windows not written to the end" if cut else ""
        click.echo(
            f"[{found.seconds:.1f} s of sound, {found.language or 'one language'}, {tokens} tokens{said}]", err=True
        )
    if as_json:
        print_json(results)
