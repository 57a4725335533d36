"""What a step depends on and what it made, as hashes of contents: times and places do not count."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from .. import __version__
from ..bundle import hash_file, read_bundle
from ..errors import EdgepeftError
from .plan import Step

#: What later steps write anew in a bundle.
_SHARED = {"config.json", "genai_config.json"}


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def content(path: Path) -> str:
    """sha256 of a file, or over the names and hashes of a folder's files; hidden files and reports are left out."""
    if path.is_file():
        return hash_file(path).sha256
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and name.parts[0] != "report":
            files[name.as_posix()] = hash_file(file).sha256
    return digest(files)


def step_key(step: Step, folder: Path, bundle: str, before: str) -> str:
    """What the step would do: its arguments with the contents of the files and folders that they name, and all steps before.

    The recipe's own ``bundle`` counts through the steps that make it. What an argument names that is no path here (a Hugging
    Face id, a number) counts as it is written.
    """
    said = []
    for argument in step.arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        named = value.partition("=")[2]
        bare = re.sub(r":[A-Za-z]+=[^:]*$", "", named)  # FILE:text=body; the columns count as they are written
        places = [each for each in (value, named, bare) if each and each not in {bundle, step.makes}]
        place = next((folder / each for each in places if (folder / each).exists()), None)
        said.append([argument] if place is None else [argument, content(place)])
    return digest({"edgepeft": __version__, "arguments": said, "before": before})


def made(step: Step, folder: Path) -> str | None:
    """What the step left, as it is now; ``None`` where it is not there. Empty for a step that only looks."""
    if step.makes is not None:
        return content(folder / step.makes) if (folder / step.makes).is_dir() else None
    if step.changes is None:
        return ""
    try:
        manifest = read_bundle(folder / step.changes).manifest
    except EdgepeftError:
        return None
    variant = step.name.partition(".")[2]
    if not variant:
        names = {*manifest.files} - _SHARED - {file for v in manifest.variants.values() for file in v.files()}
        first = manifest.variants.get("fp32")
        names |= set() if first is None else {first.file, *first.data}
    elif variant in manifest.variants:
        names = {manifest.variants[variant].file, *manifest.variants[variant].data}
    else:
        return None
    for name in names:
        file = folder / step.changes / name
        if not file.is_file() or file.stat().st_size != manifest.files[name].bytes:
            return None
    return digest({name: manifest.files[name].sha256 for name in names})
