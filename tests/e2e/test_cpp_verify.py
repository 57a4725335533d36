"""The C++ header that checks a bundle's files, compiled and compared with hashlib."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgepeft.devices.executors.cpp import source_folder

pytestmark = pytest.mark.e2e

_PROGRAM = """
#include "edgepeft_verify.hpp"
#include <iostream>
int main(int, char** given) {
  try {
    edgepeft::verify(given[1], given[2], std::stoull(given[3]));
  } catch (const std::runtime_error& error) {
    std::cerr << error.what();
    return 2;
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("verify")
    (folder / "main.cpp").write_text(_PROGRAM)
    command = [
        "g++",
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{source_folder()}",
        "main.cpp",
        "-o",
        "run",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "run"


def run(program: Path, file: Path, sha256: str, size: int) -> tuple[int, str]:
    done = subprocess.run([program, file, sha256, str(size)], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1 << 20, (1 << 20) + 1])
def test_hashes_are_hashlibs(program: Path, size: int, tmp_path: Path) -> None:
    """Sizes around a block, its padding and the buffer."""
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(content)
    assert run(program, tmp_path / "file", hashlib.sha256(content).hexdigest(), size) == (0, "")
    other = hashlib.sha256(content + b"x").hexdigest()
    code, message = run(program, tmp_path / "file", other, size)
    assert code == 2
    assert f"{tmp_path / 'file'} was changed" in message


def test_what_is_no_file_of_that_size(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    digest = hashlib.sha256(b"1234").hexdigest()
    code, message = run(program, tmp_path / "file", digest, 5)
    assert code == 2
    assert "has 4 bytes, the manifest says 5" in message
    for name in ("none", "link", "pipe"):
        code, message = run(program, tmp_path / name, digest, 4)
        assert code == 2
        assert "no regular file" in message
