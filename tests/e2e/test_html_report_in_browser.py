"""report.html in Chromium: nothing runs over the side of a phone, and dark readers get light letters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgepeft.devices.executors.web import packages
from edgepeft.html_report import write_html_report
from edgepeft.report import write_reports

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_html_report import CHECK, HOSTILE, VALIDATE, bench_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        packages.find_browser() is None, reason="no Chromium: `edgepeft targets doctor web-wasm` says how to get it"
    ),
]

LOOK = """<script>
  for (const one of document.querySelectorAll("details")) one.open = true;
  const luminance = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((sum, c) => sum + c) / 3;
  const style = getComputedStyle(document.body);
  const look = {
    page: document.documentElement.scrollWidth, window: innerWidth,
    over: [...document.querySelectorAll("svg, h1, h2, h3, p, li")].filter((e) =>
      e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll")).map((e) => e.tagName + e.textContent.slice(0, 40)),
    paper: luminance(style.backgroundColor), ink: luminance(style.color),
    marks: [...document.querySelectorAll("svg path")].filter((e) => getComputedStyle(e).stroke.includes("var")).length,
  };
  document.title = JSON.stringify(look);
</script>"""


def look(page: Path, width: int, folder: Path, *, dark: bool = False) -> dict[str, object]:
    """What the browser measures of a page of which every fold is open."""
    copy = folder / f"look-{width}-{dark}.html"
    copy.write_text(page.read_text(encoding="utf-8") + LOOK, encoding="utf-8")
    browser = packages.find_browser()
    assert browser is not None
    # A window of Chromium is 500 pixels wide at least; a frame in it has any width.
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe style="width:{width}px;height:900px;border:0" src="{copy.name}"></iframe><script>onload = () => '
        "{ document.title = document.querySelector('iframe').contentDocument.title; };</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            str(browser), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=3000",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stdout[:500] + done.stderr[-500:]
    found: dict[str, object] = json.loads(title[1])
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name, report in {"a": bench_of(10.0), "b": bench_of(12.0, adapter=HOSTILE), "c": CHECK, "d": VALIDATE}.items():
        write_reports(tmp_path / "reports", name, report)
    return write_html_report([tmp_path / "reports"]).path


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_phones_and_desks(width: int, page: Path, tmp_path: Path) -> None:
    found = look(page, width, tmp_path)
    assert found["window"] == width
    assert found["over"] == []
    assert found["page"] <= width, "a scroll bar takes some; nothing asks for more"  # type: ignore[operator]
    assert found["marks"] == 0


def test_dark_and_light(page: Path, tmp_path: Path) -> None:
    light, dark = look(page, 800, tmp_path), look(page, 800, tmp_path, dark=True)
    assert light["paper"] > 200 > 100 > light["ink"]  # type: ignore[operator]
    assert dark["paper"] < 60 < 180 < dark["ink"]  # type: ignore[operator]
