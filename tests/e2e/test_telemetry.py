"""Nothing is reported to anybody: what edgepeft starts asks for no host and writes nothing below the user's folders.

ONNX Runtime and onnxruntime-genai collect usage from 1.29 and 0.16 on. Each test also runs a control with telemetry on, which
shows that the watcher sees what the default must not do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import host_target

from edgepeft.devices.executors.cpp import CppExecutor, build_runner

pytestmark = pytest.mark.e2e

#: The look-up comes some nine seconds after ONNX Runtime was imported.
_WATCHED_S = 15

#: ONNX Runtime is silent wherever one of these says that a machine builds or tests.
_SILENCED = re.compile(
    r"ORT_.*|CI|CI_.*|TF_BUILD|GITHUB_.*|GITLAB_.*|JENKINS_.*|CODEBUILD_.*|TRAVIS|CIRCLECI|APPVEYOR|TEAMCITY_.*|BUILD_.*|BUILDKITE|"
    r"BITBUCKET_.*|XDG_.*"
)

OPEN = """
import sys, time
from edgepeft import runtime
print(runtime.open(sys.argv[1]).predict(["a film"]))
time.sleep(float(sys.argv[2]))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """This one with a fresh home, without what silences ONNX Runtime by itself; edgepeft's own records go to a cache elsewhere."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not _SILENCED.fullmatch(name)}
    return {**kept, "HOME": str(home), "EDGEPEFT_CACHE": str(home.parent / "cache"), **more}


def reports() -> bool:
    """Whether the installed ONNX Runtime holds the address that usage is sent to."""
    import onnxruntime

    libraries = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")
    return any(b"OneCollector" in library.read_bytes() for library in libraries)


def written(home: Path) -> list[str]:
    """Every file below a home folder."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())


def python(home: Path, code: str, *arguments: object, **more: str) -> str:
    """``python -c CODE`` with a fresh home; what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment(home, **more), capture_output=True, text=True, check=True)
    return done.stdout.strip()


PRINT = "import edgepeft, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


def test_the_switch_is_set_by_any_import_and_an_own_choice_stays(tmp_path: Path) -> None:
    assert python(tmp_path / "default", PRINT) == "1"
    assert python(tmp_path / "chosen", PRINT, ORT_DISABLE_TELEMETRY="0") == "0"
    later = "import edgepeft.runtime, sys, os; print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(tmp_path / "runtime", later) == "False 1"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of other systems lie elsewhere")
def test_opening_a_bundle_writes_nothing_below_the_home(bundle: Path, tmp_path: Path) -> None:
    """The database is made while ONNX Runtime is imported."""
    if reports():
        python(tmp_path / "control", OPEN, bundle, 0, ORT_DISABLE_TELEMETRY="0")
        assert any("onnxruntime" in name for name in written(tmp_path / "control")), "the control wrote nothing"
    python(tmp_path / "quiet", OPEN, bundle, 0)
    assert written(tmp_path / "quiet") == []


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of other systems lie elsewhere")
def test_commands_and_the_processes_that_they_start_write_nothing(bundle: Path, tmp_path: Path) -> None:
    """``bench`` measures in processes of its own."""
    for number, arguments in enumerate(
        (
            ["run", bundle, "a film", "--adapter", "reviews"],
            ["bench", bundle, "--processes", "2", "--shape", "1x32", "--report", tmp_path / "report"],
        )
    ):
        home = tmp_path / f"home{number}"
        command = [sys.executable, "-m", "edgepeft", *map(str, arguments)]
        done = subprocess.run(command, env=environment(home), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode in {0, 1, 3}, done.stderr
        assert not [name for name in written(home) if "icrosoft" in name or "onnxruntime" in name], arguments


def _traced(home: Path, trace: Path, code: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
    calls = "trace=network,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2"
    command = [
        "strace",
        "-f",
        "-s",
        "256",
        "-e",
        calls,
        "-o",
        str(trace),
        sys.executable,
        "-c",
        code,
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command, env=environment(home, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _asked(trace: Path) -> list[str]:
    """Lines of a trace in which a process opens a connection beyond this machine or asks for a name."""
    lines = trace.read_text(errors="replace").splitlines()
    internet = re.compile(r"(connect|sendto|sendmsg|sendmmsg)\(.*(AF_INET|events\\?\d*data|mobile)")
    return [line for line in lines if internet.search(line)]


def _created(trace: Path, home: Path) -> list[str]:
    """Lines of a trace in which a process makes something below ``home``, even if it is gone afterwards."""
    lines = trace.read_text(errors="replace").splitlines()
    making = re.compile(r"O_CREAT|mkdir|rename|creat\(")
    return [line for line in lines if f'"{home}' in line and making.search(line)]


def _strace_works(tmp_path: Path) -> bool:
    if shutil.which("strace") is None:
        return False
    trace = tmp_path / "true"
    done = subprocess.run(["strace", "-o", str(trace), "true"], capture_output=True)
    return done.returncode == 0 and "execve" in trace.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of other systems lie elsewhere")
def test_the_cpp_header_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    """A program without Python, which no variable of its caller keeps quiet."""
    executor = CppExecutor(host_target(tmp_path))
    if missing := executor.missing():
        pytest.skip(f"no C++ here: {missing[0].what} ({missing[0].remedy})")
    program = build_runner()
    job = f"edgepeft-job 1 threads 1 graph {bundle / 'onnx' / 'model.onnx'}"
    for name, more in (("control", {"ORT_DISABLE_TELEMETRY": "0"}), ("quiet", {})):
        done = subprocess.run(
            [program], input=job, env=environment(tmp_path / name, **more), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert bool(written(tmp_path / "control")) == reports()
    assert written(tmp_path / "quiet") == []


@pytest.mark.slow
def test_no_host_is_looked_up(bundle: Path, generating: Path, tmp_path: Path) -> None:
    """Watched for longer than the look-up takes to come, classification, generation and onnxruntime-genai beside a control."""
    if not _strace_works(tmp_path):
        pytest.skip("strace is not installed or may not trace here: sudo apt-get install strace")
    generate = OPEN.replace('predict(["a film"])', 'generate(["a film"], max_new_tokens=4)')
    genai = "import sys, time, edgepeft, onnxruntime_genai as og; og.Model(sys.argv[1]); time.sleep(float(sys.argv[2]))"
    watched = {
        "control": (OPEN, bundle, {"ORT_DISABLE_TELEMETRY": "0"}),
        "classification": (OPEN, bundle, {}),
        "generation": (generate, generating, {}),
        "genai": (genai, generating, {}),
    }
    processes = {
        name: _traced(tmp_path / name, tmp_path / f"{name}.trace", code, folder, _WATCHED_S, **more)
        for name, (code, folder, more) in watched.items()
    }
    for name, process in processes.items():
        _, said = process.communicate()
        assert process.returncode == 0, (name, said)
    if reports():
        assert _asked(tmp_path / "control.trace"), "the control asked for no host"
        assert _created(tmp_path / "control.trace", tmp_path / "control"), "the control wrote nothing"
    for name in ("classification", "generation", "genai"):
        assert _asked(tmp_path / f"{name}.trace") == [], name
        assert _created(tmp_path / f"{name}.trace", tmp_path / name) == [], name
        assert written(tmp_path / name) == [], name
