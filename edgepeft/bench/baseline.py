"""What ``check`` compares with: a bundle, or a file that ``bench`` saved."""

from __future__ import annotations

from pathlib import Path

from ..bundle import Bundle, read_bundle
from ..errors import EdgepeftError, InputError
from .history import refuse_url


def baseline_bundle(baseline: str | Path) -> Bundle | None:
    """The bundle to compare with; ``None`` where ``baseline`` is a file, which is a report or a history.

    Raises:
        InputError: There is neither, or it is a bundle that cannot be opened. That says nothing about the candidate, so it is
            an error of the call.
    """
    refuse_url(baseline)
    path = Path(baseline)
    if path.is_file():
        return None
    try:
        return read_bundle(path)
    except InputError:
        raise
    except EdgepeftError as error:
        raise InputError(
            f"there is no baseline to compare with: {str(error).rstrip('.')}. Give the folder of a bundle, or what bench saved on "
            "this host: its .json report, or its history"
        ) from error
