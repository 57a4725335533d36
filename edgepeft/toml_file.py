"""Reading a TOML file that a user wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from .errors import InputError


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """The keys of a TOML file; what they may be, its reader says.

    Args:
        path: The file.
        kind: What it is and where that is described, for the message where it cannot be opened.

    Raises:
        InputError: It is not there, or is no TOML.

    Example:
        >>> read_toml(Path("recipe.toml"), "a recipe is a TOML file (docs/recipes.md shows one)")  # doctest: +SKIP
        {'recipe': {'model': 'org/model'}}
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {kind}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
