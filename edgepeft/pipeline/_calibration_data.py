"""What a base is calibrated on: texts, or files of sound for one that writes down speech; each bundle gets its own kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ..bundle import Bundle
from ..data import Examples
from ..errors import InputError
from ..validate.language_rows import LanguageRows

#: What an adapter is given: texts, a language model's rows, or rows of sound.
Data: TypeAlias = Examples | LanguageRows


def texts_of(bundle: Bundle, data: Mapping[str, Data]) -> dict[str, Examples]:
    """``data`` of a base that reads texts.

    Raises:
        InputError: Some are no plain texts.
    """
    found: dict[str, Examples] = {}
    for name, each in data.items():
        if not isinstance(each, Examples):
            kind = "files of sound" if each.sounds else "prompts or conversations"
            raise InputError(
                f"{each.source or name}: these rows are {kind}, and {bundle.path} is for {bundle.manifest.task}, which is run on "
                "texts: give a file with a column of texts"
            )
        found[name] = each
    return found


def sounds_of(bundle: Bundle, data: Mapping[str, Data]) -> dict[str, LanguageRows]:
    """``data`` of a base that writes down speech.

    Raises:
        InputError: Some are no sounds.
    """
    found: dict[str, LanguageRows] = {}
    for name, each in data.items():
        if not isinstance(each, LanguageRows) or not each.sounds:
            raise InputError(
                f"{each.source or name}: these rows are texts, and {bundle.path} writes down speech, which is run on sound: give "
                "rows whose column 'audio' names files of sound"
            )
        found[name] = each
    return found


def check_kind(bundle: Bundle, data: Mapping[str, Data]) -> None:
    """Refuse rows of another kind than the bundle's; see :func:`texts_of` and :func:`sounds_of`."""
    (sounds_of if bundle.manifest.hears else texts_of)(bundle, data)
