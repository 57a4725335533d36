"""An adapter's own text in a bundle: what differs from the base's, written beside its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from ..adapters.edits import Adapter
from ..adapters.folder_text import NO_FOLDER_TEXT, FolderText, folder_text, read_folder_text
from ..adapters.text_contract import text_changes
from ..bundle import Bundle, hash_file
from ..bundle.manifest import TextName
from ..errors import AdapterError, BundleError, InputError

#: The text files that an adapter may bring.
TEXT_NAMES: tuple[str, ...] = get_args(TextName)


def text_hashes(text: Mapping[str, str]) -> dict[str, str]:
    """The sha256 of each text file, by which an adapter's ``.onnx`` file names those that belong to it."""
    return {file: hashlib.sha256(content.encode()).hexdigest() for file, content in text.items()}


def write_text(folder: Path, text: Mapping[str, str]) -> None:
    """Write text files into ``folder``, which is made where there are any; a file there is replaced, never written into."""
    for file, content in text.items():
        folder.mkdir(exist_ok=True)
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_text(content, encoding="utf-8", newline="")


def put_text(
    folder: Path, config: Mapping[str, Any], adapters: Iterable[Adapter], announce: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """The text files of each adapter that differ from those of the base in ``folder``; what differs is announced."""
    base = read_folder_text(folder, InputError)
    found = {}
    for adapter in adapters:
        changes = text_changes(base, adapter.text, embedding_rows(config), adapter.name)
        for note in changes.notes:
            announce(f"adapter {adapter.name}: {note}")
        found[adapter.name] = dict(changes.files)
    return found


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens the base has embeddings for, by its config; ``None`` for one that reads no tokens."""
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return rows if isinstance(rows, int) else None


def text_beside(path: Path, hashes: Mapping[str, str]) -> FolderText:
    """The text of an adapter that edgepeft exported, from the folder beside its file; each file must be the one named."""
    folder = path.with_suffix("")
    for file, sha256 in hashes.items():
        beside = folder / file
        if not beside.is_file():
            raise AdapterError(
                f"{path.name} has a {file} of its own, which is missing: put the folder {folder.name}, which was exported with "
                "it, beside it"
            )
        if hash_file(beside).sha256 != sha256:
            raise AdapterError(f"{beside} is not the file that was exported with {path.name}; copy both again")
    return read_folder_text(folder) if hashes else NO_FOLDER_TEXT


def bundle_text(bundle: Bundle) -> FolderText:
    """The base's text in a bundle, from verified files."""

    def read(file: str) -> str | None:
        return bundle.read_text(file) if file in bundle.manifest.files else None

    return folder_text(read, bundle.path, BundleError)
