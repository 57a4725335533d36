"""The lock of a bundle, and reading a bundle that changes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgepeft.bundle import LOCK_TIMEOUT, MANIFEST_NAME, locked, replacing, rereading, staying, transaction
from edgepeft.errors import BundleError, BusyBundleError, CorruptBundleError

HOLD = """
import sys, time
from edgepeft.bundle import locked
with locked(sys.argv[1], 30):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / MANIFEST_NAME).write_text("old")
    return target


@contextmanager
def holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_wait_ends_with_what_to_do(old: Path) -> None:
    with holder(old):
        with (
            pytest.raises(
                BusyBundleError, match=r"bundle is being changed by another process, and 0\.2 s .*--lock-timeout"
            ),
            locked(old, 0.2),
        ):
            pass
        with pytest.raises(BusyBundleError), replacing(old, keep=True, lock_timeout=0):
            pass
        with pytest.raises(BusyBundleError, match="and 0 s were"), replacing(old, keep=False, lock_timeout=0) as folder:
            (folder / MANIFEST_NAME).write_text("new")
    assert (old / MANIFEST_NAME).read_text() == "old"


def test_a_second_writer_waits_and_goes_on(old: Path) -> None:
    with holder(old) as first:
        entered: list[float] = []

        def second() -> None:
            with locked(old, 30):
                entered.append(time.monotonic())

        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert not entered
        first.communicate("go\n")
        thread.join(30)
    assert len(entered) == 1
    assert names(old.parent) == ["bundle"], "the last one removes the lock file"


def test_a_killed_holder_frees_the_lock(old: Path) -> None:
    with holder(old) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert names(old.parent) == [".bundle.lock", "bundle"]
        with locked(old, 5):
            pass
    assert names(old.parent) == ["bundle"]


def test_the_lock_is_of_the_bundle_and_not_of_its_name(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a link, from inside as ``.``, and after the folder was exchanged it is the same lock."""
    link = old.parent / "link"
    link.symlink_to(old, target_is_directory=True)
    monkeypatch.chdir(old)
    with replacing(old, keep=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
        for other in (link, Path(), Path("../bundle")):
            with pytest.raises(BusyBundleError), locked(other, 0):
                pass
    with pytest.raises(BundleError, match=r"current folder was removed or replaced.*Change into it again"), locked("."):
        pass


def test_many_threads_one_at_a_time(old: Path) -> None:
    """Each adds one to a number that it reads first; the lock file comes and goes between them."""
    count = old.parent / "count"
    count.write_text("0")

    def work() -> None:
        for _ in range(10):
            with locked(old, 60):
                found = int(count.read_text())
                time.sleep(0.001)
                count.write_text(str(found + 1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "80"
    assert names(old.parent) == ["bundle", "count"]


@pytest.mark.parametrize("keep", [True, False])
def test_a_parent_that_cannot_be_written(keep: bool, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system refuses it; root may write anywhere, so the refusal is put where the library opens its file."""
    real = os.open

    def refuse(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if str(path).endswith(".bundle.lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(BundleError, match=r"bundle was left as it was: it cannot be locked: Permission denied"),
        replacing(old, keep=keep) as folder,
    ):
        (folder / MANIFEST_NAME).write_text("new")
    assert (old / MANIFEST_NAME).read_text() == "old"
    assert names(old.parent) == ["bundle"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with staying(old):  # nobody could exchange it, so a report may be written without the lock
        pass


def test_a_folder_in_the_place_of_the_lock(old: Path) -> None:
    (old.parent / ".bundle.lock").mkdir()
    with pytest.raises(BundleError, match="cannot be locked"), locked(old, 0):
        pass


def test_recover_waits_for_a_living_writer(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames of a writer that lives, a reader must not put the old bundle back in its way."""
    monkeypatch.setattr(transaction, "_exchange", lambda first, second: False)
    between, go = threading.Event(), threading.Event()
    rename = Path.rename

    def slow(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        if to.name == ".bundle.old":
            between.set()
            assert go.wait(30)
        return moved

    monkeypatch.setattr(Path, "rename", slow)

    def write() -> None:
        with replacing(old, keep=True) as folder:
            (folder / MANIFEST_NAME).write_text("new")

    writer = threading.Thread(target=write)
    writer.start()
    assert between.wait(30)
    assert not old.exists()
    reader = threading.Thread(target=transaction.recover, args=(old,))
    reader.start()
    time.sleep(0.1)
    assert not old.exists(), "the reader waits"
    go.set()
    reader.join(30)
    writer.join(30)
    assert (old / MANIFEST_NAME).read_text() == "new"
    assert names(old.parent) == ["bundle"]


def test_a_second_rename_that_fails_is_undone(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "_exchange", lambda first, second: False)
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BundleError, match="left as it was: Permission denied"), replacing(old, keep=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
    assert (old / MANIFEST_NAME).read_text() == "old"
    assert names(old.parent) == ["bundle"]


class TestRereading:
    @staticmethod
    def reader(change: Callable[[Path], None], times: int) -> tuple[Callable[[Path], str], list[str]]:
        """A reader that fails ``times`` times, with ``change`` done before each failure; and what it read."""
        seen: list[str] = []

        @rereading
        def read(path: Path) -> str:
            seen.append((path / MANIFEST_NAME).read_text())
            if len(seen) <= times:
                change(path)
                raise CorruptBundleError("a file is missing")
            return seen[-1]

        return read, seen

    @staticmethod
    def exchange(path: Path) -> None:
        with replacing(path, keep=True) as folder:
            (folder / MANIFEST_NAME).unlink()
            (folder / MANIFEST_NAME).write_text("new")

    def test_what_changed_is_read_again(self, old: Path) -> None:
        read, seen = self.reader(self.exchange, 1)
        assert read(old) == "new"
        assert seen == ["old", "new"]

    def test_as_often_as_it_changes(self, old: Path) -> None:
        read, seen = self.reader(self.exchange, 5)
        assert read(old) == "new"
        assert len(seen) == 6

    def test_but_not_for_ever(self, old: Path) -> None:
        read, seen = self.reader(self.exchange, 99)
        with pytest.raises(CorruptBundleError):
            read(old)
        assert len(seen) == 8

    def test_what_did_not_change_is_an_error_at_once(self, old: Path) -> None:
        read, seen = self.reader(lambda path: None, 99)
        with pytest.raises(CorruptBundleError):
            read(old)
        assert len(seen) == 1

    def test_a_report_is_no_change(self, old: Path) -> None:
        read, seen = self.reader(lambda path: (path / "report").mkdir(exist_ok=True), 99)
        with pytest.raises(CorruptBundleError):
            read(old)
        assert len(seen) == 1

    def test_a_bundle_that_is_open_is_not_read_again(self) -> None:
        calls: list[object] = []

        @rereading
        def use(bundle: object) -> None:
            calls.append(bundle)
            raise CorruptBundleError("no")

        with pytest.raises(CorruptBundleError):
            use(object())
        assert len(calls) == 1

    def test_by_keyword(self, old: Path) -> None:
        read, seen = self.reader(self.exchange, 1)
        assert read(path=old) == "new"  # type: ignore[call-arg]
        assert len(seen) == 2


def test_the_option_has_the_same_default() -> None:
    """It is written twice so that a look at --help imports no bundle code."""
    from edgepeft.cli.add import add

    assert next(p.default for p in add.params if p.name == "lock_timeout") == LOCK_TIMEOUT
