"""Files of subtitles: times, texts that would end a cue, and forms that there are not."""

from __future__ import annotations

import pytest

from edgepeft.errors import InputError
from edgepeft.runtime.subtitles import subtitles

CUES = [
    (0.0, 2.48, " Good morning."),
    (2.48, 3.0, "  "),
    (3661.5, 3662.0, "Two\n\nlines --- <b> & more"),
    (3662.0, 3662.0, "No time at all"),
]


def test_srt() -> None:
    assert subtitles(CUES, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,480\nGood morning.\n\n"
        "2\n01:01:01,500 --> 01:01:02,000\nTwo lines --- <b> & more\n\n"
        "3\n01:01:02,000 --> 01:01:02,001\nNo time at all\n"
    )


def test_vtt() -> None:
    assert subtitles(CUES, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.480\nGood morning.\n\n"
        "01:01:01.500 --> 01:01:02.000\nTwo lines --- &lt;b&gt; &amp; more\n\n"
        "01:01:02.000 --> 01:01:02.001\nNo time at all\n"
    )


def test_silence() -> None:
    assert subtitles([(0.0, 1.0, "")], "srt") == ""
    assert subtitles([], "vtt") == "WEBVTT\n"


def test_other_forms() -> None:
    with pytest.raises(InputError, match="written as srt or vtt, found 'ass'"):
        subtitles(CUES, "ass")  # type: ignore[arg-type]
