"""Where the runtime reads a bundle's text files: tokenizer, configuration, chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle import NO_TEXT, Bundle, OwnText
from ..errors import BundleError


def read_text(bundle: Bundle, name: str, own: OwnText = NO_TEXT) -> str | None:
    """The verified text of a file of the bundle, or of the one in its place; ``None`` where the manifest lists neither."""
    path = own.path(name)
    # A file of an adapter that is gone is an error: it must not pass for one that it never had.
    return bundle.read_text(path) if path != name or path in bundle.manifest.files else None


def read_object(bundle: Bundle, name: str, own: OwnText = NO_TEXT) -> dict[str, Any]:
    """The JSON object in a file of the bundle, or in the one in its place, verified; empty where the manifest lists neither.

    Raises:
        BundleError: The file is not JSON, or holds something else than an object.
    """
    path = own.path(name)
    return bundle.read_json(path) if path != name or path in bundle.manifest.files else {}


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


def read_tokenizer(bundle: Bundle, without: str, own: OwnText = NO_TEXT) -> Any:
    """A ``tokenizers.Tokenizer`` of its own for the caller, which may set its padding and truncation.

    Raises:
        BundleError: The bundle holds no ``tokenizer.json`` (``without`` says what that means), or one that is not valid.
    """
    from tokenizers import Tokenizer

    text = read_text(bundle, "tokenizer.json", own)
    if text is None:
        raise BundleError(f"{bundle.path} holds no tokenizer.json, {without}")
    with tokenizing(bundle.file(own.path("tokenizer.json")), "is not a tokenizer"):
        return Tokenizer.from_str(text)
