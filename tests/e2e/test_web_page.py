"""The demo page in headless Chromium, as a person uses it: adapters, variants, blends, keys, failures."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgepeft import runtime
from edgepeft.devices.executors.web import Site, demo_site, packages
from edgepeft.devices.executors.web.browser import answer_of
from edgepeft.errors import InputError

from .test_web import needs_browser, needs_node

pytestmark = pytest.mark.e2e


def as_a_person(does: str) -> str:
    """A script for the page: what a person does there, ending with what they then read in ``answer``."""
    return (
        """
<script type="module">
  const until = async (what, holds) => {
    for (let i = 0; i < 600; i++) {
      if (holds()) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`waited in vain for ${what}; the page says: ${document.querySelector("#error").textContent}`);
  };
  let answer;
  try {
"""
        + does
        + """
  } catch (failure) {
    answer = { error: String(failure) };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>
"""
    )


PERSON = as_a_person("""
  const labels = () => [...document.querySelectorAll("#result .row span:first-child")].map((e) => e.textContent).sort().join();
  const cells = (row) => [...row.children].slice(0, 2).map((cell) => cell.textContent);
  const rows = () => [...document.querySelectorAll("#all tbody tr")].map(cells);
    await until("the first result", () => rows().length === 3);
    const first = labels();
    document.querySelector("#text").value = "a poor plot , an awful end . not fine";
    document.querySelector("#text").dispatchEvent(new Event("input"));
    document.querySelector('button[data-name="register"]').click();
    await until("three labels", () => labels() === "book,film,plot");
    await until("all adapters", () => rows().length === 3);
    document.querySelector("#variant").value = "fp32";
    document.querySelector("#variant").dispatchEvent(new Event("change"));
    await until("the other variant", () => document.querySelector("#about").textContent.includes("(fp32)"));
    await new Promise((done) => setTimeout(done, 500));
    await until("its result", () => rows().length === 3 && labels() === "book,film,plot");
    const pressed = () => document.querySelector('[role="radio"][aria-checked="true"]');
    pressed().focus();
    pressed().dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    await until("the base", () => document.querySelector("#result").textContent.includes("no trained head"));
    const focused = [document.activeElement === pressed(), pressed().dataset.name, pressed().tabIndex];
    const base = { scale: document.querySelector("#scale").disabled, blend: document.querySelector("#other").disabled };
    document.querySelector('button[data-name="reviews"]').click();
    await until("reviews again", () => labels() === "bad,good");
    await until("its rows", () => rows().length === 3);
    document.querySelector("#other").value = "movies";
    document.querySelector("#share").value = "0.3";
    document.querySelector("#other").dispatchEvent(new Event("input"));
    const alone = document.querySelector("#result").textContent;
    await until("the blend", () => document.querySelector("#result").textContent !== alone);
    const bars = [...document.querySelectorAll("#result .row")];
    const shares = Object.fromEntries(bars.map((row) => [row.firstChild.textContent, row.lastChild.textContent]));
    const times = document.querySelector("#times").textContent;
    answer = { first, focused, base, shares, rows: rows(), times, isolated: crossOriginIsolated };
""")


@needs_browser
def test_the_demo_page(webbed: Path) -> None:
    """Types a text, switches adapters and variants, goes back to the base; the labels read are Python's."""
    site = demo_site(webbed, "int8")
    site.add("/person.html", (packages.web_folder() / "page" / "index.html").read_text() + PERSON)
    with site:
        answer, _ = answer_of(packages.find_browser() or "", site, "person.html?variant=int8", 60)
    found = json.loads(answer)
    assert "error" not in found, found
    assert found["first"] == "bad,good"
    assert found["isolated"] is True
    assert "swap" in found["times"]
    assert found["focused"] == [True, "", 0], "an arrow key chooses, and what is chosen can be reached by Tab"
    assert found["base"] == {"scale": True, "blend": True}
    model = runtime.open(webbed)
    text = "a poor plot , an awful end . not fine"
    assert found["rows"] == [[name, model.use(name).predict([text])[0].label] for name in model.adapters]
    blended = model.use({"reviews": 0.7, "movies": 0.3}, head="reviews").predict([text])[0].probabilities
    assert found["shares"] == {label: f"{100 * share:.1f} %" for label, share in blended.items()}


FAILURES = as_a_person("""
  const error = document.querySelector("#error");
  const shown = (selector) => document.querySelector(selector).getClientRects().length > 0;
    await until("an end", () => document.body.dataset.state !== "opening");
    const state = document.body.dataset.state;
    if (state === "ready") {
      await until("a result", () => document.querySelectorAll("#all tbody tr").length === 3);
      document.querySelector('button[data-name="movies"]').click();
      await until("the error", () => !error.hidden);
    }
    const pressed = document.querySelector('[role="radio"][aria-checked="true"]')?.dataset.name;
    const again = error.querySelector("button")?.textContent;
    const narrow = document.documentElement.scrollWidth <= innerWidth;
    answer = { state, text: error.textContent, pressed, again, form: shown("form"), result: shown("#answer"), narrow };
""")


@needs_browser
@pytest.mark.parametrize("file", ["onnx/model.onnx_data", "adapters/movies.onnx_adapter", "edgepeft.json"])
def test_the_demo_page_tells_what_failed(webbed: Path, tmp_path: Path, file: str) -> None:
    """Weights or a manifest that were changed: nothing but the reason and a button. An adapter: the one in use stays."""
    own = Path(shutil.copytree(webbed, tmp_path / "own"))
    site = demo_site(own, "fp32")
    content = bytearray((own / file).read_bytes())
    content[len(content) // 2 if file != "edgepeft.json" else 0] ^= 1
    (own / file).write_bytes(bytes(content))
    site.add("/person.html", (packages.web_folder() / "page" / "index.html").read_text() + FAILURES)
    with site:
        phone = ("--disable-gpu", "--window-size=390,844")
        answer, _ = answer_of(packages.find_browser() or "", site, "person.html?variant=fp32", 60, phone)
    found = json.loads(answer)
    assert "error" not in found, found
    assert found["narrow"] is True
    if file.startswith("adapters"):
        assert "CorruptBundleError" in found["text"]
        assert "movies.onnx_adapter was changed after the bundle was written" in found["text"]
        assert (found["state"], found["pressed"], found["form"], found["result"]) == ("ready", "reviews", True, True)
        return
    assert (found["state"], found["again"], found["form"], found["result"]) == ("failed", "Try again", False, False)
    assert ("ManifestError" if file == "edgepeft.json" else "model.onnx_data was changed") in found["text"]


def test_serve_refuses_what_it_cannot_show(webbed: Path, exported: Path, cli: Callable[..., Result]) -> None:
    done = cli("web", "serve", exported)
    assert done.exit_code == 2
    assert f"Write it with: edgepeft web prepare {exported}" in done.stderr
    assert "has no variant 'q4'" in cli("web", "serve", webbed, "--variant", "q4").stderr
    assert cli("web", "serve", webbed / "nowhere").exit_code == 2


@needs_node
def test_a_port_that_is_in_use(webbed: Path) -> None:
    with demo_site(webbed) as site, pytest.raises(InputError, match="is in use; choose another with --port"):
        demo_site(webbed, port=int(site.url.rpartition(":")[2]))


def status_of(site: Site, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(site.url.rpartition(":")[2]), timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@needs_node
def test_only_what_the_page_needs_is_served(webbed: Path, tmp_path: Path) -> None:
    """Of the bundle what its manifest lists now, of the packages what the page imports, of the module no tests or harness."""
    own = Path(shutil.copytree(webbed, tmp_path / "own"))
    (own / "notes.txt").write_text("mine")
    (own / ".env").write_text("KEY=secret")
    with demo_site(own, "fp32") as site:
        for name in ("edgepeft.json", *runtime.open(own).manifest.files):
            assert status_of(site, f"/bundle/{name}") == 200, name
        assert [status_of(site, f"/bundle/{name}") for name in ("notes.txt", ".env", "report/", "")] == [404] * 4
        ort = "/node_modules/onnxruntime-web/"
        assert status_of(site, f"{ort}dist/ort.wasm.bundle.min.mjs") == 200
        for path in (f"{ort}package.json", "/node_modules/.package-lock.json"):
            assert status_of(site, path) == 404, path
        for name in ("src/index.js", "page/app.js", "page/style.css"):
            assert status_of(site, f"/web/{name}") == 200, name
        for name in ("package.json", "test/bundle.test.js", "harness/job.js", "page/../package.json", "README.md"):
            assert status_of(site, f"/web/{name}") == 404, name
        less = json.loads((own / "edgepeft.json").read_text())
        del (
            less["adapters"]["movies"],
            less["files"]["adapters/movies.onnx_adapter"],
            less["files"]["adapters/movies.onnx"],
        )
        (own / "edgepeft.json").write_text(json.dumps(less))
        assert status_of(site, "/bundle/adapters/movies.onnx_adapter") == 404
        assert status_of(site, "/bundle/adapters/movies.onnx_adapter") == 404
        assert status_of(site, "/bundle/adapters/reviews.onnx_adapter") == 200
        shutil.copytree(webbed, own, dirs_exist_ok=True)
        assert status_of(site, "/bundle/adapters/movies.onnx_adapter") == 200, "what is added later is served"
        (own / "edgepeft.json").write_text("{")
        assert status_of(site, "/bundle/adapters/movies.onnx_adapter") == 200, (
            "the page itself says what is wrong with it"
        )
