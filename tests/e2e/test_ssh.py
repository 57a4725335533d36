"""A real sshd on loopback: copying, resuming, host keys, time-outs, and nothing left running."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import host_target

from edgepeft.bench import Job, Rows
from edgepeft.bundle import hash_file
from edgepeft.devices import validate_on
from edgepeft.devices.executors import copying as remotes
from edgepeft.devices.executors import ssh as sshs
from edgepeft.devices.executors.ssh import Ssh, SshExecutor
from edgepeft.errors import DeviceError
from edgepeft.report.gate import Verdict
from edgepeft.targets import Target, load_target

pytestmark = pytest.mark.e2e


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """sshd as this user on a free port; the client configuration that knows its key. Skipped where there is no sshd."""
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    for name in ("host", "user", "stranger"):
        keygen(folder / name)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation folder
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    else:
        process.kill()
        pytest.fail(f"sshd did not start: {(folder / 'log').read_text()}")
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    yield folder, port
    process.terminate()
    process.wait(10)


@pytest.fixture
def address(daemon: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder, port = daemon
    monkeypatch.setenv("EDGEPEFT_SSH_CONFIG", str(folder / "config"))
    monkeypatch.setenv("EDGEPEFT_SSH_PYTHON", sys.executable)
    return f"ssh://127.0.0.1:{port}{tmp_path}/there"


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return host_target(tmp_path)


def test_runs_there_and_brings_the_report_back(address: str, target: Target, bundle: Path, tmp_path: Path) -> None:
    report = validate_on(bundle, target, on=address, rows=3)
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    assert report.data["executor"] == "ssh 127.0.0.1"
    assert report.data["base_restored"] == {"fp32": True}
    (copied,) = (tmp_path / "there").glob("bundle-*")
    assert (copied / "onnx" / "model.onnx").read_bytes() == (bundle / "onnx" / "model.onnx").read_bytes()
    assert not list((tmp_path / "there").glob("run-*")), "no run is left behind"


def test_a_language_model_there(address: str, target: Target, generating: Path) -> None:
    """The same library behind ssh: the very same bits, so each token is the native run's choice with no lead."""
    from edgepeft.data import PromptRows

    report = validate_on(
        generating, target, on=address, data={"*": PromptRows(("the film was",))}, new_tokens=8, reference=False
    )
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    assert {(row["native"]["same"], row["native"]["lead"]) for row in report.data["tokens"]} == {(8, 0.0)}
    assert len({row["texts"] for row in report.data["tokens"]}) == 4


