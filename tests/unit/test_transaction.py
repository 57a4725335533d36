"""Replacing a bundle folder: all at once or not at all, whatever happens half-way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepeft.bundle import replacing, transaction
from edgepeft.errors import BundleError


@pytest.fixture
def old(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    (target / "onnx").mkdir(parents=True)
    (target / "edgepeft.json").write_text("old")
    (target / "onnx" / "model.onnx").write_text("old model")
    return target


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


OLD = {"edgepeft.json": "old", "onnx/model.onnx": "old model"}


def test_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with replacing(target, keep=False) as folder:
        assert not target.exists()
        (folder / "edgepeft.json").write_text("new")
    assert contents(target) == {"edgepeft.json": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
@pytest.mark.parametrize("keep", [True, False])
def test_old_folder_is_replaced(keep: bool, exchange: bool, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(transaction, "_exchange", lambda first, second: False)
    with replacing(old, keep=keep) as folder:
        assert contents(folder) == (OLD if keep else {})
        (folder / "edgepeft.json").unlink(missing_ok=True)
        (folder / "edgepeft.json").write_text("new")
        assert contents(old) == OLD
    assert contents(old) == ({**OLD, "edgepeft.json": "new"} if keep else {"edgepeft.json": "new"})
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_one(error: BaseException, old: Path) -> None:
    with pytest.raises(type(error)), replacing(old, keep=True) as folder:  # noqa: PT012
        (folder / "edgepeft.json").write_text("half")
        raise error
    assert contents(old) == OLD
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_arrays_that_do_not_fit(old: Path) -> None:
    """NumPy gives no error's number where the system takes a part of an array, and no reason."""
    with pytest.raises(BundleError, match=r"bundle was left as it was: .*: the disk is full, or a limit"):  # noqa: SIM117
        with replacing(old, keep=True):
            np.ones(10_000).tofile("/dev/full")
    assert contents(old) == OLD


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("when", ["copy", "write", "sync"])
def test_a_full_disk_leaves_the_old_one(code: int, when: str, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code), "model.onnx")

    if when == "copy":
        monkeypatch.setattr(transaction.shutil, "copytree", full)
    if when == "sync":
        monkeypatch.setattr(transaction.os, "fsync", full)
    with pytest.raises(BundleError, match=r"left as it was: the disk is full"), replacing(old, keep=True) as folder:  # noqa: PT012
        (folder / "edgepeft.json").write_text("half")
        if when == "write":
            full()
    assert contents(old) == OLD
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="left as it was"), replacing(tmp_path / "file" / "bundle", keep=False):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from edgepeft.bundle import transaction
target = Path(sys.argv[1])
if sys.argv[2] == "renames":
    transaction._exchange = lambda first, second: False
    rename = Path.rename
    def once(self, to):
        rename(self, to)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = once
with transaction.replacing(target, keep=True) as folder:
    (folder / "edgepeft.json").write_text("half")
    (folder / "onnx" / "model.onnx").write_text("half")
    if sys.argv[2] == "block":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["block", "renames"])
def test_a_killed_process_leaves_the_old_bundle_whole(when: str, old: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), when], check=False)
    assert done.returncode == -signal.SIGKILL
    if when == "renames":
        assert not old.exists(), "killed between the two renames"
    transaction.recover(old)  # what read_bundle does first
    assert contents(old) == OLD
    # The next writer is not in the way of what the killed one left.
    with replacing(old, keep=True) as folder:
        (folder / "edgepeft.json").write_text("new")
    assert contents(old)["edgepeft.json"] == "new"


def test_recover_leaves_a_bundle_alone(old: Path) -> None:
    aside = old.with_name(".bundle.old")
    aside.mkdir()
    (aside / "edgepeft.json").write_text("older")
    transaction.recover(old)
    assert contents(old) == OLD
