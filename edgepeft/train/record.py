"""What every kind of training shares: checks before it starts, and the checkpoint with its record after it."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import replace_folder
from ..data import Examples
from ..errors import InputError, MissingExtraError
from ..json_text import json_text
from .processes import group, is_first

if TYPE_CHECKING:
    from peft import PeftModel

#: Written beside PEFT's two files: the contract (labels, base identity) and how the adapter came to be.
ADAPTER_FILE = "edgepeft_adapter.json"
FORMAT = 1


def arguments_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as JSON can hold them; ``out``, ``progress`` and data given as objects are left out.

    Of several sources those given as objects are named.
    """

    def plain(value: Any) -> Any:
        return (
            list(map(plain, value))
            if isinstance(value, list | tuple)
            else str(value)
            if isinstance(value, Path)
            else value.source or "rows given as objects"
            if isinstance(value, Examples)
            else value
        )

    return {
        key: plain(value)
        for key, value in values.items()
        if key not in {"out", "progress", "resume"} and not isinstance(value, Examples)
    }


def check_arguments(out: Path | None, arguments: Mapping[str, Any], positive: tuple[str, ...]) -> None:
    """:class:`InputError` for a number out of range, or an ``out`` (where there is one) that is not an adapter of ours."""
    for name in positive:
        value = arguments[name]
        if value is not None and not value > 0:
            raise InputError(f"{name} must be greater than 0, found {value}")
    if not 0 <= arguments.get("dropout", 0.0) < 1:
        raise InputError(f"dropout must lie between 0 and 1, found {arguments['dropout']}")
    if (
        out is not None
        and out.exists()
        and not (out.is_dir() and ((out / ADAPTER_FILE).is_file() or not any(out.iterdir())))
    ):
        raise InputError(f"{out} exists and is not an adapter that edgepeft wrote; give another folder, or remove it")


def check_extra() -> None:
    """:class:`MissingExtraError` where training's libraries are not installed; they are looked for and not imported."""
    missing = next((name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtraError(f"training needs {missing}, which is not installed: pip install 'edgepeft[train]'")


def versions() -> dict[str, str]:
    """The versions that a record keeps."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def write_checkpoint(
    adapted: PeftModel, target: Path, record: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> None:
    """Write PEFT's two files, the record and ``files`` (text by name) to a hidden sibling of ``target``, then rename.

    Of several processes the first one writes, and the others wait until it has.
    """
    if not is_first():
        group().wait()
        return
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.new-", dir=parent) as scratch:
            folder = Path(scratch) / "adapter"
            # Embeddings are never resized here; PEFT's "auto" would ask the hub whether they were.
            adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # a card full of "[More Information Needed]"
            (folder / ADAPTER_FILE).write_text(json_text(record) + "\n", encoding="utf-8")
            for name, text in (files or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
            replace_folder(folder, target.absolute())
    except OSError as error:
        raise InputError(f"cannot write the adapter to {target}: {error}") from error
    group().wait()
