"""Where the runtime reads a bundle's text files: tokenizer, configuration, chat template."""

from __future__ import annotations

import json
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError


def read_text(bundle: Bundle, name: str) -> str | None:
    """A file of the bundle, checked against its hash; ``None`` where the manifest does not list it."""
    if name not in bundle.manifest.files:
        return None
    bundle.verify([name])
    path = bundle.file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path}: {error}; copy the bundle again") from error


def read_object(bundle: Bundle, name: str) -> dict[str, Any]:
    """The JSON object in a file of the bundle; empty where the manifest does not list it.

    Raises:
        BundleError: The file is not JSON, or holds something else than an object.
    """
    text = read_text(bundle, name)
    if text is None:
        return {}
    path = bundle.file(name)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds a {type(found).__name__} where an object is expected")
    return found


def read_tokenizer(bundle: Bundle, without: str) -> Any:
    """A ``tokenizers.Tokenizer`` of its own for the caller, which may set its padding and truncation.

    Raises:
        BundleError: The bundle holds no ``tokenizer.json`` (``without`` says what that means), or one that is not valid.
    """
    from tokenizers import Tokenizer

    text = read_text(bundle, "tokenizer.json")
    if text is None:
        raise BundleError(f"{bundle.path} holds no tokenizer.json, {without}")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{bundle.file('tokenizer.json')} is not a tokenizer: {error}") from error
