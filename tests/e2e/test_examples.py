"""Everything in examples/ runs: the service, Node, the browser page, the C++ app, and the notebooks."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from causal import build_causal

from edgepeft import runtime
from edgepeft.devices.executors import cpp as native
from edgepeft.devices.executors.debian import host_architecture, unpack
from edgepeft.devices.executors.web import Site, packages
from edgepeft.devices.executors.web.browser import answer_of
from edgepeft.devices.executors.web.folders import all_files, bundle_folder
from edgepeft.errors import DeviceError

from .test_web import needs_browser, needs_node

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TEXTS = ["the film was very good", "a poor , bad end", "not fine"]


def test_every_example_is_listed() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "notebooks"):
        assert f"examples/{folder.name}" in page
    for notebook in (EXAMPLES / "notebooks").glob("*.ipynb"):
        assert notebook.name in page


# The service


@pytest.fixture
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_app", EXAMPLES / "python_service" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(app: Any, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    """One request, as an ASGI server makes it, its body in two parts."""
    parts = [
        {"type": "http.request", "body": body[:7], "more_body": True},
        {"type": "http.request", "body": body[7:], "more_body": False},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def lifespan(app: Any, then: Callable[[], Any]) -> tuple[list[dict[str, Any]], Any]:
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[dict[str, Any]] = []
    found: Any = None

    async def receive() -> dict[str, Any]:
        nonlocal found
        if len(events) == 1:
            found = await then()
        return events.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent, found


def test_the_service_answers_as_the_runtime_does(bundle: Path, app: ModuleType) -> None:
    service = app.Service(str(bundle))

    def asked(name: str, texts: object = TEXTS) -> bytes:
        return json.dumps({"texts": texts, "adapter": name}).encode()

    async def requests() -> list[tuple[int, Any]]:
        return await asyncio.gather(
            ask(service, "GET", "/adapters"),
            *(ask(service, "POST", "/predict", asked(name)) for name in ("reviews", "movies") * 6),
            ask(service, "POST", "/predict", asked("reveiws")),
            ask(service, "POST", "/predict", asked("reviews", 7)),
            ask(service, "POST", "/predict", b"no json"),
            ask(service, "POST", "/predict", b" " * (app.LIMIT + 1)),
            ask(service, "DELETE", "/predict"),
        )

    sent, (adapters, *answers) = asyncio.run(lifespan(service, requests))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert adapters == (200, {"adapters": ["reviews", "movies"], "variant": "fp32"})
    with runtime.open(bundle, threads=2) as model:
        for place, (status, rows) in enumerate(answers[:12]):
            expected = model.adapter(("reviews", "movies")[place % 2]).predict(TEXTS)
            assert status == 200
            assert [row["label"] for row in rows] == [each.label for each in expected]
            assert np.allclose([row["score"] for row in rows], [each.score for each in expected], atol=1e-6)
    assert [status for status, _ in answers[12:]] == [404, 400, 400, 400, 404]
    assert "did you mean 'reviews'?" in answers[12][1]["error"]


def test_the_service_says_why_it_does_not_start(tmp_path: Path, app: ModuleType) -> None:
    async def nothing() -> None:
        return None

    sent, _ = asyncio.run(lifespan(app.Service(str(tmp_path / "none")), nothing))
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "none" in sent[0]["message"]
    assert asyncio.run(ask(app.Service("x"), "GET", "/adapters"))[0] == 503


# Node and the browser


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with node_modules as `npm install edgepeft-web` makes it."""
    folder = tmp_path_factory.mktemp("npm")
    try:
        found = packages.install()
    except DeviceError as error:
        pytest.skip(str(error))
    shutil.copytree(found / "node_modules", folder / "node_modules", symlinks=True)
    module = folder / "node_modules" / "edgepeft-web"
    shutil.copytree(ROOT / "targets" / "web" / "src", module / "src")
    shutil.copyfile(ROOT / "targets" / "web" / "package.json", module / "package.json")
    return folder


