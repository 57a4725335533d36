"""Where the runtime reads a bundle's text files: tokenizer, configuration, chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError
from ..strict_json import kind, parse_json


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
    # Python's own writer made it: some models' configurations hold Infinity.
    found = parse_json(text, str(path), error=BundleError, advice="export the bundle again", finite=False)
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds {kind(found)} where an object is expected; export the bundle again")
    return found


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
