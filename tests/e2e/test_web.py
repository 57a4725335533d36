"""ONNX Runtime Web, for real: the JavaScript module in Node, and jobs in Node and in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from broken_numbers import break_adapter
from click.testing import Result

from edgepeft import runtime
from edgepeft.bench import Case, Job, Rows, Sampling, run_worker
from edgepeft.bundle import read_bundle
from edgepeft.devices import executor_for, validate_on
from edgepeft.devices.executors.web import NodeExecutor, WebExecutor, packages
from edgepeft.errors import DeviceError, InputError
from edgepeft.pipeline import store_adapters
from edgepeft.pipeline._manifest import write_manifest
from edgepeft.report.gate import Verdict
from edgepeft.targets import load_target

pytestmark = pytest.mark.e2e

needs_node = pytest.mark.skipif(
    packages.find_node() is None or shutil.which("npm") is None,
    reason="no Node 20 with npm: `edgepeft targets doctor web-wasm --on node` says how to get them",
)
needs_browser = pytest.mark.skipif(
    packages.find_browser() is None or shutil.which("npm") is None,
    reason="no Chromium or npm: `edgepeft targets doctor web-wasm` says how to get them",
)

TEXTS = ["the film was very good", "bad", "a poor plot , an awful end . not fine", "great"]
PAIR = ("the film was very good " * 5, "a poor book " * 9)
ODD = ["", " ", "ÉTÉ naïve", "日本語 text", "a" * 300, "good\tbad\nfine", "👍 great", "[MASK] good [SEP] bad",
       "\u0130stanbul \u00a0 x\u200by"]  # fmt: skip


def job(bundle: Path, **options: Any) -> Job:
    rows = tuple(Rows(adapter=name, texts=tuple(TEXTS), batch=2) for name in ("reviews", "register", "movies"))
    return Job(**{"bundle": str(bundle), "variant": "fp32", "threads": 1, "rows": rows, "restore": True, **options})


def test_prepare_says_what_it_wrote(bundle: Path, cli: Callable[..., Result]) -> None:
    done = cli("web", "prepare", bundle, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == {"fp32": "onnx/model_web.onnx"}
    assert "fp32 has onnx/model_web.onnx (0." in cli("web", "prepare", bundle, "--variant", "fp32").stdout
    assert cli("web", "prepare", bundle, "--variant", "q4").exit_code == 2
    assert cli("web", "prepare", bundle / "nowhere").exit_code == 2


BLENDS: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({"reviews": 0.7, "movies": 0.3}, {"head": "reviews"}),
    ({"reviews": 0.5, "register": -1.25, "movies": 0}, {"head": "register", "scale": 0.5}),
    ({"movies": 2}, {}),
]
#: The second has heads of different widths, which are padded.
ROWS = [["movies", "reviews", None, "movies"], ["register", "reviews", None, "movies"]]
REFUSED: list[list[Any]] = [
    ["use", {"reviews": 0.7, "movies": 0.3}, {}],
]


def says(model: runtime.Runtime, call: list[Any]) -> str:
    """What Python says to a call that it refuses, up to what names its own way out."""
    _, given, *_ = call
    with pytest.raises(InputError) as caught:
        model.use(given)
    return str(caught.value).partition(". ")[0].partition(": {")[0]


def mixed_logits(model: runtime.Runtime, rows: list[str | None]) -> list[list[float | None]]:
    """A batch of several adapters; ``None`` for minus infinity, which JSON has no word for."""
    logits = model.forward(model.encode(TEXTS), adapters=rows)["logits"]
    return [[None if np.isinf(number) else number for number in row] for row in logits.tolist()]


@needs_node
def test_the_module_against_python(webbed: Path, tmp_path: Path) -> None:
    """Every case of targets/web/test, on a bundle whose ids, logits and labels Python says."""
    model = runtime.open(webbed)
    texts: list[Any] = [*TEXTS, *ODD, "the very good film " * 40, PAIR, PAIR[::-1], ("good", "bad"), ("", "bad")]
    ids = [[text, model.encode([text])["input_ids"][0].tolist()] for text in texts]
    expected = {
        "texts": TEXTS,
        "ids": ids,
        "encoded": {name: array.tolist() for name, array in model.encode(TEXTS).items()},
        "base": model.logits(TEXTS).tolist(),
        "adapters": {
            name: {"labels": list(entry.labels or ()), "logits": model.use(name).logits(TEXTS).tolist()}
            for name, entry in model.manifest.adapters.items()
        },
        "scaled": {"name": "reviews", "logits": model.use("reviews", scale=0.5).logits(TEXTS).tolist()},
        "blends": [
            {
                "weights": weights,
                "options": options,
                "logits": model.use(weights, **options).logits(TEXTS).tolist(),
                "labels": list(model.labels or ()),
            }
            for weights, options in BLENDS
        ],
        "mixed": [{"adapters": rows, "logits": mixed_logits(model, rows)} for rows in ROWS],
        "refused": [{"call": call, "says": says(model, call)} for call in REFUSED],
    }
    alone = [expected["adapters"][name]["logits"] for name in ("reviews", "movies")]
    assert np.abs(np.array(expected["blends"][0]["logits"]) - alone).max(axis=(1, 2)).min() > 1e-3
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    names = ("against_python/bundle", "manifest", "heads", "backend", "source", "residents")
    tests = [str(module / "test" / f"{name}.test.js") for name in names]
    done = subprocess.run(
        ["node", "--test", *tests],
        env={
            **os.environ,
            "EDGEPEFT_TEST_BUNDLE": str(webbed),
            "EDGEPEFT_TEST_EXPECTED": str(tmp_path / "expected.json"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    failed = [part for part in done.stdout.split("# Subtest: ") if "\n    not ok" in part or "\nnot ok" in part]
    assert done.returncode == 0, "\n".join(failed)[-6000:] or done.stderr


@needs_node
def test_nan_in_a_job_comes_back_as_numbers_and_predict_refuses_it(webbed: Path, tmp_path: Path) -> None:
    """``JSON.stringify`` writes null for NaN: a device's broken model must not look like a broken answer."""
    broken = break_adapter(Path(shutil.copytree(webbed, tmp_path / "broken")), "reviews")
    asked = job(broken, cases=(Case(adapter="reviews", batch=2, sequence=8), Case(adapter="movies", batch=2, sequence=8)),
                sampling=Sampling(warmup_s=0, measure_s=0.05, min_iterations=6))  # fmt: skip
    done = NodeExecutor(load_target("web-wasm")).run(asked)
    assert [bool(np.isfinite(np.array(rows.logits)).all()) for rows in done.rows] == [False, True, True]
    assert np.isnan(np.array(done.rows[0].logits)).all()
    assert [case.not_finite for case in done.cases] == ["4 of 4 numbers of output logits", ""]
    report = validate_on(broken, load_target("web-wasm"), on="node", variants=["fp32"], rows=2, reference=False)
    failed = {gate.name for gate in report.gates if gate.verdict is Verdict.FAIL}
    assert failed == {"same label as native reviews fp32", "logits against native reviews fp32"}
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    (module / "predict.mjs").write_text(
        "import { openBundle, NonFiniteError } from './src/index.js';\n"
        "const model = await openBundle(process.argv[2]);\nawait model.use('reviews');\n"
        "const error = await model.predict(['good']).catch((error) => error);\n"
        "console.log(error instanceof NonFiniteError, error.message);\nprocess.exit(0);\n"
    )
    said = subprocess.run(
        ["node", str(module / "predict.mjs"), str(broken)], capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout.startswith("true "), said.stdout
    assert "adapter 'reviews' gives logits that are not finite numbers" in said.stdout


@needs_node
@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_job_in_node(webbed: Path, variant: str) -> None:
    """Reference: the same job natively. 1e-5 for fp32, whose sums differ in order; for int8 the same labels."""
    asked = job(webbed, variant=variant, cases=(Case(adapter="reviews", batch=2, sequence=8),), swaps=30,
                sampling=Sampling(warmup_s=0, measure_s=0.05, min_iterations=6))  # fmt: skip
    done = NodeExecutor(load_target("web-wasm")).run(asked)
    check_rows(asked, done, variant)
    assert done.base_restored is True
    assert done.host.machine == "wasm32"
    assert done.host.python.startswith("Node ")
    assert len(done.cases[0].samples_ms) >= 6
    assert done.swap is not None
    assert (len(done.swap.cold_ms), len(done.swap.use_ms), len(done.swap.first_inference_ms)) == (3, 30, 20)
    assert (done.peak_rss_mb or 0) > 20


@needs_node
@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_adapters_in_other_forms(form: Literal["fp16", "int8"], webbed: Path, tmp_path: Path) -> None:
    """Expanded in JavaScript as in Python; a file in another form than the manifest says is refused."""
    own = Path(shutil.copytree(webbed, tmp_path / "own"))
    assert {each.form for each in store_adapters(own, form)} == {form}
    asked = job(own)
    done = NodeExecutor(load_target("web-wasm")).run(asked)
    check_rows(asked, done, "fp32")
    assert done.base_restored is True
    manifest = read_bundle(own).manifest
    adapters = {name: entry.model_copy(update={"form": "fp32"}) for name, entry in manifest.adapters.items()}
    write_manifest(own, manifest.model_copy(update={"adapters": adapters}), manifest.files)
    with pytest.raises(DeviceError, match=r"stored in (fp16|int8), slots take float32"):
        NodeExecutor(load_target("web-wasm")).run(asked)


def check_rows(asked: Job, done: Any, variant: str) -> None:
    native = run_worker(asked.model_copy(update={"cases": (), "swaps": 0}))
    assert [r.adapter for r in done.rows] == ["reviews", "register", "movies"]
    for there, here in zip(done.rows, native.rows, strict=True):
        found, expected = np.array(there.logits), np.array(here.logits)
        assert found.shape == expected.shape
        if variant == "fp32":
            assert np.abs(found - expected).max() < 1e-5
        assert (found.argmax(1) == expected.argmax(1)).all()


def processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and int(entry.name) != os.getpid():
            found.append(command[:200])
    return found


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders below one of this test's own, so that what is left of them, or runs there, can be seen."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@needs_browser
@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_job_in_chromium(webbed: Path, variant: str, own_tmp: Path) -> None:
    """As in Node; and afterwards no process and no profile is left."""
    asked = job(webbed, variant=variant, swaps=25)
    done = WebExecutor(load_target("web-wasm")).run(asked)
    check_rows(asked, done, variant)
    assert done.base_restored is True
    assert "Chrome" in done.host.python
    if sys.platform == "linux":
        assert (done.peak_rss_mb or 0) > 20
        assert processes_with(str(own_tmp)) == []
    assert not list(own_tmp.glob("edgepeft-web-*"))


@needs_browser
def test_a_page_that_takes_too_long_is_stopped(webbed: Path, own_tmp: Path) -> None:
    with pytest.raises(DeviceError, match=r"gave no answer in 1 s and was stopped; measure fewer"):
        WebExecutor(load_target("web-wasm"), timeout_s=1).run(job(webbed, swaps=10**7))
    assert processes_with(str(own_tmp)) == []
    assert not list(own_tmp.glob("edgepeft-web-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_job_that_is_terminated_takes_its_browser_along(tmp_path: Path) -> None:
    """``timeout 60 edgepeft validate …`` sends SIGTERM; the browser is a session of its own and would run on."""
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nsleep 600 & wait\n")
    browser.chmod(0o755)
    program = (
        "import sys\nfrom edgepeft.devices.executors.web.browser import answer_of\n"
        "from edgepeft.devices.executors.web import Site\n"
        "with Site({}) as site: answer_of(sys.argv[1], site, 'x.html', 300)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program, str(browser)], env=environment)
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    assert len(processes_with(str(browser))) >= 2
    process.terminate()
    assert process.wait(timeout=30) == 128 + 15
    assert processes_with(str(tmp_path)) == []
    assert not list(tmp_path.glob("edgepeft-web-*"))


@needs_node
def test_node_that_takes_too_long_is_stopped(webbed: Path, own_tmp: Path) -> None:
    with pytest.raises(DeviceError, match="gave no answer in 1 s and was stopped"):
        NodeExecutor(load_target("web-wasm"), timeout_s=1).run(job(webbed, swaps=10**7))
    assert processes_with(str(own_tmp)) == []


@needs_browser
def test_what_the_page_says_is_the_error(webbed: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no variant 'q4'; it has: fp32, int8"):
        WebExecutor(load_target("web-wasm")).run(job(webbed, variant="q4"))


@needs_node
def test_a_bundle_that_was_not_prepared(exported: Path) -> None:
    with pytest.raises(DeviceError, match="Write one with `edgepeft web prepare BUNDLE`"):
        NodeExecutor(load_target("web-wasm")).run(job(exported))


def test_a_browser_that_does_not_start(webbed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\necho no display here >&2\nexit 7\n")
    browser.chmod(0o755)
    monkeypatch.setenv("EDGEPEFT_CHROMIUM", str(browser))
    monkeypatch.setattr(packages, "packages_folder", lambda: tmp_path / "packages")
    (tmp_path / "packages" / "node_modules").mkdir(parents=True)
    with pytest.raises(DeviceError, match=r"ended with exit code 7: no display here"):
        WebExecutor(load_target("web-wasm")).run(job(webbed))


def test_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Result], tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEPEFT_CHROMIUM", "/no/such/browser")
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("targets", "doctor", "web-wasm")
    assert done.exit_code == 1
    assert "no browser at EDGEPEFT_CHROMIUM=/no/such/browser" in done.stdout
    assert "no npm, which fetches ONNX Runtime Web once" in done.stdout
    done = cli("targets", "doctor", "web-wasm", "--on", "node")
    assert done.exit_code == 1
    assert "no Node 20 or newer" in done.stdout
    with pytest.raises(DeviceError, match=r"no npm, which fetches ONNX Runtime Web once: "):
        packages.install()


def test_npm_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho registry unreachable >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DeviceError, match=r"npm could not install .*exit code 1.*registry unreachable"):
        packages.install()
    assert list((tmp_path / "cache" / "web").iterdir()) == []


@needs_browser
def test_validate_on_the_web(webbed: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    done = cli("validate", webbed, "--target", "web-wasm", "--no-reference", "--report", tmp_path / "report", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["data"]["executor"] == "web (Chromium)"
    assert report["data"]["base_restored"] == {"int8": True}


def test_executors_are_found_by_name() -> None:
    target = load_target("web-wasm")
    assert isinstance(executor_for(target), WebExecutor)
    assert isinstance(executor_for(target, "node"), NodeExecutor)