def test_a_second_run_copies_nothing_and_a_broken_copy_goes_on(address: str, bundle: Path, tmp_path: Path) -> None:
    from edgepeft.bundle import read_bundle

    shell = Ssh(address)
    files = remotes.bundle_files(read_bundle(bundle), "fp32")
    total = sum(entry.bytes for _, entry in files.values())
    folder = f"{tmp_path}/there/b"
    first = remotes.ship(shell, files, folder)
    assert (first.sent, first.kept) == (total, 0)
    again = remotes.ship(shell, files, folder)
    assert (again.sent, again.kept) == (0, total)
    # What a connection that broke off leaves: half of a file, under its temporary name.
    whole = Path(folder) / "onnx" / "model.onnx_data"
    size = whole.stat().st_size
    (whole.parent / f"{whole.name}.part").write_bytes(whole.read_bytes()[: size // 2])
    whole.unlink()
    said: list[str] = []
    resumed = remotes.ship(shell, files, folder, said.append)
    assert resumed.sent == size - size // 2
    assert "(resumed)" in said[0]
    assert hash_file(whole) == read_bundle(bundle).manifest.files["onnx/model.onnx_data"]
    # Half of another file is found out and thrown away, not renamed.
    whole.unlink()
    (whole.parent / f"{whole.name}.part").write_bytes(b"x" * (size // 2))
    with pytest.raises(DeviceError, match=r"onnx/model\.onnx_data arrived with sha256 .*again"):
        remotes.ship(shell, files, folder)
    assert not whole.exists()
    assert remotes.ship(shell, files, folder).sent == size


def test_an_edited_copy_there_is_sent_again(address: str, target: Target, bundle: Path, tmp_path: Path) -> None:
    job = Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter=None, texts=("a film",)),))
    first = SshExecutor(target, address).run(job)
    (copied,) = (tmp_path / "there").glob("bundle-*")
    graph = copied / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert SshExecutor(target, address).run(job).rows == first.rows


def test_a_host_whose_key_is_not_known_gets_nothing(
    daemon: tuple[Path, int],
    address: str,
    target: Target,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, port = daemon
    other = (folder / "stranger.pub").read_text().split()
    for known, name in (("", "empty"), (f"[127.0.0.1]:{port} {other[0]} {other[1]}\n", "changed")):
        (tmp_path / name).write_text(known)
        config = tmp_path / f"{name}.config"
        config.write_text((folder / "config").read_text().replace(str(folder / "known"), str(tmp_path / name)))
        monkeypatch.setenv("EDGEPEFT_SSH_CONFIG", str(config))
        (missing,) = SshExecutor(target, address).missing()
        assert "its host key is unknown or was changed, so nothing was sent" in missing.what
        with pytest.raises(DeviceError, match="host key is unknown or was changed"):
            SshExecutor(target, address).run(Job(bundle=str(bundle), variant="fp32", threads=1))
    assert not (tmp_path / "there").exists()


def test_who_is_not_let_in_and_what_is_not_there(
    cli: Any,
    daemon: tuple[Path, int],
    address: str,
    target: Target,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = daemon
    config = tmp_path / "stranger.config"
    config.write_text((folder / "config").read_text().replace(f"{folder}/user", f"{folder}/stranger"))
    with monkeypatch.context() as patch:
        patch.setenv("EDGEPEFT_SSH_CONFIG", str(config))
        (missing,) = SshExecutor(target, address).missing()
        assert "no key of yours is accepted: ssh-copy-id 127.0.0.1" in missing.what
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (missing,) = SshExecutor(target, f"ssh://127.0.0.1:{probe.getsockname()[1]}").missing()
    assert "unreachable" in missing.what
    with monkeypatch.context() as patch:
        patch.setenv("EDGEPEFT_SSH_PYTHON", "/nowhere/python3")
        (missing,) = SshExecutor(target, address).missing()
        assert "/nowhere/python3" in missing.what
        assert "pip install" in missing.remedy
    android = load_target("android-arm64-cpu")
    assert any("android-arm64-cpu is android arm64" in m.what for m in SshExecutor(android, address).missing())
    done = cli("validate", bundle, "--target", "android-arm64-cpu", "--on", address)
    assert (done.exit_code, "cannot execute android-arm64-cpu" in done.stderr) == (2, True)


def workers(needle: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "edgepeft.worker" in line and needle in line]


def test_a_slow_device_is_given_up_and_nothing_runs_on(
    address: str, target: Target, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is held up by a Python that sleeps; our own time-out ends first, then the copied pid is killed."""
    slow = tmp_path / "slow-python"
    slow.write_text(f'#!/bin/sh\nif [ "$1" = -P ]; then exec sleep 600.{os.getpid()}; fi\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("EDGEPEFT_SSH_PYTHON", str(slow))
    monkeypatch.setattr(sshs, "_JOB_S", -27)  # 3 s for our side
    executor = SshExecutor(target, address)
    assert executor.missing() == ()
    started = time.monotonic()
    monkeypatch.setattr(sshs, "run_worker", _patient(sshs.run_worker))
    with pytest.raises(DeviceError, match="no result after 3 s"):
        executor.run(Job(bundle=str(bundle), variant="fp32", threads=1))
    assert time.monotonic() - started < 90
    for _ in range(50):
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if f"sleep 600.{os.getpid()}" not in listed:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the job still runs there")


def _patient(run: Any) -> Any:
    """The remote `timeout` takes no negative time: give it its ten minutes, so that only our side can end it."""

    def call(job: Job, *, command: list[str], **options: Any) -> Any:
        return run(job, command=[*command[:-1], command[-1].replace("timeout -k 5 -27", "timeout -k 5 600")], **options)

    return call
