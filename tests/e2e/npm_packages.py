"""Compilers and bindings of other languages, as npm serves them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepeft.cache import cache_dir

#: A package for Unity that holds ONNX Runtime's Android archive, and its C# binding as source.
BINDINGS = "com.github.asus4.onnxruntime@0.4.9"


def package(name: str) -> Path:
    """The folder of an npm package, fetched once."""
    folder = cache_dir() / "assets" / f"npm-{name.replace('@', '-')}"
    if not (folder / "package").is_dir():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed: it fetches compilers and bindings")
        part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        part.mkdir(parents=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", name], cwd=part, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            shutil.rmtree(part)
            pytest.skip(f"npm cannot fetch {name}: {done.stderr.strip()[-200:]}")
        (archive,) = part.glob("*.tgz")
        leave = [f"--exclude={each}" for each in ("*iOS*", "*macOS*", "*Windows*")]
        subprocess.run(["tar", "xzf", archive, *leave], cwd=part, check=True)
        archive.unlink()
        part.rename(folder)
    return folder / "package"