@needs_node
def test_node(webbed: Path, installed: Path) -> None:
    script = Path(shutil.copy(EXAMPLES / "node" / "predict.mjs", installed))
    done = subprocess.run(["node", script, webbed, *TEXTS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    with runtime.open(webbed, variant="int8") as model:
        expected = [
            (name, text, each.label)
            for name in model.adapters
            for text, each in zip(TEXTS, model.adapter(name).predict(TEXTS), strict=True)
        ]
    assert [tuple(row[:3]) for row in rows] == expected
    assert all(0 < float(row[3]) <= 1 for row in rows)
    wrong = subprocess.run(["node", script, webbed], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, "usage:" in wrong.stderr) == (2, True)


PERSON = """
<script type="module">
  const at = (id) => document.getElementById(id);
  const until = async (holds) => {
    for (let i = 0; i < 600; i++) {
      if (holds()) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`waited in vain; the page says: ${at("answer").textContent}`);
  };
  let answer;
  try {
    await until(() => at("answer").textContent.includes("%"));
    const first = at("answer").textContent;
    at("adapter").value = "register";
    at("adapter").dispatchEvent(new Event("input"));
    await until(() => /^(book|film|plot),/.test(at("answer").textContent));
    const narrow = document.documentElement.scrollWidth <= innerWidth;
    answer = { first, second: at("answer").textContent, names: [...at("adapter").options].map((o) => o.value), narrow };
  } catch (failure) {
    answer = { error: String(failure) };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>
"""


@needs_browser
def test_the_browser_page(webbed: Path, installed: Path) -> None:
    page = (EXAMPLES / "browser" / "index.html").read_text(encoding="utf-8")
    folders = {"/bundle/": bundle_folder(webbed), "/node_modules/": all_files(installed / "node_modules")}
    with Site(folders, {"/": page + PERSON}) as site:
        phone = ("--disable-gpu", "--window-size=390,844")
        found = json.loads(answer_of(packages.find_browser() or "", site, "?variant=fp32", 120, phone)[0])
    assert "error" not in found, found
    with runtime.open(webbed, variant="fp32") as model:
        text = "I would buy it again"
        for said, name in ((found["first"], "reviews"), (found["second"], "register")):
            expected = model.adapter(name).predict(text)
            match = re.fullmatch(r"(\w+), (\d+\.\d) %", said)
            assert match is not None, said
            assert match[1] == expected.label
            assert float(match[2]) == pytest.approx(100 * expected.score, abs=0.06)
    assert found["names"] == ["reviews", "movies", "register"]
    assert found["narrow"] is True


# C++


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here: sudo apt-get install cmake")
def test_the_cpp_app_builds_with_cmake_and_gives_pythons_scores(bundle: Path, tmp_path: Path) -> None:
    library = native.find_library()
    if library is None or shutil.which("g++") is None or shutil.which("apt-get") is None:
        pytest.skip("no library, compiler or Debian tools here")
    root = tmp_path / "onnxruntime"
    (root / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(library)
    try:
        unpack([f"{native._HEADERS}:{host_architecture()}"], tmp_path / "headers", suite=native._HEADERS_SUITE)
    except DeviceError as error:
        pytest.skip(str(error))
    headers = next((tmp_path / "headers").rglob("onnxruntime_cxx_api.h")).parent
    shutil.copytree(headers, root / "include")
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", EXAMPLES / "cpp", "-B", build, f"-DONNXRUNTIME_ROOT={root}", "-DCMAKE_BUILD_TYPE=Release",
         "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_CXX_COMPILER=g++"],  # whatever CXX is by the time
        ["cmake", "--build", build],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    with runtime.open(bundle) as model:
        ids = [[int(i) for i in model.base.encode([text])["input_ids"][0]] for text in TEXTS]
        expected = {
            name: [p.probabilities for p in model.adapter(name).predict(TEXTS)] for name in ("reviews", "movies")
        }
    pairs = [f"{name}={bundle / 'adapters' / name}.onnx_adapter" for name in expected]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root / "lib")}

    def classify(*arguments: object, text: str) -> subprocess.CompletedProcess[str]:
        command = [str(build / "classify"), *map(str, arguments)]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=environment)

    said = "".join(" ".join(map(str, row)) + "\n" for row in ids)
    done = classify(bundle / "onnx" / "model.onnx", *pairs, text=said)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(name, int(row)) for name, row, *_ in rows] == [(name, row) for name in expected for row in range(3)]
    for name, row, *scores in rows:
        assert np.allclose([float(score) for score in scores], list(expected[name][int(row)].values()), atol=1e-4)
    assert classify(bundle / "onnx" / "model.onnx", *pairs, text="12 x").returncode == 1
    assert classify(text="").returncode == 2


# Notebooks


def run_notebook(name: str, folder: Path, **environment: str) -> str:
    """Execute a copy with nbmake; what its cells printed."""
    pytest.importorskip("nbmake")
    copy = Path(shutil.copy(EXAMPLES / "notebooks" / f"{name}.ipynb", folder))
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-q", "-p", "no:randomly", "-c", os.devnull,
               "--rootdir", str(folder), "--nbmake-timeout=600", str(copy)]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=900,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return "".join("".join(output.get("text", [])) for output in outputs if output["output_type"] == "stream")


def test_the_shipped_notebooks_are_clean() -> None:
    for path in (EXAMPLES / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{path.name} holds outputs"
            assert cell.get("execution_count") is None


def test_the_encoder_notebook(encoder: Path, tmp_path: Path) -> None:
    said = run_notebook("encoder", tmp_path, EDGEPEFT_NOTEBOOK_MODEL=str(encoder))
    assert re.search(r"mood: accuracy 0\.\d+ -> [01]\.\d+", said)
    assert re.search(r"topic: \d\.\de-\d+ from PEFT, ", said)
    assert re.search(r"mood   int8  accuracy [01]\.\d+ \[", said)


def test_the_gate_notebook(bundle: Path, tmp_path: Path) -> None:
    said = run_notebook("ci_gate", tmp_path, EDGEPEFT_NOTEBOOK_BUNDLE=str(bundle), EDGEPEFT_NOTEBOOK_SECONDS="5")
    assert re.search(r"reviews: \d\.\d+ x, (pass|fail|inconclusive) after \d+ rounds", said)
    assert re.search(r"\d+ kB", said)


@pytest.mark.slow
def test_the_language_model_notebook(tmp_path: Path) -> None:
    model = build_causal(tmp_path / "model")
    said = run_notebook("language_model", tmp_path, EDGEPEFT_NOTEBOOK_MODEL=str(model))
    assert re.search(r"perplexity \d+\.\d+ -> \d+\.\d+", said)
    assert "sums: " in said
