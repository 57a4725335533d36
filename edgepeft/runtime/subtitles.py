"""Files of subtitles: what was said and when, as SubRip (``.srt``) and WebVTT (``.vtt``) have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from ..errors import InputError

#: The suffixes of the two forms.
SubtitleForm = Literal["srt", "vtt"]


def subtitles(cues: Iterable[tuple[float, float, str]], form: SubtitleForm) -> str:
    """The content of a file of subtitles.

    Cues without text are left out. One that ends where it begins, which players refuse, lasts a thousandth of a second.
    In WebVTT ``&``, ``<`` and ``>`` are escaped (https://www.w3.org/TR/webvtt1/#webvtt-cue-text).

    Args:
        cues: Start and end in seconds, and a text.
        form: ``"srt"`` or ``"vtt"``.

    Raises:
        InputError: The form is another.

    Example:
        >>> print(subtitles([(0.0, 2.5, "Good morning.")], "srt"), end="")
        1
        00:00:00,000 --> 00:00:02,500
        Good morning.
        <BLANKLINE>
    """
    if form not in get_args(SubtitleForm):
        raise InputError(f"subtitles are written as {' or '.join(get_args(SubtitleForm))}, found {form!r:.80}")
    blocks = []
    for start, end, text in cues:
        line = " ".join(text.split())  # an empty line would end the cue
        if not line:
            continue
        begin = round(start * 1000)
        times = f"{_clock(begin, form)} --> {_clock(max(round(end * 1000), begin + 1), form)}"
        if form == "vtt":
            escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            blocks.append(f"{times}\n{escaped}\n")
        else:
            blocks.append(f"{len(blocks) + 1}\n{times}\n{line}\n")
    return "\n".join([*(["WEBVTT\n"] if form == "vtt" else []), *blocks])


def _clock(milliseconds: int, form: SubtitleForm) -> str:
    """Hours, minutes, seconds and thousandths."""
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{',' if form == 'srt' else '.'}{thousandths:03}"
