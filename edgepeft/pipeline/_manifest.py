"""Writing ``edgepeft.json``, and what other libraries read of it in their own files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from ..bundle import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Variant,
    check_name,
    dump_manifest,
    hash_file,
)
from ..errors import BundleError, InputError
from ..json_text import config_text
from ..quantize.recipes import preferred
from ._genai import NAME as GENAI_CONFIG
from ._genai import note_genai


def write_manifest(folder: Path, manifest: Manifest, unchanged: Mapping[str, FileEntry] | None = None) -> Manifest:
    """Hash the files of ``folder`` into ``manifest`` and write it; ``unchanged`` are hashes that still hold."""
    known = dict(unchanged or {})
    if _note_variants(folder, manifest.variants):
        known.pop("config.json", None)
    if note_genai(folder, manifest):
        known.pop(GENAI_CONFIG, None)
    manifest = manifest.model_copy(update={"files": _listed(folder, known)})
    manifest = Manifest.model_validate(manifest.model_dump())
    target = folder / MANIFEST_NAME
    target.unlink(missing_ok=True)
    target.write_text(dump_manifest(manifest), encoding="utf-8")
    return manifest


def _note_variants(folder: Path, variants: Mapping[str, Variant]) -> bool:
    """Say in ``config.json`` what transformers.js needs to open the base; whether the file was changed.

    It fetches ``<graph>_data`` for exactly the graphs named here, and opens ``dtype`` where its caller asks for none.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    dtype = next((name for name in preferred("browsers") if name in variants), next(iter(variants)))
    weights = {Path(variant.file).name: len(variant.data) for variant in variants.values()}
    caches = {name: "float16" for name, variant in variants.items() if variant.cache_dtype == "float16"}
    config["transformers.js_config"] = {
        "dtype": dtype,
        "use_external_data_format": weights,
        **({"kv_cache_dtype": caches} if caches else {}),  # version 3; later ones ask the graph
    }
    written = config_text(config)
    if written == text:
        return False
    path.unlink()
    path.write_text(written, encoding="utf-8")
    return True


def check_asked(adapters: Collection[str], mode: str, target: Path) -> None:
    """Refuse adapter names, a mode and a folder that an export cannot have; before anything is read.

    Raises:
        InputError: A name cannot be used, a mode wants an adapter, or the folder is taken.
    """
    for name in adapters:
        try:
            check_name(name)
        except ValueError as error:
            raise InputError(f"--adapter: {error}") from error
    if mode != "swap" and not adapters:
        raise InputError(f"--mode {mode} needs at least one --adapter NAME=PATH")
    if mode == "swap" or len(adapters) == 1:
        check_target_folder(target)


def check_target_folder(target: Path) -> None:
    """Refuse to replace a folder that is not a bundle."""
    if target.exists() and not (target / MANIFEST_NAME).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle; choose another --out or remove it")


def require_onnx(bundle: Path, variant: Variant) -> None:
    """:class:`BundleError` where a variant's graphs are in ORT format, which is written for a device and not changed again."""
    if variant.file.endswith(".ort"):
        raise BundleError(
            f"{bundle}: {variant.file} is in ORT format, and graphs are made of ONNX files only. Give the bundle that it was "
            "packed from"
        )


def _listed(folder: Path, known: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The deployed files below ``folder``, hashed where ``known`` has no entry.

    Reports say what was measured of a bundle; they are not part of what is deployed and may be written any time.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and path.relative_to(folder).parts[0] != "report"
    }
    return {name: known.get(name) or hash_file(path) for name, path in files.items()}
