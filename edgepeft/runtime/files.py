"""Where the runtime reads a bundle's text files: tokenizer, configuration, chat template."""

from __future__ import annotations

from typing import Any

from ..bundle import Bundle
from ..errors import BundleError


def read_text(bundle: Bundle, name: str) -> str | None:
    """The verified text of a file of the bundle; ``None`` where the manifest does not list it."""
    return bundle.read_text(name) if name in bundle.manifest.files else None


def read_object(bundle: Bundle, name: str) -> dict[str, Any]:
    """The JSON object in a file of the bundle, verified; empty where the manifest does not list it.

    Raises:
        BundleError: The file is not JSON, or holds something else than an object.
    """
    return bundle.read_json(name) if name in bundle.manifest.files else {}


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
