"""Where the runtime reads a bundle's text files: tokenizer, configuration, chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def tokenizing(path: Path, cannot: str) -> Iterator[None]:
    """Turn what ``tokenizers`` raises over a ``tokenizer.json`` that it cannot work with into :class:`BundleError`.

    It raises bare ``Exception``, and a ``BaseException`` of its own where its Rust code panics.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{path} {cannot}: {str(error)[:300]}; export the bundle again") from error


def read_tokenizer(bundle: Bundle, without: str) -> Any:
    """A ``tokenizers.Tokenizer`` of its own for the caller, which may set its padding and truncation.

    Raises:
        BundleError: The bundle holds no ``tokenizer.json`` (``without`` says what that means), or one that is not valid.
    """
    from tokenizers import Tokenizer

    text = read_text(bundle, "tokenizer.json")
    if text is None:
        raise BundleError(f"{bundle.path} holds no tokenizer.json, {without}")
    with tokenizing(bundle.file("tokenizer.json"), "is not a tokenizer"):
        return Tokenizer.from_str(text)
